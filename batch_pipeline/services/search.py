"""Semantic search: the uploads whose descriptions are nearest to a text.

Cosine similarity over an HNSW index. Only vectors of the model that embeds the question are
compared: numbers of two models have nothing in common.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Row, Select, func, select, text

from batch_pipeline.database.models import Upload
from batch_pipeline.database.readings import FILENAME, HIDDEN
from batch_pipeline.database.session import Database
from batch_pipeline.errors import RefusedError
from batch_pipeline.model_servers.base import EmbeddingModel

#: Largest number of results.
MAX_RESULTS = 200
#: Size of the index' candidate list; pgvector's 40 misses too many. Of the ten nearest among
#: 100,000 vectors, 200 find 92 to 93 %, 300 find 96 to 98 % (``benchmarks/search.py``).
CANDIDATES = 300
#: What the planner is to think that comparing with one vector costs. It thinks that a vector of
#: 1,024 numbers costs what an integer does, 0.0025, and that all 100,000 are read sooner than an
#: index with so many candidates: 760 ms instead of 2 (``benchmarks/search.py``).
COMPARISON_COST = 0.25


@dataclass(frozen=True)
class SearchResult:
    """An upload that was found."""

    upload_id: uuid.UUID
    filename: str
    similarity: float
    """Cosine of the angle between question and description, -1 to 1."""
    description: str
    thumbnail_path: str | None


def search(
    database: Database,
    embedding: EmbeddingModel,
    question: str,
    *,
    user_id: uuid.UUID | None = None,
    limit: int = 10,
) -> Sequence[SearchResult]:
    """Find the uploads nearest to a question, best first.

    Args:
        database: where the vectors are.
        embedding: model that embeds the question.
        question: what a person would say.
        user_id: only uploads of this user; None: of all.
        limit: how many, 1 to `MAX_RESULTS`.

    Raises:
        RefusedError: the question is empty, the limit out of range, or nothing was embedded with
            this model; the message says with which models something was.
    """
    if not question.strip():
        raise RefusedError("the search text is empty: say what you look for")
    if not 1 <= limit <= MAX_RESULTS:
        raise RefusedError(f"the limit is {limit}: expected 1 to {MAX_RESULTS}")
    [vector] = embedding.embed([question])
    distance: ColumnElement[float] = Upload.embedding_local.cosine_distance(vector)
    nearest = (
        select(
            Upload.id,
            FILENAME,
            (1 - distance).label("similarity"),
            func.coalesce(Upload.description, ""),
            Upload.thumbnail_path,
        )
        .where(
            Upload.embedding_model == embedding.name,
            Upload.embedding_local.is_not(None),
            ~HIDDEN,
        )
        .order_by(distance)
        .limit(limit)
    )
    if user_id is not None:
        nearest = nearest.where(Upload.user_id == user_id)
    with database.transaction() as connection:
        # The index finds neighbours before it looks at model and user; it goes on searching until
        # enough of them fit.
        connection.execute(text("SET LOCAL hnsw.iterative_scan = strict_order"))
        connection.execute(text(f"SET LOCAL hnsw.ef_search = {CANDIDATES}"))
        connection.execute(text(f"SET LOCAL cpu_operator_cost = {COMPARISON_COST}"))
        # What suits the average user reads one who owns half of everything through.
        connection.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))
        found = [SearchResult(*row) for row in connection.execute(nearest)]
        if not found:
            _explain_nothing_found(connection.execute(_models(user_id)).all(), embedding.name)
    return found


def _models(user_id: uuid.UUID | None) -> Select[str | None, int]:
    counts = (
        select(Upload.embedding_model, func.count())
        .where(Upload.embedding_model.is_not(None))
        .group_by(Upload.embedding_model)
        .order_by(Upload.embedding_model)
    )
    return counts if user_id is None else counts.where(Upload.user_id == user_id)


def _explain_nothing_found(models: Sequence[Row[str | None, int]], name: str) -> None:
    others = ", ".join(f"{count} with {model}" for model, count in models if model != name)
    if others:
        raise RefusedError(
            f"nothing was embedded with {name} yet, but {others}: search with that model, or run "
            f"`batch-pipeline reprocess --stage embedding --model-not {name}`"
        )
