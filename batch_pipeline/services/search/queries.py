"""Search: finds uploads by the meaning of a question, and by its words.

- **By meaning**: cosine similarity to the question's vector, over an HNSW index. Each user is
  answered from one embedding space. The model of that space embeds the question, because vectors of
  different models cannot be compared. If that model cannot be called, the search uses words only,
  and the result says so.
- **By words**: full text (`words`).

An exact file name comes first, then uploads that contain a quoted phrase, then the rest by
similarity, with a bonus for uploads that contain all words of the question.
``benchmarks/search_quality.py`` has the measurements behind this order. `filters` has the
filters.
"""

import base64
import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Select,
    and_,
    cast,
    false,
    func,
    null,
    select,
    text,
)

from batch_pipeline.database.models import AnsweringSpace, Upload, UploadBatch, UploadVector
from batch_pipeline.database.readings import FACTS, FILENAME, NAME, UPLOAD_OWNER, known, owner
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.database.spaces import Space, answering_spaces, table_of
from batch_pipeline.errors import PipelineError, RefusedError
from batch_pipeline.model_servers.base import Caller, EmbeddingModel
from batch_pipeline.services.pauses import Pauses
from batch_pipeline.services.search.filters import Filters, require_ids
from batch_pipeline.services.search.words import UNREADABLE, Question
from batch_pipeline.services.short_ids import Named, no_such
from batch_pipeline.settings import LOCAL_SCHEME

#: Largest number of results, over all pages of a search.
MAX_RESULTS = 5000
#: Size of the candidate list of the index, per vector and within bounds; pgvector allows 1,000. Of
#: the ten nearest, 300 candidates find 99.6 % among 100,000 vectors, and 1,000 find 99.2 % among
#: 1,000,000 (``benchmarks/search.py``).
CANDIDATES_PER_VECTOR = 0.003
FEWEST_CANDIDATES, MOST_CANDIDATES = 300, 1000
#: Minimum number of neighbours to read from the index. In relaxed order, the index may return the
#: nearest ones last. That is usual with filters that few uploads meet. With a filter that 2 % of
#: 100,000 vectors meet, 11 rows in strict order contain 89 % of the ten nearest, and 100 rows in
#: relaxed order contain all.
LEAST_READ = 100
#: The planner's cost of an operator. By default (0.0025) the planner assumes that a comparison of
#: two vectors of 1,024 numbers costs as much as one of two integers. Then it reads all 100,000
#: vectors instead of the index, which takes 490 ms instead of 4 ms (``benchmarks/search.py``). With
#: a much higher cost, the planner assumes that the conditions of filters are expensive, too, and
#: uses the index where it is both slower and less exact.
COMPARISON_COST = 0.1
#: Added to the similarity of an upload that contains all words of the question.
WORDS_BONUS = 0.3
#: If more uploads than this contain all words, the words are ignored.
MOST_WORDED = 300
#: Similarity below which a result of a built-in model is a guess; unknown for other models. A tenth
#: of the right answers is below it. If a question has no right answer, 60 % of the first results
#: are below it.
WEAK_BELOW = {"embedded-sentences-1": 0.2, "embedded-hashing-1": 0.1}

FoundBy = Literal["filename", "phrase", "words", "meaning"]
_TIERS: dict[FoundBy, int] = {"filename": 0, "phrase": 1, "words": 2, "meaning": 2}


@dataclass(frozen=True)
class Copy:
    """Another upload with the same bytes."""

    upload_id: uuid.UUID
    batch_id: uuid.UUID | None
    batch_name: str | None
    filename: str


