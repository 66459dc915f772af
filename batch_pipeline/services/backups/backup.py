"""Backup of both databases and the stored files in one file, while everything runs.

The backup is a tar file. ``backup.json`` describes its contents, ``database.dump`` and
``dagster.dump`` are in PostgreSQL's custom format, and ``files/`` contains originals and thumbnails
of uploads. A dump contains the whole database with the tables of other programs, because our tables
and theirs may refer to each other. The dump is made first, so that every row in it has its file. A
row without its file would fail; a file without its row does no harm.

A restore works in the opposite order: files first, so that no row exists before its file. It begins
with checks of everything that could make it fail, or replace tables of other programs.
"""

import io
import json
import os
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from sqlalchemy import select, text
from sqlalchemy.engine import URL

from batch_pipeline.database.embedded_server import server_users
from batch_pipeline.database.models import Upload
from batch_pipeline.database.names import DAGSTER_DATABASE
from batch_pipeline.database.relations import DAGSTER, PIPELINE
from batch_pipeline.database.revisions import newest_revision
from batch_pipeline.database.session import (
    Database,
    connect,
    create_database_if_missing,
    with_driver,
)
from batch_pipeline.errors import PipelineError, RefusedError, UploadError
from batch_pipeline.masking import masked
from batch_pipeline.services.backups.database_dumps import (
    DumpedDatabase,
    ReadyDump,
    require_known_version,
)
from batch_pipeline.services.deletion.file_ownership import FileOwnership
from batch_pipeline.settings import Settings
from batch_pipeline.storage import Storage

_ABOUT, _OURS, _DAGSTER, _FILES = "backup.json", "database.dump", "dagster.dump", "files/"
_CHUNK = 1000


@dataclass
class Backup:
    """Contents of a backup."""

    file: str
    revision: str | None
    """Revision of our tables."""
    storage: str
    """Location of the storage, whether its files are in the backup or not."""
    dagster: bool
    """Whether the backup contains the history of runs."""
    files: int = 0
    """Number of files in the backup."""
    missing: list[str] = field(default_factory=list)
    """Files that a row names but that are not on the storage."""
    unreadable: list[str] = field(default_factory=list)
    """Files that cannot be read although others can; they are not in the backup."""
    left_out: list[str] = field(default_factory=list)
    """Tables of other programs that our role may not read; they are not in the backup."""
    made_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())


@dataclass
class Restored:
    """Result of a restore."""

    backup: Backup
    files: int = 0
    """Number of files written to the storage."""
    kept: int = 0
    """Number of files that existed already and were left as they are."""
    is_owner: bool = False
    """Whether the restored database owns the storage."""


def back_up(settings: Settings, file: Path, *, with_files: bool) -> Backup:
    """Write a backup; everything else may run at the same time.

    Raises:
        RefusedError: the server is newer than our PostgreSQL programs, a pooler is in front of it,
            our role may not read everything that is needed, or the file is a device.
        PipelineError: the backup could not be made; no file is left.
    """
    storage = Storage(settings.storage_location)
    database = connect(settings)
    # Another backup to the same file may be in progress.
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    try:
        if file.exists() and not file.is_file():
            raise RefusedError(
                f"{file} is not a regular file and is not replaced: name another file"
            )
        require_known_version(database)
        ours, dagster = _databases(settings, database)
        has_dagster = _is_there(dagster.url, settings, database)
        backup = Backup(
            str(file),
            database.revisions()[0],
            masked(settings.storage_location),
            dagster=has_dagster,
        )
        with (
            os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw,
            tarfile.open(fileobj=raw, mode="w") as archive,
            tempfile.TemporaryDirectory() as folder,
        ):
            databases = {_OURS: ours} | ({_DAGSTER: dagster} if has_dagster else {})
            for name, dumped in databases.items():
                dump = Path(folder, name)
                backup.left_out += dumped.dump(dump)
                archive.add(dump, name)
                dump.unlink()
            for path in _paths(database) if with_files else ():
                _add_file(archive, storage, path, backup)
            about = json.dumps(asdict(backup), indent=2).encode()
            _add(archive, _ABOUT, io.BytesIO(about), len(about))
        partial.replace(file)
    except OSError as error:
        raise PipelineError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # the folder cannot be used; the error above says so
            partial.unlink()
        database.close()
    return backup


