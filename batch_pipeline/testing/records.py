"""Rows for tests, written like an upload API: only with the columns that it knows."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, text

from batch_pipeline.database.models import Upload, UploadBatch
from batch_pipeline.database.readings import LOCAL_USER
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.database.spaces import Questions, SpaceKey, find_or_make_space, table_of
from batch_pipeline.services.dispatch.slices import numbered_slices, open_slice, unnumbered_slices
from batch_pipeline.services.dispatch.turns import WaitingSlice
from batch_pipeline.services.states.upload_states import Embedded, NewVector

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
        if any("embedding_model" in row for row in rows):
            fill_spaces(connection)
    return batch_id


def embedded(database: Database, vector: Sequence[float] | None = None) -> Embedded:
    """Create the space of a model ``m``; return a result of it for `UploadStates.complete`.

    The vector has 1,024 numbers, unless one is given.
    """
    numbers = [1.0] * 1024 if vector is None else vector
    with database.transaction() as connection:
        space = find_or_make_space(connection, SpaceKey("m", len(numbers)), Questions())
    return Embedded(NewVector(space.id, numbers), "m", "m", fits_local=True)


def fill_spaces(connection: Connection, *, memory: str = "256MB") -> None:
    """Copy vectors from ``embedding_local`` to the spaces of their models, which are created.

    A user without an answering space gets the one with most of the user's vectors.
    """
    found = connection.execute(
        text("""
            SELECT DISTINCT embedding_model, vector_dims(embedding_local) FROM uploads
            WHERE embedding_model IS NOT NULL AND embedding_local IS NOT NULL ORDER BY 1, 2
        """)
    ).all()
    for model, width in found:
        space = find_or_make_space(connection, SpaceKey(model, width), Questions())
        table = table_of(space.id)
        index = connection.execute(
            text(f"SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_{table}'")
        ).scalar_one()
        # Building an index over existing rows is ten times faster than adding them one by one.
        connection.execute(text(f"DROP INDEX ix_{table}"))
        connection.execute(
            text("""
                INSERT INTO upload_vectors (upload_id, space_id, vector)
                SELECT id, :space, embedding_local FROM uploads
                WHERE embedding_model = :model AND vector_dims(embedding_local) = :width
                ON CONFLICT DO NOTHING
            """),
            {"space": space.id, "model": model, "width": width},
        )
        connection.execute(text(f"SET LOCAL maintenance_work_mem = '{memory}'"))
        connection.execute(text(index))
    connection.execute(
        text("""
            INSERT INTO answering_spaces (user_id, space_id)
            SELECT DISTINCT ON (1) coalesce(u.user_id, :local), v.space_id
            FROM upload_vectors v JOIN uploads u ON u.id = v.upload_id
            GROUP BY 1, 2 ORDER BY 1, count(*) DESC, 2
            ON CONFLICT DO NOTHING
        """),
        {"local": LOCAL_USER},
    )


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