@dataclass(frozen=True)
class SearchResult:
    """An upload that was found."""

    upload_id: uuid.UUID
    filename: str
    similarity: float | None
    """Cosine of the angle between question and description, -1 to 1. None if the upload was found
    by words only: its description has no vector in the space that answers, or the model of that
    space cannot be called."""
    description: str
    thumbnail_path: str | None
    """Path relative to the storage."""
    file_path: str
    """Path of the original, relative to the storage; empty if the upload API has removed it."""
    original: str
    """Where the original can be opened: a path of this machine, or a URL for fsspec; empty without
    a path."""
    thumbnail: str | None
    """Where the thumbnail can be opened, in the same form."""
    batch_id: uuid.UUID | None
    batch_name: str | None
    user_id: uuid.UUID
    file_type: str
    """``image`` or ``video``."""
    format: str | None
    camera: str | None
    taken_at: str | None
    """Time on the camera's clock, as ISO text without a zone."""
    uploaded_at: datetime | None
    """None if the upload API did not store it."""
    vision_model: str | None
    found_by: FoundBy
    """The strongest reason why it was found."""
    score: float
    """Similarity plus the bonus for words; sorts results that were found for the same reason."""
    weak: bool
    """Found by meaning, but so far from the question that this is a guess."""
    copies: Sequence[Copy]
    """Other uploads with the same bytes; by default they are not results of their own."""
    cursor: str
    """Cursor of the page that begins after this result."""
    tags: Sequence[str] = ()
    """Tags by the vision model; empty if it was not asked for tags."""
    visible_text: str = ""
    """Text that can be read in the picture; empty if the model was not asked for it separately."""


class SearchResults(list[SearchResult]):
    """The results of a search, best first."""

    by_words_only: str = ""
    """Why all or some uploads were searched by words only; empty if all were searched by meaning.
    """


#: Returns the model that embeds questions for a space; raises a `PipelineError` if there is none.
ModelOf = Callable[[Space], EmbeddingModel]


def search(
    database: Database,
    model_of: ModelOf,
    question: str = "",
    *,
    like: uuid.UUID | None = None,
    filters: Filters | None = None,
    limit: int = 10,
    after: str | None = None,
    location: str = "",
    copies: bool = False,
) -> SearchResults:
    """Find uploads by a question, or find uploads similar to another upload; best first.

    Args:
        database: the database with the uploads.
        model_of: returns the model that embeds the question for a space: `Spaces.model_of`.
        question: a text in any language that the model knows. Matches of a whole file name come
            first, then matches of phrases in quotation marks.
        like: an upload whose description is the question instead.
        filters: conditions that the uploads must meet; None: all uploads of all users.
        limit: maximum number of results, 1 to `MAX_RESULTS`.
        after: `SearchResult.cursor` of the last result of the previous page of the same search.
        location: path or URL of the storage; needed for paths that can be opened.
        copies: return every upload with the same bytes, not only one of them.

    Raises:
        RefusedError: the question is empty, or the limit, the cursor, an id or a filter is not
            valid.
        NotFoundError: there is no upload `like`.
        ServiceDownError: the database cannot be reached.
    """
    if like is not None and question.strip():
        raise RefusedError("both a text and an upload are given: expected one of them")
    if like is None and not question.strip():
        raise RefusedError("the search text is empty: say what to look for")
    if not 1 <= limit <= MAX_RESULTS:
        raise RefusedError(f"the limit is {limit}: expected 1 to {MAX_RESULTS}")
    require_ids(like=like)
    last = _Cursor.read(after) if after else None
    filters = filters or Filters()
    conditions = [*filters.conditions()]
    if like:
        conditions.append(Upload.id != like)
    with database.transaction() as connection:
        spaces = answering_spaces(connection, filters.user_id)
        views = _views_like(connection, spaces, like) if like else []
    said: list[str] = []
    if not like:
        caller = Caller(paused=Pauses(database).of_servers)
        views = [
            _View(space, _embedded(model_of, space, question, caller, said)) for space in spaces
        ]
    with database.transaction() as connection:
        _prepare(connection, spaces)
        candidates = _Candidates(
            connection, views, conditions, filters.least_similarity, with_copies=copies
        )
        if not like:
            candidates.add_by_words(Question(question))
        hits = candidates.best(limit, last)
        rows = [hit.row for hit in hits]
        same_bytes = _copies(connection, rows, conditions)
        names = _batch_names(connection, rows)
    first = last.position if last else 0
    results = SearchResults(
        _result(hit, same_bytes, names, _Cursor(first + number, hit.key), location)
        for number, hit in enumerate(hits, 1)
    )
    results.by_words_only = "; ".join(said)
    return results


def _embedded(
    model_of: ModelOf, space: Space, question: str, caller: Caller, said: list[str]
) -> Sequence[float] | None:
    """Embed a question for a space; if that fails, return None and add the reason to `said`."""
    try:
        # Half an emoji cannot be sent.
        readable = UNREADABLE.sub(" ", question)
        [vector] = model_of(space).embed([readable], as_questions=True, caller=caller)
    except PipelineError as error:
        said.append(f"{space.key.model}, which embeds questions, cannot be asked: {error}")
        return None
    return vector