def restore(
    settings: Settings, file: Path, *, replace: bool = False, replace_others: bool = False
) -> Restored:
    """Restore a backup into an empty database.

    Args:
        settings: name the database and the storage.
        file: a file that `back_up` wrote.
        replace: remove existing rows; without it, a database that has rows is refused.
        replace_others: also replace tables of other programs that are in the backup; without it,
            a database that has such tables is refused.

    Raises:
        RefusedError: the file is not a backup, or a newer version made it; the database is not
            empty, a process uses it, tables of other programs are in the way, or a pooler is in
            front of it.
        ConfigurationError: our role may not replace the tables.
        ServiceDownError: another transaction uses the tables.
        PipelineError: it could not be restored. Dagster's tables and then ours are restored, each
            completely or not at all. Files that are already restored stay.
    """
    try:
        with tarfile.open(file) as archive:
            restored = Restored(_read_about(archive, file))
            try:
                _restore(
                    settings, archive, restored, replace=replace, replace_others=replace_others
                )
            except OSError as error:  # such as a full folder for temporary files
                raise PipelineError(f"{file} could not be restored: {error}") from error
            return restored
    except (tarfile.TarError, OSError, KeyError) as error:
        reason = str(error).partition(":\n")[0]  # without the errors for each compression
        raise RefusedError(
            f"{file} is not one of our backups, or cannot be read: {reason}"
        ) from error


def _restore(
    settings: Settings,
    archive: tarfile.TarFile,
    restored: Restored,
    *,
    replace: bool,
    replace_others: bool,
) -> None:
    database = connect(settings)
    try:
        _require_nobody_else(settings)
        rows = _rows(database)
        if rows and not replace:
            raise RefusedError(
                f"the database already holds {rows} batches and uploads: restore into an empty "
                "one, or use --replace"
            )
        ours, dagster = _databases(settings, database)
        with tempfile.TemporaryDirectory() as folder:
            dumps = [_ready(archive, folder, _OURS, ours, replace_others=replace_others)]
            if restored.backup.dagster:
                create_database_if_missing(database.url, str(dagster.url.database))
                # Our tables come last. If one of the two fails, the database is still empty, and
                # the same command can be called again.
                history = _ready(archive, folder, _DAGSTER, dagster, replace_others=replace_others)
                dumps.insert(0, history)
            storage = Storage(settings.storage_location)
            ownership = FileOwnership(database, storage, settings)
            becomes_owner = ownership.begin_restore()
            _put_files(archive, storage, restored)
            for dump in dumps:
                dump.restore()
        database.upgrade()
        if becomes_owner:
            ownership.take_over()
        restored.is_owner = ownership.claim()
    finally:
        database.close()


def _ready(
    archive: tarfile.TarFile,
    folder: str,
    name: str,
    database: DumpedDatabase,
    *,
    replace_others: bool,
) -> ReadyDump:
    archive.extract(name, folder, filter="data")
    return ReadyDump.make(Path(folder, name), database, replace_others=replace_others)


