"""Search among many vectors, with each filter: time with and without index, recall, throughput.

Fills a separate database on the embedded server (or on ``--server-url``) with random vectors that
are distributed like embeddings of captions (`Vectors`), and builds the index. Then it measures the
statements by which ``batch-pipeline search`` searches by meaning. The times are those that
PostgreSQL reports (``EXPLAIN ANALYZE``: planning and execution, without the client and without
embedding the question). "Without the index" is the same search after the index was dropped, on warm
caches. That is an exact search; ``--exact`` is their number for each filter. Recall is the share of
the ten nearest of all vectors that a search finds. Queries per second are complete calls of the
service, by as many threads as there are cores; client and server share the cores. At the end
vectors are inserted, one after another.

    python benchmarks/search.py                        # among 100,000 vectors
    python benchmarks/search.py --vectors 1000000 --questions 20 --exact 5
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from heapq import nlargest
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import sqlalchemy
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb
from rich.console import Console
from sqlalchemy import event
from tools.results import Table, Target, add_results_option, machine, report

from batch_pipeline.database.embedded_server import embedded_server_url
from batch_pipeline.database.models import Upload
from batch_pipeline.database.session import Database, with_driver
from batch_pipeline.services.search.filters import Filters
from batch_pipeline.services.search.queries import search
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.records import fill_spaces

DIMENSIONS, MODEL = 1024, "benchmark"
#: Number of topics of the descriptions, and of subjects within the topics.
TOPICS, SUBJECTS = 300, 8000
#: A user with one of a thousand uploads, and one with half of all uploads.
SMALL_USER, LARGE_USER = uuid.UUID(int=1), uuid.UUID(int=2)
UPLOADS_PER_BATCH = 250
RESULTS = 10
#: Number of vectors in memory while exact answers are computed. The rest of the memory is needed to
#: cache the index.
VECTORS_AT_ONCE = 20_000

#: The filters, in the order of the table. Whether an upload meets a filter does not depend on its
#: vector, except for the place: all its uploads have similar vectors, and most questions are far
#: from them.
SEARCHES: dict[str, Filters] = {
    "everything": Filters(),
    "user, 50 %": Filters(user_id=LARGE_USER),
    "user, 0.1 %": Filters(user_id=SMALL_USER),
    "batch of 250": Filters(batch_id=uuid.UUID(int=1)),
    "kind, 5 %": Filters(file_type="video"),
    "format, 10 %": Filters(format="heic"),
    "month, 2 %": Filters(since="2024-05", until="2024-05"),
    "years, 75 %": Filters(since="2022", until="2024"),
    "camera, 25 %": Filters(camera="nikon"),
    "camera, 0.1 %": Filters(camera="leica"),
    "tag, 10 %": Filters(tags=("boat",)),
    "tag, 0.1 %": Filters(tags=("lynx",)),
    "tag of one place, 0.3 %": Filters(tags=("place 7",)),
    "has text, 5 %": Filters(has_text=True),
    "described by, 20 %": Filters(vision_model="older vision"),
    "least similarity 0.5": Filters(least_similarity=0.5),
}

log = Console(stderr=True, markup=False, highlight=False)

_COLUMNS = {
    "user_id": "uuid",
    "batch_id": "uuid",
    "filename": "text",
    "file_path": "text",
    "file_type": "text",
    "file_size": "int8",
    "processing_status": "text",
    "description": "text",
    "metadata": "jsonb",
    "vision_model": "text",
    "vision_tags": "text[]",
    "visible_text": "text",
    "embedding_model": "text",
    "embedding_local": "vector",
}


class FixedQuestion:
    """Replaces an embedding model: every question has the vector that was set."""

    name = MODEL
    dimensions = DIMENSIONS

    def __init__(self) -> None:
        self.vector: list[float] = []

    def __call__(self, _space):
        return self

    def embed(self, texts, **_):
        return [self.vector for _ in texts]

    def check(self):
        return []


class Vectors:
    """Draws random vectors that are distributed like embeddings of captions.

    The 40,460 captions of Flickr8k were embedded with ``embedded-sentences-1``. Their variance
    along the k-th axis is proportional to 1/k. Among 40,000 of them, the cosine to the nearest, the
    tenth, the hundredth and any other is 0.77, 0.66, 0.55, 0.14. Of these vectors it is 0.76, 0.65,
    0.51, 0.14. Of the ten nearest captions the index finds 99.0 % with 100 candidates and 99.6 %
    with 300; of these vectors 98.0 and 99.8 %. With vectors whose directions are all equally
    likely, a search that enters the index among the wrong vectors rarely leaves them. It then finds
    83 % among 1,000,000 vectors.
    """

    _SHARED, _OF_TOPIC, _OF_SUBJECT, _OWN = 0.135, 0.39, 0.173, 0.302  # of the squared length

    def __init__(self, dice: np.random.Generator) -> None:
        self._dice = dice
        spread = np.arange(1, DIMENSIONS + 1, dtype=np.float32) ** -0.5
        self._spread = spread / np.linalg.norm(spread)
        topics = self._draw(TOPICS) * self._OF_TOPIC**0.5
        subjects = self._draw(SUBJECTS) * self._OF_SUBJECT**0.5
        self._centres = subjects + topics[np.arange(SUBJECTS) % TOPICS]
        self._centres[:, -1] += self._SHARED**0.5

    def about(self, subject: int) -> np.ndarray[Any, Any]:
        """Draw a vector."""
        return self._centres[subject] + self._draw(1)[0] * np.float32(self._OWN**0.5)

    def _draw(self, count: int) -> np.ndarray[Any, Any]:
        return self._spread * self._dice.standard_normal((count, DIMENSIONS), np.float32)


def rows(vectors: int) -> Iterator[tuple[object, ...]]:
    """A tenth of the uploads have another model, and cannot be answers."""
    dice = np.random.default_rng(7)
    drawn = Vectors(dice)
    for number in range(vectors):
        subject = int(dice.integers(SUBJECTS))
        vector = drawn.about(subject)
        # Composed of parts that do not depend on the subject.
        lot = int(dice.integers(10_000))
        user = LARGE_USER if lot < 5000 else uuid.uuid4()
        month = f"{2022 + lot // 12 % 4}-{lot % 12 + 1:02}"
        camera = "Leica Q2" if lot < 10 else "Nikon Z6" if lot % 4 == 0 else "Canon R5"
        facts = {
            "format": "heic" if lot // 48 % 10 == 0 else "jpeg",
            "camera": camera,
            "captured_at": f"{month}-{lot % 28 + 1:02}T12:00:00",
        }
        tags = [f"place {subject % TOPICS}"]
        tags += ["boat"] * (lot % 10 == 3) + ["lynx"] * (lot % 1000 == 4)
        yield (
            SMALL_USER if number % 1000 == 0 else user,
            uuid.UUID(int=number // UPLOADS_PER_BATCH + 1),
            f"{number}.jpg",
            str(number),
            "video" if lot % 20 == 5 else "image",
            1,
            "completed",
            "A picture.",
            Jsonb(facts),
            "older vision" if lot % 5 == 1 else "vision",
            tags,
            "Some words" if lot % 20 == 7 else None,
            "older" if lot % 10 == 9 else MODEL,
            Vector(vector),
        )


@contextmanager
def filled_database(server_url: str, vectors: int) -> Iterator[str]:
    with DatabaseServer(server_url).new_database() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            began = time.perf_counter()
            register_vector(connection)
            connection.execute(
                """
                INSERT INTO upload_batches (id, user_id, total_uploads)
                SELECT lpad(to_hex(number), 32, '0')::uuid, %s, %s
                FROM generate_series(1, %s) AS number
                """,
                [LARGE_USER, UPLOADS_PER_BATCH, vectors // UPLOADS_PER_BATCH + 1],
            )
            with (
                connection.cursor() as cursor,
                cursor.copy(
                    f"COPY uploads ({', '.join(_COLUMNS)}) FROM STDIN (FORMAT binary)"
                ) as copy,
            ):
                copy.set_types(list(_COLUMNS.values()))
                for row in rows(vectors):
                    copy.write_row(row)
            filled = time.perf_counter()
        database = Database(with_driver(url, "psycopg", variable="URL"))
        with database.transaction() as connection:
            # An index that does not fit into this memory takes many times as long to build.
            fill_spaces(connection, memory=f"{1 + vectors * 6 // 1_000_000}GB")
            # Space 1, the first by its name, answers everybody, even a user whose only upload is in
            # the other space.
            connection.execute(sqlalchemy.text("UPDATE answering_spaces SET space_id = 1"))
        database.close()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
        ended = time.perf_counter()
        log.print(
            f"{vectors} vectors of {DIMENSIONS}: filled in {filled - began:.0f} s, "
            f"index in {ended - filled:.0f} s"
        )
        yield url


def exact_answers(url: str, questions: list[list[float]]) -> dict[str, list[set[uuid.UUID]]]:
    """Compute for each filter and question the nearest of all vectors that the filter allows."""
    database = Database(with_driver(url, "psycopg", variable="URL"))
    vectors = sqlalchemy.table(
        "upload_vectors_1", sqlalchemy.column("upload_id"), sqlalchemy.column("vector")
    )
    allowed = [sqlalchemy.and_(sqlalchemy.true(), *each.conditions()) for each in SEARCHES.values()]
    statement = sqlalchemy.select(vectors.c.upload_id, vectors.c.vector, *allowed).join(
        Upload, Upload.id == vectors.c.upload_id
    )
    directions = _directions(questions)
    nearest: dict[str, list[list[tuple[float, uuid.UUID]]]]
    nearest = {name: [[] for _ in questions] for name in SEARCHES}
    with database.transaction() as connection:
        register_vector(connection.connection.driver_connection)
        rows = connection.execution_options(yield_per=VECTORS_AT_ONCE).execute(statement)
        for part in rows.partitions():
            ids, read, *matching = zip(*part, strict=True)
            similarity = directions @ _directions([vector.to_numpy() for vector in read]).T
            for (name, filters), matches in zip(SEARCHES.items(), matching, strict=True):
                chosen = np.flatnonzero(np.array(matches, bool))
                for before, each in zip(nearest[name], similarity[:, chosen], strict=True):
                    best = np.argsort(-each)[:RESULTS]
                    new = [(float(each[number]), ids[chosen[number]]) for number in best]
                    least = filters.least_similarity or -1
                    before[:] = nlargest(
                        RESULTS, [found for found in before + new if found[0] >= least]
                    )
    database.close()
    return {
        name: [{upload_id for _, upload_id in found} for found in answers]
        for name, answers in nearest.items()
    }


def _directions(vectors: Sequence[Any]) -> np.ndarray[Any, Any]:
    numbers = np.array(vectors, np.float32)
    return numbers / np.linalg.norm(numbers, axis=1, keepdims=True)


def measured(
    url: str,
    questions: list[list[float]],
    answers: list[set[uuid.UUID]],
    exact: int,
    filters: Filters,
) -> dict[str, object]:
    """Return milliseconds and recall of one kind of search."""
    database = Database(with_driver(url, "psycopg", variable="URL"))
    model = FixedQuestion()
    for vector in questions:  # to warm the caches
        model.vector = vector
        search(database, model, "x", filters=filters)
    statements: list[tuple[str, dict[str, object]]] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, parameters, *_: statements.append((statement, parameters)),
    )
    times: dict[str, list[float]] = {"index": [], "exact": []}
    recalls, plans, results = [], set(), 0
    with psycopg.connect(url, autocommit=True) as connection:
        for number, (vector, true) in enumerate(zip(questions, answers, strict=True)):
            model.vector = vector
            statements.clear()
            found = {hit.upload_id for hit in search(database, model, "x", filters=filters)}
            settings = [s for s in statements if "set_config" in s[0]]
            queries = [s for s in statements if "ORDER BY" in s[0] and "<=>" in s[0]]
            results = max(results, len(true))
            recalls.append(len(found & true) / len(true) if true else 1.0)
            with connection.transaction(force_rollback=True):
                for setting in settings:
                    connection.execute(*setting)
                asked = [_explained(connection, query) for query in queries]
                times["index"].append(sum(took for took, _ in asked))
                plans.add(" + ".join(plan for _, plan in asked))
                if number < exact:
                    connection.execute("DROP INDEX ix_upload_vectors_1")
                    times["exact"].append(_explained(connection, queries[0])[0])
    database.close()
    return {
        "index_p50_ms": statistics.median(times["index"]),
        "index_p99_ms": float(np.percentile(times["index"], 99)),
        "exact_p50_ms": statistics.median(times["exact"]),
        "times_faster_p50": statistics.median(times["exact"]) / statistics.median(times["index"]),
        "recall_at_10": statistics.mean(recalls),
        "least_recall_at_10": min(recalls),
        "results": results,
        "plan": ", ".join(sorted(plans)),
    }


def pictures_to_ask_for(url: str, count: int) -> list[list[float]]:
    """Return vectors of uploads in the space that answers."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT embedding_local::text FROM uploads WHERE embedding_model = %s "
            "ORDER BY id LIMIT %s",
            [MODEL, count],
        )
        return [json.loads(text) for [text] in found]


