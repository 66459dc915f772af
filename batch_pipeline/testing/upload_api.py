"""An upload API that writes into the pipeline's tables at any time while they are processed.

It knows only the original columns, locks rows in its own order, updates no counter, and stores
files in the same storage.
"""

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

#: How long it holds the rows of a batch (seconds).
LOCK_SECONDS = (0.5, 3.0)


class UploadApi:
    """Does one action after another in its own thread; a context manager that stops it.

    Args:
        url: URL of the database.
        storage: folder of the files.
        original: makes the next file: its name and content.
        chance: chooses the actions, their rows and times.
        mean_seconds: mean time between two actions.
    """

    def __init__(
        self,
        url: str,
        storage: Path,
        *,
        original: Callable[[], tuple[str, bytes]],
        chance: random.Random,
        mean_seconds: float,
    ) -> None:
        self.done: Counter[str] = Counter()
        """How often it completed each action."""
        self.interrupted: Counter[str] = Counter()
        """How often the database ended each action: it was killed, or ended it in a deadlock."""
        self._url, self._storage, self._original = url, storage, original
        self._chance, self._mean_seconds = chance, mean_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upload API", daemon=True)

    @property
    def deeds(self) -> Sequence[Callable[[psycopg.Connection], None]]:
        """Return all actions."""
        return self.append, self.reset, self.delete, self.lock

    def append(self, connection: psycopg.Connection) -> None:
        """Add a file to any batch, also to one that has ended."""
        batch_id, user_id = self._any_row(connection, "SELECT id, user_id FROM upload_batches")
        upload_id, (name, data) = uuid.uuid4(), self._original()
        path = f"{user_id}/{upload_id}/original.jpg"
        target = self._storage / path
        target.parent.mkdir(parents=True)
        target.write_bytes(data)
        connection.execute(
            "INSERT INTO uploads (id, user_id, batch_id, filename, file_path, file_type, file_size,"
            " mime_type) VALUES (%s, %s, %s, %s, %s, 'image', %s, 'image/jpeg')",
            [upload_id, user_id, batch_id, name, path, len(data)],
        )

    def reset(self, connection: psycopg.Connection) -> None:
        """Make an upload that has ended pending again."""
        [upload_id] = self._any_row(
            connection,
            "SELECT id FROM uploads WHERE processing_status IN ('completed', 'failed')",
        )
        connection.execute(
            "UPDATE uploads SET processing_status = 'pending' WHERE id = %s", [upload_id]
        )

    def delete(self, connection: psycopg.Connection) -> None:
        """Delete an upload, whatever its state, and leave its file."""
        [upload_id] = self._any_row(connection, "SELECT id FROM uploads")
        connection.execute("DELETE FROM uploads WHERE id = %s", [upload_id])

    def lock(self, connection: psycopg.Connection) -> None:
        """Lock a batch, then its uploads. The pipeline locks them in the opposite order."""
        [batch_id] = self._any_row(connection, "SELECT id FROM upload_batches")
        connection.execute("SELECT 1 FROM upload_batches WHERE id = %s FOR UPDATE", [batch_id])
        self._stopping.wait(self._chance.uniform(*LOCK_SECONDS) / 2)
        connection.execute("UPDATE uploads SET filename = filename WHERE batch_id = %s", [batch_id])
        self._stopping.wait(self._chance.uniform(*LOCK_SECONDS) / 2)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stopping.wait(self._chance.expovariate(1 / self._mean_seconds)):
            [deed] = self._chance.choices(self.deeds, weights=(3, 2, 1, 1))
            name = deed.__name__
            try:
                with psycopg.connect(self._url) as connection:
                    deed(connection)
            except psycopg.OperationalError:
                self.interrupted[name] += 1
                time.sleep(0.1)
            except LookupError:
                continue  # there is none yet
            else:
                self.done[name] += 1

    def _any_row(self, connection: psycopg.Connection, query: str) -> Sequence[Any]:
        rows = connection.execute(f"{query} ORDER BY id".encode()).fetchall()
        return self._chance.choice(rows)