def _read_about(archive: tarfile.TarFile, file: Path) -> Backup:
    """Read the description of a backup; fields that a newer version has added are ignored."""
    about = archive.extractfile(_ABOUT)
    if about is None:
        raise RefusedError(f"{file} is not one of our backups: its {_ABOUT} is not a file")
    known = {field.name for field in fields(Backup)}
    try:
        said = json.loads(about.read())
        backup = Backup(**{name: value for name, value in said.items() if name in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise RefusedError(
            f"{file} is not one of our backups, or is damaged: {_ABOUT} cannot be used"
        ) from error
    if backup.revision and backup.revision > newest_revision():
        raise RefusedError(
            f"{file} was made by a newer version: its tables are at revision {backup.revision}, "
            f"this version knows revisions up to {newest_revision()}. Install that version first"
        )
    return backup


def _put_files(archive: tarfile.TarFile, storage: Storage, restored: Restored) -> None:
    for member in archive:
        if not member.isfile() or not member.name.startswith(_FILES):
            continue
        path = member.name.removeprefix(_FILES)
        content = archive.extractfile(member)
        if content is None or storage.exists(path):
            restored.kept += 1
            continue
        with tempfile.NamedTemporaryFile() as copy:
            while chunk := content.read(1 << 20):
                copy.write(chunk)
            copy.flush()
            storage.put(Path(copy.name), path)
        restored.files += 1


def _paths(database: Database) -> Iterator[str]:
    """Yield the paths of all files that rows name, each once."""
    last, seen = None, set()
    while True:
        rows = select(Upload.id, Upload.file_path, Upload.thumbnail_path).order_by(Upload.id)
        if last is not None:
            rows = rows.where(Upload.id > last)
        with database.transaction() as connection:
            chunk = connection.execute(rows.limit(_CHUNK)).all()
        if not chunk:
            return
        last = chunk[-1].id
        for path in (path for row in chunk for path in row[1:] if path):
            if path not in seen:
                seen.add(path)
                yield path


def _add_file(archive: tarfile.TarFile, storage: Storage, path: str, backup: Backup) -> None:
    start = archive.offset
    try:
        with storage.open_one(path) as content:
            _add(archive, _FILES + path, content, content.size())
    except UploadError as error:
        _end_at(archive, start)
        left_out = backup.missing if error.kind == "source_missing" else backup.unreadable
        left_out.append(path)
    else:
        backup.files += 1


def _end_at(archive: tarfile.TarFile, offset: int) -> None:
    """Remove what was written of an entry that could not be completed."""
    file = cast("BinaryIO", archive.fileobj)
    file.seek(offset)
    file.truncate()
    archive.offset = offset


def _add(archive: tarfile.TarFile, name: str, content: Any, size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o600, int(datetime.now(UTC).timestamp())
    archive.addfile(entry, content)


def _databases(settings: Settings, database: Database) -> tuple[DumpedDatabase, DumpedDatabase]:
    """Return our database, and Dagster's; they may be the same one."""
    dagster, variable = database.url.set(database=DAGSTER_DATABASE), "DATABASE_URL"
    if settings.dagster_database_url:
        variable = "DAGSTER_DATABASE_URL"
        dagster = with_driver(settings.dagster_database_url, "psycopg", variable=variable)
    both = (PIPELINE, DAGSTER) if _address(dagster) == _address(database.url) else ()
    return (
        DumpedDatabase(database.url, "DATABASE_URL", both or (PIPELINE,)),
        DumpedDatabase(dagster, variable, both or (DAGSTER,)),
    )


def _address(url: URL) -> tuple[object, ...]:
    return url.host, url.port or 5432, url.database, url.query.get("host")


def _is_there(dagster: URL, settings: Settings, database: Database) -> bool:
    """Return whether Dagster has made its tables.

    Raises:
        PipelineError: Dagster's database cannot be read, so the backup would not be complete.
    """
    if not settings.dagster_database_url:
        named = text("SELECT 1 FROM pg_database WHERE datname = :name")
        with database.transaction() as connection:
            if not connection.scalar(named, {"name": dagster.database}):
                return False
    other = Database(dagster)
    try:
        with other.transaction() as connection:
            return connection.scalar(text("SELECT to_regclass('runs')")) is not None
    except PipelineError as error:
        # Dagster makes its database when it first starts.
        if f'database "{dagster.database}" does not exist' in str(error):
            return False
        raise PipelineError(
            f"the history of runs cannot be read, so the backup would not be complete: {error}"
        ) from error
    finally:
        other.close()


def _require_nobody_else(settings: Settings) -> None:
    users = [] if settings.database_url else server_users(settings.home)
    if users:
        named = ", ".join(f"{user.name} (process {user.pid})" for user in users)
        raise RefusedError(f"the database is in use by {named}: stop them first")


def _rows(database: Database) -> int:
    count = 0
    with database.transaction() as connection:
        for table in ("upload_batches", "uploads"):
            if connection.scalar(text(f"SELECT to_regclass('{table}')")):
                count += connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()  # noqa: S608
    return count