# Candidates -------------------------------------------------------------------------------------

#: Sort key of a result: tier, distance minus the bonus, id.
_Key = tuple[int, float, uuid.UUID]


@dataclass(frozen=True)
class _View:
    """A space that answers, and the vector to search for in it; None: search by words only."""

    space: Space
    vector: Sequence[float] | None

    @property
    def answers(self) -> ColumnElement[bool]:
        """Condition: the space answers the user of the upload.

        This is not a join, because the planner does not know how many uploads each user has. With a
        join it begins with the users and sorts all their uploads instead of using the index.
        """
        answering = (
            select(AnsweringSpace.space_id)
            .where(AnsweringSpace.user_id == owner(Upload.user_id))
            .correlate(Upload)
            .scalar_subquery()
        )
        return func.coalesce(answering == self.space.id, false())

    @property
    def distance(self) -> ColumnElement[float]:
        """Distance to the vector; null if there is none."""
        if self.vector is None:
            return cast(null(), Float)
        return self.space.distance(self.vector)


@dataclass(frozen=True)
class _Hit:
    row: AnyRow
    found_by: FoundBy
    model: str
    """Name of the model of the space that answered."""

    @property
    def similarity(self) -> float | None:
        return None if self.row.distance is None else 1.0 - float(self.row.distance)

    @property
    def score(self) -> float:
        return 1.0 - self._place

    @property
    def key(self) -> _Key:
        return _TIERS[self.found_by], self._place, self.row.id

    @property
    def _place(self) -> float:
        # This must be the exact number by which the database orders. If it were rounded, two
        # results could be equal here but not in the database, and change places between two pages.
        distance = 2.0 if self.row.distance is None else float(self.row.distance)
        return distance - (0.0 if self.found_by == "meaning" else WORDS_BONUS)


@dataclass(frozen=True)
class _Cursor:
    """How many results were shown, and the place of the last of them."""

    position: int
    key: _Key

    def __str__(self) -> str:
        tier, score, upload_id = self.key
        parts = f"{self.position} {tier} {score.hex()} {upload_id.hex}"
        return base64.urlsafe_b64encode(parts.encode()).decode().rstrip("=")

    @classmethod
    def read(cls, text: str) -> "_Cursor":
        try:
            parts = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
            position, tier, score, upload_id = parts.split()
            last = int(position)
            if last < 0:
                raise ValueError
            return cls(last, (int(tier), float.fromhex(score), uuid.UUID(upload_id)))
        except (ValueError, OverflowError):
            raise RefusedError(
                f"{text!r} is not a cursor: expected the cursor of a result of the previous page"
            ) from None


