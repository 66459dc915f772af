"""Exports everything that is stored about a user: JSON Lines, thumbnails and originals."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy import text

from batch_pipeline.database.readings import LOCAL_USER, UPLOAD_OWNER_SQL, as_text, upload_owned_by
from batch_pipeline.database.session import Database
from batch_pipeline.errors import NotFoundError, PipelineError, RefusedError, UploadError
from batch_pipeline.storage import Storage

_CHUNK = 200
#: Every column, including those of an upload API; vectors are arrays of numbers. This is `json`
#: because `jsonb` cannot hold everything that an API's column of type `json` may contain. Each page
#: begins `later` than the previous one. With an `OR` instead, each page would read all earlier rows
#: again.
_ROWS = {
    "batches": """
        SELECT id, to_json(one) AS said, NULL AS more FROM upload_batches AS one
        WHERE coalesce(user_id, :local) = :user
            AND {later}
        ORDER BY id LIMIT :limit
    """,
    "uploads": """
        SELECT id, to_json(uploads) AS said, json_build_object(
            'embedding_local', CAST(CAST(embedding_local AS text) AS json),
            'vectors', coalesce((
                SELECT json_agg(json_build_object(
                    'model', model, 'dimensions', width,
                    'document_prefix', document_prefix,
                    'vector', CAST(CAST(vector AS text) AS json)
                ) ORDER BY space_id)
                FROM upload_vectors JOIN embedding_spaces ON embedding_spaces.id = space_id
                WHERE upload_id = uploads.id
            ), '[]')
        ) AS more
        FROM uploads
        WHERE ({owned})
            AND {later}
        ORDER BY id LIMIT :limit
    """,
    "model_calls": f"""
        SELECT id, to_json(one) AS said, NULL AS more FROM model_calls AS one
        WHERE user_id IN (:user, :local) AND coalesce((
                SELECT {UPLOAD_OWNER_SQL} FROM uploads
                WHERE uploads.id = one.upload_id AND uploads.user_id IS NULL
            ), user_id) = :user
            AND {{later}}
        ORDER BY id LIMIT :limit
    """,  # noqa: S608 - of constants
}


@dataclass
class Export:
    """Contents of a written export."""

    user_id: uuid.UUID
    folder: str
    batches: int = 0
    """Lines of ``batches.jsonl``."""
    uploads: int = 0
    """Lines of ``uploads.jsonl``."""
    model_calls: int = 0
    """Lines of ``model_calls.jsonl``."""
    thumbnails: int = 0
    """Files ``thumbnails/<upload id>.jpg``."""
    originals: int = 0
    """Files ``originals/<upload id>.<ending>``."""
    missing: list[str] = field(default_factory=list)
    """Files that a row names but that are not on the storage."""
    unreadable: list[str] = field(default_factory=list)
    """Files that cannot be read although others can."""


def export_user(
    database: Database, storage: Storage, user_id: uuid.UUID, folder: Path, *, originals: bool
) -> Export:
    """Write all rows and files of a user to a folder, which appears when it is complete.

    Args:
        database: the database with the rows.
        storage: the storage with the files.
        user_id: the user.
        folder: a new or empty folder.
        originals: include the submitted files.

    Raises:
        NotFoundError: nothing is stored about the user.
        RefusedError: the folder is not empty.
        PipelineError: the folder cannot be written.
        ServiceDownError: database or storage cannot be used.
    """
    done = Export(user_id, str(folder))
    target = Path(os.path.realpath(folder))  # `resolve` raises an error for a loop of links
    partial = target.parent / f"{target.name}.partial-{uuid.uuid4().hex}"
    try:
        if target.exists() and any(target.iterdir()):
            raise RefusedError(f"{folder} is not empty: name a new folder")
        partial.mkdir(mode=0o700, parents=True)
        for name in _ROWS:
            # Half of a surrogate pair cannot be written as UTF-8; it stays a JSON escape.
            with (partial / f"{name}.jsonl").open(
                "w", encoding="utf-8", errors="backslashreplace"
            ) as lines:
                for said in _rows(database, name, user_id):
                    lines.write(json.dumps(said, ensure_ascii=False) + "\n")
                    setattr(done, name, getattr(done, name) + 1)
                    if name == "uploads":
                        _write_files(storage, partial, said, done, originals=originals)
        if not (done.batches or done.uploads or done.model_calls):
            raise NotFoundError(f"nothing is stored about user {user_id}")
        if target.exists():  # the folder is kept: it may be somebody's working directory
            target.chmod(0o700)
            for written in partial.iterdir():
                written.rename(target / written.name)
        else:
            partial.rename(target)
    except OSError as error:
        raise PipelineError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done


def _rows(database: Database, name: str, user_id: uuid.UUID) -> Iterator[dict[str, Any]]:
    later = "TRUE"  # the nil UUID may be an id, too
    owned = as_text(upload_owned_by(user_id))
    values = {"user": user_id, "local": LOCAL_USER, "limit": _CHUNK}
    while True:
        with database.transaction() as connection:
            rows = connection.execute(
                text(_ROWS[name].format(owned=owned, later=later)), values
            ).all()
        if not rows:
            return
        later, values["after"] = "id > :after", rows[-1].id
        for row in rows:
            yield row.said | (row.more or {})


def _write_files(
    storage: Storage, folder: Path, upload: dict[str, Any], done: Export, *, originals: bool
) -> None:
    wanted = [("thumbnails", upload["thumbnail_path"])]
    if originals:
        wanted.append(("originals", upload["file_path"]))
    for kind, path in wanted:
        if not path:
            continue
        target = folder / kind / f"{upload['id']}{PurePosixPath(path).suffix}"
        target.parent.mkdir(exist_ok=True)
        try:
            with storage.open_one(path) as content, target.open("wb") as file:
                while block := content.read(1 << 20):
                    file.write(block)
        except UploadError as error:
            target.unlink(missing_ok=True)
            left_out = done.missing if error.kind == "source_missing" else done.unreadable
            left_out.append(path)
        else:
            setattr(done, kind, getattr(done, kind) + 1)
