"""Embedding spaces: vectors that can be compared with each other, in a table of their own.

All vectors of a space have the same model, width and document prefix. The table of a space is a
partition of ``upload_vectors`` and is created with the space. So its index exists from the first
vector on, and dropping the space drops one table. ``answering_spaces`` says which space answers the
searches of a user; ``services/search/embedding_spaces.py`` decides when that changes.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    cast,
    delete,
    exists,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from batch_pipeline.database.models import AnsweringSpace, EmbeddingSpace, UploadVector
from batch_pipeline.database.readings import LOCAL_USER, upload_owned_by_batch
from batch_pipeline.database.vectors import BinaryHalfVector

#: Longest wait for a lock that others hold on the vectors.
_LOCK_TIMEOUT = "5s"

_ANSWERS = exists().where(AnsweringSpace.space_id == EmbeddingSpace.id)
_COLUMNS = (
    EmbeddingSpace.id,
    EmbeddingSpace.model,
    EmbeddingSpace.width,
    EmbeddingSpace.document_prefix,
    EmbeddingSpace.question_prefix,
    EmbeddingSpace.embedder,
    EmbeddingSpace.addresses,
    EmbeddingSpace.options,
)
#: Makes table and index of a space, with the rights of the tables' owner
#: (`first_release.embedding_spaces`).
_MAKE_TABLE = text("SELECT batch_pipeline_make_vectors(:space)")
#: Width of ``uploads.embedding_local``; -1: any.
_LOCAL_WIDTH = text("""
    SELECT atttypmod FROM pg_attribute
    WHERE attrelid = to_regclass('uploads') AND attname = 'embedding_local'
""")


@dataclass(frozen=True)
class SpaceKey:
    """What the vectors of a space have in common."""

    model: str
    width: int
    """Length of the vectors."""
    document_prefix: str = ""
    """Text in front of each document that was embedded."""


@dataclass(frozen=True)
class Questions:
    """How to embed a question for a space."""

    question_prefix: str = ""
    embedder: str = ""
    """``embedded``, ``ollama`` or ``openai``; empty: whatever the settings name."""
    addresses: str = ""
    """Addresses of the model servers, separated by commas; empty: those of the settings."""
    options: str = ""
    """Additions to each request, as a JSON object."""


@dataclass(frozen=True)
class Space:
    """An embedding space."""

    id: int
    key: SpaceKey
    questions: Questions

    @property
    def has_vector(self) -> ColumnElement[bool]:
        """Rows of `UploadVector` of this space; a literal, so that the planner finds the table."""
        return UploadVector.space_id == literal_column(str(self.id))

    def distance(self, vector: Sequence[float]) -> ColumnElement[float]:
        """Cosine distance of rows of `UploadVector`; the expression is that of the index."""
        compared: Any = cast(UploadVector.vector, BinaryHalfVector(self.key.width))
        distance: ColumnElement[float] = compared.cosine_distance(vector)
        return distance


def find_space(connection: Connection, key: SpaceKey, *, lock: bool = False) -> Space | None:
    """Find the space of a key. With `lock`, nobody can drop it before the transaction ends."""
    statement = select(*_COLUMNS).where(*_has_key(key))
    if lock:
        statement = statement.with_for_update(read=True)
    found = connection.execute(statement).one_or_none()
    return _space(found) if found else None


def find_or_make_space(connection: Connection, key: SpaceKey, questions: Questions) -> Space:
    """Find the space of a key, or create it with its table; also stores how to embed questions.

    Several processes may call this at the same time.
    """
    found = find_space(connection, key)
    if found and found.questions == questions:
        return found
    values = vars(questions)
    if found:
        connection.execute(update(EmbeddingSpace).where(*_has_key(key)).values(values))
        return Space(found.id, key, questions)
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    # A second process waits here for the first one, and then finds the table.
    number = connection.scalar(
        insert(EmbeddingSpace)
        .values({**vars(key), **values})
        .on_conflict_do_nothing()
        .returning(EmbeddingSpace.id)
    )
    if number is None:
        return find_or_make_space(connection, key, questions)
    space = Space(number, key, questions)
    connection.execute(_MAKE_TABLE, {"space": space.id})
    return space


def answering_spaces(connection: Connection, user_id: uuid.UUID | None) -> list[Space]:
    """List the spaces that answer a user; without a user, those of all users.

    A user has one space or none, or two if uploads of the user have no user in their row.
    """
    spaces = select(*_COLUMNS).order_by(EmbeddingSpace.id)
    if user_id is None:
        spaces = spaces.where(_ANSWERS)
    else:
        without_user = exists().where(upload_owned_by_batch(user_id))
        answers = or_(
            AnsweringSpace.user_id == user_id,
            and_(AnsweringSpace.user_id == LOCAL_USER, without_user),
        )
        spaces = spaces.where(exists().where(AnsweringSpace.space_id == EmbeddingSpace.id, answers))
    return [_space(row) for row in connection.execute(spaces)]


def get_space(connection: Connection, space_id: int) -> Space | None:
    """Read a space; None if there is no space with this number."""
    found = connection.execute(select(*_COLUMNS).where(EmbeddingSpace.id == space_id))
    row = found.one_or_none()
    return _space(row) if row else None


def drop_space(connection: Connection, space: Space) -> None:
    """Drop a space with its vectors; does not check whether it is in use."""
    connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    connection.execute(delete(EmbeddingSpace).where(EmbeddingSpace.id == space.id))
    connection.execute(text(f"DROP TABLE IF EXISTS {table_of(space.id)}"))


def local_width(connection: Connection) -> int:
    """Width of ``uploads.embedding_local``; -1: any."""
    return int(connection.execute(_LOCAL_WIDTH).scalar_one())


def table_of(space_id: int) -> str:
    """Name of the table of a space."""
    return f"upload_vectors_{int(space_id)}"


def _has_key(key: SpaceKey) -> tuple[ColumnElement[bool], ...]:
    return (
        EmbeddingSpace.model == key.model,
        EmbeddingSpace.width == key.width,
        EmbeddingSpace.document_prefix == key.document_prefix,
    )


def _space(row: Any) -> Space:
    number, model, width, document_prefix, *questions = row
    return Space(number, SpaceKey(model, width, document_prefix), Questions(*questions))