class _Candidates:
    """Everything that may be among the next results: hits by words, and the nearest vectors."""

    def __init__(
        self,
        connection: Connection,
        views: Sequence[_View],
        conditions: Sequence[ColumnElement[bool]],
        least_similarity: float | None,
        *,
        with_copies: bool,
    ) -> None:
        self._with_copies = with_copies
        self._connection, self._conditions = connection, conditions
        self._least, self._views = least_similarity, views
        self._by_words: list[_Hit] = []

    def add_by_words(self, question: Question) -> None:
        """Add uploads whose file name or description contains the words of a question."""

        def found(
            condition: ColumnElement[bool], most: int = MAX_RESULTS
        ) -> list[tuple[AnyRow, str]]:
            return [
                (row, view.space.key.model)
                for view in self._views
                for row in self._connection.execute(
                    self._rows(view)
                    .outerjoin(
                        UploadVector,
                        and_(UploadVector.upload_id == Upload.id, view.space.has_vector),
                    )
                    .where(condition)
                    .limit(most)
                )
            ]

        named = found(question.has_name)
        worded = found(question.has_all_words, MOST_WORDED + 1)
        stems = worded
        if len(worded) > MOST_WORDED:
            worded, stems = [], found(question.has_stem)
        phrased = found(question.has_phrases) if question.phrases else []
        self._by_words = [
            *(_Hit(row, "filename", model) for row, model in named),
            *(_Hit(row, "filename", model) for row, model in stems if question.names(row.filename)),
            *(_Hit(row, "phrase", model) for row, model in phrased),
            *(_Hit(row, "words", model) for row, model in worded),
        ]

    def best(self, count: int, last: _Cursor | None) -> list[_Hit]:
        """Return the next hits after the last one shown, each content once."""
        wanted = min(count + (last.position if last else 0), MAX_RESULTS)
        while True:
            nearest, edge = self._nearest(wanted)
            if not all(map(self._is_near, nearest)):
                edge = math.inf  # others are even farther
            near = filter(self._is_near, [*self._by_words, *nearest])
            hits = _each_once(near, with_copies=self._with_copies)
            # Beyond this distance, hits by words are known, but nearer uploads may be missing.
            complete = [hit for hit in hits if hit.key < (_TIERS["meaning"], edge)]
            # An upload that was added since the last page may sort before its last result; such an
            # upload is left out.
            rest = [hit for hit in complete if last is None or hit.key > last.key]
            # If many hits were copies, too few may be left, so more are read.
            if len(rest) >= count or edge == math.inf:
                return rest[:count]
            wanted = min(2 * wanted, MAX_RESULTS)

    def _nearest(self, count: int) -> tuple[list[_Hit], float]:
        """Return about `count` hits, and the distance up to which none is missing."""
        hits: list[_Hit] = []
        edge = math.inf
        for view in self._views:
            if view.vector is None:
                continue
            statement = (
                self._rows(view)
                .join(UploadVector, UploadVector.upload_id == Upload.id)
                .where(view.space.has_vector)
            )
            read = statement.order_by(view.distance).limit(max(count + 1, LEAST_READ)).subquery()
            # PostgreSQL assumes that the rows are in order, and would not sort by the bare column.
            in_order = select(read).order_by(read.c.distance + 0).limit(count + 1)
            rows = self._connection.execute(in_order).all()
            if len(rows) <= count:
                # The index gives up after `hnsw.max_scan_tuples`, even if few of them match. This
                # expression cannot use the index, so all matching rows are compared.
                exact = statement.order_by(view.distance + 0).limit(count + 1)
                rows = self._connection.execute(exact).all()
            hits += [_Hit(row, "meaning", view.space.key.model) for row in rows]
            # The index may have left out some rows with the same distance as the last one, so only
            # nearer rows are complete.
            if len(rows) > count:
                edge = min(edge, rows[-1].distance)
        if count == MAX_RESULTS:
            edge = math.inf
        return [hit for hit in hits if hit.row.distance < edge], edge

    def _is_near(self, hit: _Hit) -> bool:
        similarity = hit.similarity
        return self._least is None or (similarity is not None and similarity >= self._least)

    def _rows(self, view: _View) -> Select[*tuple[Any, ...]]:
        rows = select(
            Upload.id,
            FILENAME,
            view.distance.label("distance"),
            func.coalesce(Upload.description, "").label("description"),
            Upload.vision_tags,
            func.coalesce(Upload.visible_text, "").label("visible_text"),
            Upload.thumbnail_path,
            func.coalesce(Upload.file_path, "").label("file_path"),
            Upload.batch_id,
            UPLOAD_OWNER,
            Upload.file_type,
            FACTS["format"].astext.label("format"),
            FACTS["camera"].astext.label("camera"),
            FACTS["captured_at"].astext.label("taken_at"),
            known(Upload.created_at).label("created_at"),
            Upload.vision_model,
            Upload.checksum,
        )
        rows = rows.select_from(Upload).where(*self._conditions)
        return rows if len(self._views) == 1 else rows.where(view.answers)


def _each_once(hits: Iterable[_Hit], *, with_copies: bool) -> list[_Hit]:
    """Sort hits, and keep the first of each upload, and of each content if no copies are wanted."""
    seen: set[object] = set()
    kept = []
    for hit in sorted(hits, key=lambda hit: hit.key):
        content = hit.row.id if with_copies else hit.row.checksum or hit.row.id
        if content not in seen:
            seen.add(content)
            kept.append(hit)
    return kept


# Statements -------------------------------------------------------------------------------------


_PREPARE = text("""
    SELECT
        -- The index finds neighbours before the other conditions are checked. With this setting it
        -- goes on until enough of them match. In strict order it would drop a neighbour that it
        -- meets after farther ones.
        set_config('hnsw.iterative_scan', 'relaxed_order', true),
        -- The size of a table is what autovacuum last counted.
        set_config('hnsw.ef_search', greatest(:fewest, least(:most,
            coalesce(max(reltuples), 0) * :per_vector))::int::text, true),
        set_config('cpu_operator_cost', :comparison_cost, true),
        -- A generic plan suits the average user. For a user who owns half of all uploads it would
        -- read all of them.
        set_config('plan_cache_mode', 'force_custom_plan', true)
    FROM pg_class WHERE oid IN (SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) name)
""")


