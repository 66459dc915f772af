"""Decides into which embedding space new vectors go, and which space answers each user.

A change of the embedding model, its width or its document prefix creates a new space. Uploads get
their vectors in it one by one (`batch-pipeline reprocess --stage embedding --stale`). During that
time the old space answers, and new uploads get a vector in both spaces. When the new space has a
vector of every upload of a user, the sweep switches that user to it by changing one row.
"""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, Connection, exists, func, or_, select, text, update
from sqlalchemy.exc import OperationalError

from batch_pipeline.database.failures import LOCK_NOT_AVAILABLE, sqlstate
from batch_pipeline.database.models import (
    AnsweringSpace,
    EmbeddingSpace,
    Upload,
    UploadStatus,
    UploadVector,
)
from batch_pipeline.database.readings import LOCAL_USER
from batch_pipeline.database.session import Database
from batch_pipeline.database.spaces import (
    Questions,
    Space,
    SpaceKey,
    drop_space,
    find_or_make_space,
    find_space,
    get_space,
    local_width,
    table_of,
)
from batch_pipeline.errors import (
    ConfigurationError,
    NotFoundError,
    RefusedError,
    ServiceDownError,
)
from batch_pipeline.model_servers.base import EmbeddingModel, MakeCallSlots
from batch_pipeline.model_servers.embedded import EmbeddedEmbedding
from batch_pipeline.model_servers.factory import build_analyzer, embedding_prefixes
from batch_pipeline.settings import AnalyzerName, Settings
from batch_pipeline.wording import how_to_install

#: How long a process assumes that the space of its settings still exists (seconds).
_KNOWN_SECONDS = 60.0


def key_of(embedding: EmbeddingModel) -> SpaceKey:
    """Return the key of the space to which a model's vectors belong."""
    return SpaceKey(embedding.name, embedding.dimensions, embedding.prefixes.document)


def key_of_settings(settings: Settings) -> SpaceKey:
    """Return the key for the model that the settings name, without loading its client."""
    if settings.embedder_name is AnalyzerName.EMBEDDED:
        return key_of(EmbeddedEmbedding(settings.embedding_dimensions))
    return SpaceKey(
        settings.embedding_model,
        settings.embedding_dimensions,
        embedding_prefixes(settings).document,
    )