def milliseconds_per_insertion(url: str, count: int = 500) -> tuple[float, float]:
    """Return how long the insertion of a vector takes with the index, and without it."""
    dice = np.random.default_rng(8)
    drawn = Vectors(dice)
    vectors = [Vector(drawn.about(int(dice.integers(SUBJECTS)))) for _ in range(count)]
    took = []
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        for before in ("SELECT", "DROP INDEX ix_upload_vectors_1"):
            with connection.transaction(force_rollback=True):
                connection.execute(before)
                began = time.perf_counter()
                for vector in vectors:
                    connection.execute(
                        "INSERT INTO upload_vectors (upload_id, space_id, vector) "
                        "VALUES (gen_random_uuid(), 1, %b)",
                        [vector],
                    )
                took.append((time.perf_counter() - began) / count * 1000)
    return took[0], took[1]


def _explained(
    connection: psycopg.Connection[Any], query: tuple[str, dict[str, object]]
) -> tuple[float, str]:
    """Return the milliseconds of a statement, and whether it uses the index of vectors."""
    [[plan]] = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query[0]}", query[1]).fetchall()
    index = "hnsw" if "ix_upload_vectors_" in json.dumps(plan) else "exact"
    return plan[0]["Planning Time"] + plan[0]["Execution Time"], index