def _prepare(connection: Connection, spaces: Sequence[Space]) -> None:
    values = {
        "fewest": FEWEST_CANDIDATES,
        "most": MOST_CANDIDATES,
        "per_vector": CANDIDATES_PER_VECTOR,
        "comparison_cost": str(COMPARISON_COST),
        "tables": [table_of(space.id) for space in spaces],
    }
    connection.execute(_PREPARE, values)


def _views_like(
    connection: Connection, spaces: Sequence[Space], upload_id: uuid.UUID
) -> list[_View]:
    """Return the spaces that have a vector of an upload, each with that vector."""
    if connection.scalar(select(Upload.id).where(Upload.id == upload_id)) is None:
        raise no_such(Named.UPLOAD, upload_id)
    vectors = {
        row.space_id: row.vector
        for row in connection.execute(
            select(UploadVector.space_id, UploadVector.vector).where(
                UploadVector.upload_id == upload_id
            )
        )
    }
    if not vectors:
        raise RefusedError(f"upload {upload_id} is not embedded yet: it cannot be compared")
    views = [_View(space, vectors[space.id]) for space in spaces if space.id in vectors]
    if spaces and not views:
        raise RefusedError(f"upload {upload_id} is not embedded yet by the model that answers")
    return views


def _copies(
    connection: Connection, rows: Sequence[AnyRow], conditions: Sequence[ColumnElement[bool]]
) -> Mapping[str, Sequence[Copy]]:
    """Return all uploads with the same bytes as these rows, by checksum."""
    copies: dict[str, list[Copy]] = defaultdict(list)
    checksums = [row.checksum for row in rows if row.checksum]
    if checksums:
        statement = (
            select(Upload.checksum, Upload.id, Upload.batch_id, NAME, FILENAME)
            .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
            .where(Upload.checksum.in_(checksums), Upload.embedding_model.is_not(None), *conditions)
            .order_by(Upload.created_at, Upload.id)
        )
        for row in connection.execute(statement):
            copy = Copy(row.id, row.batch_id, row.name, row.filename)
            copies[str(row.checksum)].append(copy)
    return copies


def _batch_names(
    connection: Connection, rows: Sequence[AnyRow]
) -> Mapping[uuid.UUID | None, str | None]:
    ids = {row.batch_id for row in rows if row.batch_id}
    if not ids:
        return {}
    named = connection.execute(select(UploadBatch.id, NAME).where(UploadBatch.id.in_(ids)))
    return {row.id: row.name for row in named}


def _result(
    hit: _Hit,
    copies: Mapping[str, Sequence[Copy]],
    names: Mapping[uuid.UUID | None, str | None],
    cursor: _Cursor,
    location: str,
) -> SearchResult:
    row = hit.row
    return SearchResult(
        upload_id=row.id,
        filename=row.filename,
        similarity=hit.similarity,
        description=row.description,
        thumbnail_path=row.thumbnail_path,
        file_path=row.file_path,
        original=_openable(location, row.file_path),
        thumbnail=_openable(location, row.thumbnail_path or "") or None,
        batch_id=row.batch_id,
        batch_name=names.get(row.batch_id),
        user_id=row.user_id,
        file_type=row.file_type,
        format=row.format,
        camera=row.camera,
        taken_at=row.taken_at,
        uploaded_at=row.created_at,
        vision_model=row.vision_model,
        found_by=hit.found_by,
        score=hit.score,
        weak=hit.found_by == "meaning" and hit.score < WEAK_BELOW.get(hit.model, -1.0),
        copies=[copy for copy in copies.get(row.checksum, ()) if copy.upload_id != row.id],
        cursor=str(cursor),
        tags=row.vision_tags or [],
        visible_text=row.visible_text,
    )


def _openable(location: str, path: str) -> str:
    if not path:
        return ""
    folder = LOCAL_SCHEME.sub("", location, count=1)
    if folder and "://" not in folder:
        return str(Path(folder).absolute() / path)
    return f"{location.rstrip('/')}/{path}" if location else path