class Spaces:
    """The embedding spaces of a database, for one process; thread-safe.

    Args:
        database: the database with the spaces.
        settings: name the embedding model.
        embedding: returns that model.
        make_slots: returns the slots that limit the calls in flight.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        embedding: Callable[[], EmbeddingModel],
        make_slots: MakeCallSlots,
    ) -> None:
        self._database, self._settings = database, settings
        self._embedding, self._make_slots = embedding, make_slots
        self._lock = threading.Lock()
        self._known: tuple[float, SpaceKey, Space] | None = None
        self._local_width: int | None = None

    def current(self) -> Space:
        """Return the space into which new vectors go; creates it if it is missing.

        Raises:
            ServiceDownError: the database cannot be reached.
        """
        embedding = self._embedding()
        key = key_of(embedding)
        with self._lock:
            if self._known:
                at, known, space = self._known
                if known == key and time.monotonic() < at + _KNOWN_SECONDS:
                    return space
            with self._database.transaction() as connection:
                space = find_or_make_space(connection, key, _questions(self._settings, embedding))
            self._known = (time.monotonic(), key, space)
            return space

    def fits_local(self, width: int) -> bool:
        """Return whether vectors of this width fit ``uploads.embedding_local``."""
        if self._local_width is None:
            with self._database.transaction() as connection:
                self._local_width = local_width(connection)
        return self._local_width in {-1, width}

    def model_of(self, space: Space) -> EmbeddingModel:
        """Return the model that embeds questions, or more documents, for a space.

        Raises:
            ConfigurationError: the model cannot be used any more; the message says what is missing.
        """
        embedding = self._embedding()
        return embedding if key_of(embedding) == space.key else self._other(space)

    def get(self, space_id: int) -> Space | None:
        """Read a space; None if it was dropped."""
        with self._database.transaction() as connection:
            return get_space(connection, space_id)

    def _other(self, space: Space) -> EmbeddingModel:
        named = settings_for(self._settings, space)
        embedding = build_analyzer(named, self._make_slots).embedding
        if embedding.name != space.key.model:
            raise ConfigurationError(
                f"{space.key.model} is not installed here: {how_to_install('embedded')}"
            )
        return embedding


def settings_for(settings: Settings, space: Space) -> Settings:
    """Return settings with which a space would be the current one.

    The API key is sent only to servers that the settings name. Another server may belong to another
    service.
    """
    asked = space.questions
    embedder = AnalyzerName(asked.embedder) if asked.embedder else _embedder(settings, space)
    changed: dict[str, Any] = {
        "analyzer": AnalyzerName.EMBEDDED,
        "embedder": embedder,
        "embedding_model": space.key.model,
        "embedding_dimensions": space.key.width,
        "embedding_document_prefix": space.key.document_prefix or "none",
        "embedding_question_prefix": asked.question_prefix or "none",
        "embedding_options": asked.options,
    }
    named = _addresses(settings, embedder)
    stored = [address for address in asked.addresses.split(",") if address]
    if embedder is AnalyzerName.OLLAMA:
        # A key is only for the servers that the settings name.
        others = [] if settings.ollama_api_key.get_secret_value() else stored
        changed["ollama_host"] = ",".join(dict.fromkeys([*others, *named]))
    elif embedder is AnalyzerName.OPENAI:
        is_named = not stored or not {*map(_server, stored)}.isdisjoint(map(_server, named))
        changed["openai_embedding_base_url"] = ",".join(named if is_named else stored)
        if not is_named:
            changed["openai_api_key"] = type(settings.openai_api_key)("")
    return settings.model_copy(update=changed)


def users_to_switch(database: Database, key: SpaceKey) -> Sequence[uuid.UUID]:
    """List users whom another space answers although this space has all their vectors."""
    with database.transaction() as connection:
        space = find_space(connection, key)
        others = exists().where(AnsweringSpace.space_id != (space.id if space else 0))
        # Nearly always there are no such users. Then the uploads need not be read.
        if space is None or not connection.scalar(select(others)):
            return []
        return connection.scalars(
            select(AnsweringSpace.user_id)
            .where(*_may_switch(space))
            .order_by(AnsweringSpace.user_id)
        ).all()


def switch_users(database: Database, key: SpaceKey) -> int:
    """Switch all users to a space that has all their vectors, each in a transaction of its own.

    Returns how many users were switched.
    """
    switched = 0
    for user_id in users_to_switch(database, key):
        with database.transaction() as connection:
            space = find_space(connection, key, lock=True)
            if space is None:
                break
            switched += connection.execute(
                update(AnsweringSpace)
                .where(AnsweringSpace.user_id == user_id, *_may_switch(space))
                .values(space_id=space.id, since=func.now())
            ).rowcount
    return switched


def _may_switch(space: Space) -> tuple[ColumnElement[bool], ...]:
    """Return conditions: a space has a vector of every embedded upload of a user.

    Uploads that have failed for good do not count. Otherwise they would keep the old model in use
    for ever. They are still found by their words.
    """
    missing = _lacks_vector(space)
    user_id = AnsweringSpace.user_id
    return (
        AnsweringSpace.space_id != space.id,
        ~exists().where(Upload.user_id == user_id, *missing),
        # This is a condition of its own, because one condition for both could not use the index.
        or_(user_id != LOCAL_USER, ~exists().where(Upload.user_id.is_(None), *missing)),
    )


def _lacks_vector(space: Space) -> tuple[ColumnElement[bool], ...]:
    return (
        Upload.embedding_model.is_not(None),
        or_(Upload.processing_status != UploadStatus.FAILED, Upload.retry_at.is_not(None)),
        ~exists().where(UploadVector.upload_id == Upload.id, space.has_vector),
    )


# For people -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpaceOverview:
    """A space and what it contains."""

    id: int
    model: str
    dimensions: int
    document_prefix: str
    question_prefix: str
    embedder: str
    created_at: datetime
    vectors: int
    bytes: int
    """Size of table and index."""
    users: int
    """Number of users whom it answers."""
    is_current: bool
    """Whether new vectors go into it."""
    missing: int | None
    """Number of embedded uploads without a vector in it; None if it is not the current space."""
    waiting_users: int | None
    """Number of users whom another space still answers; None if it is not the current space."""


def overview(database: Database, current: SpaceKey) -> Sequence[SpaceOverview]:
    """List all spaces, oldest first."""
    users = (
        select(func.count())
        .where(AnsweringSpace.space_id == EmbeddingSpace.id)
        .scalar_subquery()
        .label("users")
    )
    with database.transaction() as connection:
        rows = connection.execute(
            select(EmbeddingSpace.id, EmbeddingSpace.created_at, users).order_by(EmbeddingSpace.id)
        ).all()
        everybody = connection.execute(
            select(func.count()).select_from(AnsweringSpace)
        ).scalar_one()
        found = []
        for row in rows:
            space = get_space(connection, row.id)
            if space is None:
                continue
            counted = text(
                f"SELECT count(*), pg_total_relation_size('{table_of(row.id)}') "  # noqa: S608
                f"FROM {table_of(row.id)}"
            )
            vectors, size = connection.execute(counted).one()
            is_current = space.key == current
            missing = select(func.count()).select_from(Upload).where(*_lacks_vector(space))
            found.append(
                SpaceOverview(
                    id=space.id,
                    model=space.key.model,
                    dimensions=space.key.width,
                    document_prefix=space.key.document_prefix,
                    question_prefix=space.questions.question_prefix,
                    embedder=space.questions.embedder,
                    created_at=row.created_at,
                    vectors=vectors,
                    bytes=size,
                    users=row.users,
                    is_current=is_current,
                    missing=connection.execute(missing).scalar_one() if is_current else None,
                    waiting_users=everybody - row.users if is_current else None,
                )
            )
    return found


def drop(database: Database, space_id: int, current: SpaceKey) -> Space:
    """Drop a space with its vectors.

    Raises:
        NotFoundError: there is no space with this number.
        RefusedError: it answers searches, or new vectors go into it.
        ServiceDownError: another transaction uses its table now, or the database cannot be reached.
    """
    with database.transaction() as connection:
        space = get_space(connection, space_id)
        if space is None:
            raise NotFoundError(
                f"there is no embedding space {space_id}: `batch-pipeline spaces` lists all"
            )
        _require_no_users(connection, space)
        if space.key == current:
            raise RefusedError(
                f"new uploads go into embedding space {space_id}, because the settings name its "
                f"model ({space.key.model} with {space.key.width} numbers): set another model first"
            )
        try:
            drop_space(connection, space)
        except OperationalError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            raise ServiceDownError(
                "database_down",
                f"another transaction uses the vectors of embedding space {space_id}: try again",
            ) from error
        # A user may have been switched to the space since the first check. After the drop, that is
        # no longer possible.
        _require_no_users(connection, space)
    return space


def _require_no_users(connection: Connection, space: Space) -> None:
    users = connection.execute(
        select(func.count()).where(AnsweringSpace.space_id == space.id)
    ).scalar_one()
    if users:
        raise RefusedError(
            f"embedding space {space.id} ({space.key.model}) answers the searches of "
            f"{users} user{'' if users == 1 else 's'}: only a space that answers nobody can be "
            "dropped. `batch-pipeline spaces` shows what the newer one is still missing"
        )


def _questions(settings: Settings, embedding: EmbeddingModel) -> Questions:
    embedder = settings.embedder_name
    return Questions(
        question_prefix=embedding.prefixes.question,
        embedder=embedder.value,
        addresses=",".join(
            address for address in _addresses(settings, embedder) if not urlsplit(address).username
        ),
        options=settings.embedding_options,
    )


def _addresses(settings: Settings, embedder: AnalyzerName) -> list[str]:
    match embedder:
        case AnalyzerName.OLLAMA:
            given = settings.ollama_host
        case AnalyzerName.OPENAI:
            given = settings.openai_embedding_base_url or settings.openai_base_url
        case _:
            given = ""
    return [address.strip() for address in given.split(",") if address.strip()]


def _server(address: str) -> str:
    """Return an address without its cap on calls (``#4``), which may change for the same server."""
    return address.partition("#")[0].rstrip("/")


def _embedder(settings: Settings, space: Space) -> AnalyzerName:
    """Return the embedder of an old space that does not record it."""
    if space.key.model.startswith("embedded-"):
        return AnalyzerName.EMBEDDED
    if settings.embedder_name is AnalyzerName.EMBEDDED:
        return settings.analyzer
    return settings.embedder_name
