"""A search among many vectors: queries per second, recall, database time with and without index.

Fills a database of its own on the embedded server (or on ``--server-url``) with random vectors that
gather around a few hundred centres, as embeddings of descriptions do, builds the index, and times
the statement that ``batch-pipeline search`` makes, as PostgreSQL itself reports it (``EXPLAIN
ANALYZE``: planning and execution, no client, no embedding of the question). Without the index means
the same statement after the index was dropped, on warm caches: an exact search. Recall is the share
of its nearest ten that the index finds. Queries per second are whole calls of the service, by as
many threads as there are cores; client and server share these.

    python benchmarks/search.py --vectors 100000
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
import sqlalchemy
from pgvector import Vector
from pgvector.psycopg import register_vector
from rich.console import Console
from sqlalchemy import event
from tools.results import Table, Target, add_results_option, machine, report

from batch_pipeline.database.embedded_server import embedded_server_url
from batch_pipeline.database.session import Database, with_driver
from batch_pipeline.services.search import search
from batch_pipeline.services.search_filters import Filters
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.records import fill_spaces

DIMENSIONS, MODEL = 1024, "benchmark"
#: One user in a thousand uploads, and one that owns half of everything.
SMALL_USER, LARGE_USER = uuid.UUID(int=1), uuid.UUID(int=2)

log = Console(stderr=True, markup=False, highlight=False)

_COLUMNS = {
    "user_id": "uuid",
    "filename": "text",
    "file_path": "text",
    "file_type": "text",
    "file_size": "int8",
    "processing_status": "text",
    "description": "text",
    "embedding_model": "text",
    "embedding_local": "vector",
}


class FixedQuestion:
    """Stands for an embedding model: every question has the vector that is set."""

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


def rows(vectors: int) -> Iterator[tuple[object, ...]]:
    """A tenth are of another model, and cannot be answers."""
    dice = np.random.default_rng(7)
    centres = dice.normal(size=(300, DIMENSIONS)).astype(np.float32)
    for number in range(vectors):
        user = uuid.uuid4() if number % 2 else LARGE_USER
        vector = centres[number % 300] + dice.normal(size=DIMENSIONS).astype(np.float32) * 0.6
        yield (
            SMALL_USER if number % 1000 == 0 else user,
            f"{number}.jpg",
            str(number),
            "image",
            1,
            "completed",
            "A picture.",
            "older" if number % 10 == 9 else MODEL,
            Vector(vector),
        )


@contextmanager
def filled_database(server_url: str, vectors: int) -> Iterator[str]:
    with DatabaseServer(server_url).new_database() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            began = time.perf_counter()
            register_vector(connection)
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
            fill_spaces(connection, memory="1GB")
            # The first by its name; who has but one upload, of the older model, waits for it.
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


def measured(url: str, questions: int, user_id: uuid.UUID | None) -> dict[str, object]:
    """Milliseconds and recall of one kind of search."""
    database = Database(with_driver(url, "psycopg", variable="URL"))
    model = FixedQuestion()
    statements: list[tuple[str, dict[str, object]]] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, parameters, *_: statements.append((statement, parameters)),
    )
    times: dict[str, list[float]] = {"index": [], "exact": []}
    recalls, plans = [], set()
    with psycopg.connect(url, autocommit=True) as connection:
        pictures = connection.execute(
            "SELECT embedding_local::text FROM uploads ORDER BY checksum, id LIMIT %s", [questions]
        ).fetchall()
        for [text] in pictures:
            model.vector = json.loads(text)
            statements.clear()
            found = {
                hit.upload_id
                for hit in search(database, model, "x", filters=Filters(user_id=user_id))
            }
            query = next(s for s in reversed(statements) if "<=>" in s[0])
            settings = [s for s in statements if s[0].startswith("SET LOCAL")]
            for way in ("index", "exact"):
                with connection.transaction(force_rollback=True):
                    for statement, _ in settings:
                        connection.execute(statement)
                    if way == "exact":
                        connection.execute("DROP INDEX ix_upload_vectors_1")
                        true = {row[0] for row in connection.execute(*query).fetchall()}
                    [[plan]] = connection.execute(
                        f"EXPLAIN (ANALYZE, FORMAT JSON) {query[0]}", query[1]
                    ).fetchall()
                    times[way].append(plan[0]["Planning Time"] + plan[0]["Execution Time"])
                    if way == "index":
                        plans.add("hnsw" if "ix_upload_vectors_" in json.dumps(plan) else "other")
            recalls.append(len(found & true) / max(len(true), 1))
    database.close()
    return {
        **{f"{way}_p50_ms": statistics.median(taken) for way, taken in times.items()},
        **{f"{way}_p95_ms": _p95(taken) for way, taken in times.items()},
        "times_faster_p50": statistics.median(times["exact"]) / statistics.median(times["index"]),
        "recall_at_10": statistics.mean(recalls),
        "results": len(found),
        "plan": ", ".join(sorted(plans)),
    }


def queries_per_second(url: str, user_id: uuid.UUID | None, seconds: float) -> float:
    """Whole searches, as fast as threads can ask."""
    threads = os.cpu_count() or 1
    database = Database(with_driver(url, "psycopg", variable="URL"), pool_size=threads)
    with psycopg.connect(url) as connection:
        texts = connection.execute(
            "SELECT embedding_local::text FROM uploads ORDER BY checksum, id LIMIT 200"
        ).fetchall()
    vectors = [json.loads(text) for [text] in texts]

    def ask(first: int) -> int:
        model, asked = FixedQuestion(), 0
        while time.perf_counter() < ends_at:
            model.vector = vectors[(first + asked) % len(vectors)]
            search(database, model, "x", filters=Filters(user_id=user_id))
            asked += 1
        return asked

    with ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        ends_at = begun + seconds
        asked = sum(pool.map(ask, range(0, len(vectors), max(len(vectors) // threads, 1))))
        rate = asked / (time.perf_counter() - begun)
    database.close()
    return rate


def _p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


HEADINGS = {
    "queries_per_second": "queries per second",
    "recall_at_10": "recall at 10",
    "index_p50_ms": "p50 ms",
    "index_p95_ms": "p95 ms",
    "exact_p50_ms": "exact p50 ms",
    "exact_p95_ms": "exact p95 ms",
    "times_faster_p50": "times faster",
    "plan": "plan",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=50, help="of which times are taken")
    parser.add_argument("--seconds", type=float, default=5, help="of asking as fast as it goes")
    parser.add_argument("--server-url", help="PostgreSQL with pgvector; default: an embedded one")
    add_results_option(parser)
    given = parser.parse_args()
    where, found = machine(), {}
    with tempfile.TemporaryDirectory() as folder:
        url = given.server_url or embedded_server_url(Path(folder) / "server")
        with filled_database(url, given.vectors) as database_url:
            kinds = {"everything": None, "large user": LARGE_USER, "small user": SMALL_USER}
            for name, user_id in kinds.items():
                rate = queries_per_second(database_url, user_id, given.seconds)
                figures = measured(database_url, given.questions, user_id)
                found[name] = {"queries_per_second": rate, **figures}
                log.print(f"{name}: {rate:.0f} queries per second")
    rows = [[name, *(figures[key] for key in HEADINGS)] for name, figures in found.items()]
    title = f"Searches among {given.vectors} vectors of {DIMENSIONS}"
    table = Table(title, ("among", *HEADINGS.values()), rows)
    faster = found["everything"]["times_faster_p50"]
    targets = [Target("times faster than an exact search", 10, faster, at_least=True)]
    document = {"vectors": given.vectors, "searches": found}
    report("search", where, document, [table], targets=targets, folder=given.results)


if __name__ == "__main__":
    main()
