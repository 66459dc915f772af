"""Rows for tests, written like an upload API: only with the columns that it knows."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, insert, select, text

from batch_pipeline.database.models import Upload, UploadBatch
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.services.dispatch.slices import numbered_slices, open_slice, unnumbered_slices
from batch_pipeline.services.dispatch.turns import WaitingSlice

USER = uuid.UUID("5a0f3c7e-0000-4000-8000-000000000001")


def add_batch(
    database: Database,
    uploads: int | Sequence[Mapping[str, Any]] = 0,
    **values: Any,
) -> uuid.UUID:
    """Add a batch with its uploads, a microsecond apart, and return its id.

    Args:
        database: the database to write to.
        uploads: how many, or for each upload the columns that differ from a pending picture.
        values: columns of the batch that differ from those of a pending one.
    """
    rows = [{} for _ in range(uploads)] if isinstance(uploads, int) else list(uploads)
    with database.transaction() as connection:
        batch_id: uuid.UUID = connection.execute(
            insert(UploadBatch)
            .values({"user_id": USER, "total_uploads": len(rows), **values})
            .returning(UploadBatch.id)
        ).scalar_one()
        for number, row in enumerate(rows):
            connection.execute(
                insert(Upload).values(
                    {
                        "user_id": USER,
                        "batch_id": batch_id,
                        "filename": f"picture_{number}.jpg",
                        "file_path": f"{USER}/{number}/original.jpg",
                        "file_type": "image",
                        "file_size": 1000,
                        "created_at": func.now()
                        + func.make_interval(0, 0, 0, 0, 0, 0, number / 1e6),
                        **row,
                    }
                )
            )
    return batch_id


def batch_row(database: Database, batch_id: uuid.UUID) -> AnyRow:
    """Read all columns of a batch."""
    with database.transaction() as connection:
        return connection.execute(
            select(*UploadBatch.__table__.columns).where(UploadBatch.id == batch_id)
        ).one()


def upload_rows(database: Database, batch_id: uuid.UUID) -> Sequence[AnyRow]:
    """Read all columns of a batch's uploads, oldest first."""
    with database.transaction() as connection:
        return connection.execute(
            select(*Upload.__table__.columns)
            .where(Upload.batch_id == batch_id)
            .order_by(Upload.created_at, Upload.id)
        ).all()


def upload_row(database: Database, upload_id: uuid.UUID) -> AnyRow:
    """Read all columns of an upload."""
    with database.transaction() as connection:
        return connection.execute(
            select(*Upload.__table__.columns).where(Upload.id == upload_id)
        ).one()


def make_unreadable(database: Database, filename: str) -> None:
    """Make reading the timings of uploads with this name fail, like a damaged row."""
    with database.transaction() as connection:
        connection.execute(text("ALTER TABLE uploads DROP COLUMN stage_seconds"))
        connection.execute(
            text(f"""
                ALTER TABLE uploads ADD COLUMN stage_seconds jsonb GENERATED ALWAYS AS (
                    CASE filename WHEN '{filename}' THEN (1 / (length(filename) * 0))::text::jsonb
                    ELSE '{{}}' END) VIRTUAL
            """)
        )


def open_all_slices(database: Database, uploads_per_run: int) -> list[WaitingSlice]:
    """Number all waiting uploads, as if it were their turn; list all slices that wait for a run."""
    while waiting := unnumbered_slices(database, uploads_per_run, at_most=1):
        for slice_ in waiting:
            open_slice(database, slice_, uploads_per_run)
    return numbered_slices(database)
