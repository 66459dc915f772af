"""Stops the embedded PostgreSQL when no living process uses it.

The guard is a small separate process, because the processes that use the server may be killed at
any moment. Each of them holds a shared lock on a file, and the kernel releases it when the process
dies. The guard waits for the exclusive lock. It is started by its path and imports nothing large.

    python embedded_guard.py USERS_FILE GUARD_FILE PG_CTL DATA_FOLDER
"""

import fcntl
import os
import subprocess
import sys


def main(users_file: str, guard_file: str, pg_ctl: str, folder: str) -> None:
    """Wait until no process uses the server, then stop it."""
    if os.fork():
        os._exit(0)  # the process that started the guard must not wait for it
    with open(users_file, encoding="utf-8") as users, open(guard_file, "w") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another guard is running
        fcntl.flock(users, fcntl.LOCK_EX)
        # A process that needs the server now waits for the lock, and starts server and guard again.
        if os.path.exists(f"{folder}/postmaster.pid"):
            owner = os.stat(folder).st_uid
            subprocess.run(  # noqa: S603 - the server's own program
                [pg_ctl, "-w", "-D", folder, "stop"],
                user=owner if os.geteuid() == 0 else None,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        fcntl.flock(guard, fcntl.LOCK_UN)


if __name__ == "__main__":
    main(*sys.argv[1:])