def queries_per_second(
    url: str, vectors: list[list[float]], filters: Filters, seconds: float
) -> float:
    """Run complete searches as fast as the threads can."""
    threads = os.cpu_count() or 1
    database = Database(with_driver(url, "psycopg", variable="URL"), pool_size=threads)

    def ask(first: int) -> int:
        model, asked = FixedQuestion(), 0
        while time.perf_counter() < ends_at:
            model.vector = vectors[(first + asked) % len(vectors)]
            search(database, model, "x", filters=filters)
            asked += 1
        return asked

    with ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        ends_at = begun + seconds
        asked = sum(pool.map(ask, range(0, len(vectors), max(len(vectors) // threads, 1))))
        rate = asked / (time.perf_counter() - begun)
    database.close()
    return rate


HEADINGS = {
    "queries_per_second": "queries per second",
    "recall_at_10": "recall at 10",
    "least_recall_at_10": "least recall",
    "index_p50_ms": "p50 ms",
    "index_p99_ms": "p99 ms",
    "exact_p50_ms": "exact p50 ms",
    "times_faster_p50": "times faster",
    "plan": "plan",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=100, help="searches with the index")
    parser.add_argument("--exact", type=int, default=10, help="of these also without the index")
    parser.add_argument(
        "--seconds", type=float, default=3, help="seconds of searches at full speed"
    )
    parser.add_argument("--server-url", help="PostgreSQL with pgvector; default: an embedded one")
    add_results_option(parser)
    given = parser.parse_args()
    where, found = machine(), {}
    with tempfile.TemporaryDirectory() as folder:
        url = given.server_url or embedded_server_url(Path(folder) / "server")
        with filled_database(url, given.vectors) as database_url:
            questions = pictures_to_ask_for(database_url, given.questions)
            answers = exact_answers(database_url, questions)
            log.print("exact answers are computed")
            for name, filters in SEARCHES.items():
                figures = measured(database_url, questions, answers[name], given.exact, filters)
                rate = queries_per_second(database_url, questions, filters, given.seconds)
                found[name] = {"queries_per_second": rate, **figures}
                log.print(
                    f"{name}: {rate:.0f} queries per second, recall {figures['recall_at_10']:.3f}"
                )
            inserted = milliseconds_per_insertion(database_url)
    rows = [[name, *(figures[key] for key in HEADINGS)] for name, figures in found.items()]
    title = f"Searches among {given.vectors} vectors of {DIMENSIONS}"
    table = Table(title, ("among", *HEADINGS.values()), rows)
    insertion = Table(
        "Insertion of a vector", ("with index ms", "without index ms"), [list(inserted)]
    )
    all_of_it = found["everything"]
    targets = [
        Target("times faster than exact", 10, all_of_it["times_faster_p50"], at_least=True),
        Target("p50 of a search among everything", 10, all_of_it["index_p50_ms"], unit=" ms"),
    ]
    document = {"vectors": given.vectors, "searches": found, "insertion_ms": inserted}
    name = "search" if given.vectors == 100_000 else f"search_{given.vectors}"
    report(name, where, document, [table, insertion], targets=targets, folder=given.results)


if __name__ == "__main__":
    main()
