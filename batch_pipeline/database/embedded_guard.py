"""Stops the embedded PostgreSQL when nobody who lives uses it.

A small process of its own, since those who use the server may be killed at any instruction. Each
of them holds a shared lock on a file, which the kernel takes away when it dies; here the exclusive
lock is waited for. Started by its path, with nothing imported that takes memory.

    python embedded_guard.py USERS_FILE GUARD_FILE PG_CTL DATA_FOLDER
"""

import fcntl
import os
import subprocess
import sys


def main(users_file: str, guard_file: str, pg_ctl: str, folder: str) -> None:
    """Wait, stop the server, end."""
    if os.fork():
        os._exit(0)  # whoever started us does not wait for us
    with open(users_file, encoding="utf-8") as users, open(guard_file, "w") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # there is one already
        fcntl.flock(users, fcntl.LOCK_EX)
        # Who comes now waits for the lock, and starts server and guard anew.
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
