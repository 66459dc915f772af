"""Compare an index of vectors with four bytes and with two bytes per number.

Both tables hold the same random vectors in clusters. Figures are the index's size, the time to
build it, processor time of PostgreSQL for an insertion and for a search, and recall: the share of
the ten nearest, by full vectors, that a search finds.

    python benchmarks/vector_index.py [--vectors 20000] [--numbers 1024]
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import psycopg
from numpy.typing import NDArray
from pgvector.psycopg import register_vector
from tools.results import Table, add_results_option, machine, report

from batch_pipeline.testing.stack import PostgresProcess

INSERTIONS, SEARCHES, RESULTS = 400, 100, 10
#: Candidates that a search among up to 100,000 vectors reads.
CANDIDATES = 300
CLUSTERS = 300
#: By name: the type in the index.
KINDS = {"four bytes": "vector", "two bytes": "halfvec"}


class Index:
    """A table with one kind of index."""

    def __init__(self, connection: psycopg.Connection, kind: str, numbers: int) -> None:
        self._connection = connection
        self._process = psutil.Process(connection.info.backend_pid)
        self._table = f"of_{kind}"
        self._index = f"((vector::{kind}({numbers})) {kind}_cosine_ops)"
        self._distance = f"vector::{kind}({numbers}) <=> %s::{kind}({numbers})"
        self.execute(f"CREATE TABLE {self._table} (id integer, vector vector NOT NULL)")

    def execute(self, statement: str, *values: object) -> psycopg.Cursor:
        return self._connection.execute(statement.encode(), values)

    def add(self, first_id: int, vectors: NDArray[np.float32]) -> None:
        for number, vector in enumerate(vectors, first_id):
            self.execute(f"INSERT INTO {self._table} VALUES (%s, %s)", number, vector)

    def build(self) -> tuple[float, float]:
        """Build the index; returns seconds and MB."""
        begun = time.monotonic()
        self.execute(f"CREATE INDEX {self._table}_index ON {self._table} USING hnsw {self._index}")
        seconds = time.monotonic() - begun
        [size] = self.execute(f"SELECT pg_relation_size('{self._table}_index')").fetchone() or [0]
        return seconds, size / 1e6

    def search(self, question: NDArray[np.float32]) -> set[int]:
        statement = f"SELECT id FROM {self._table} ORDER BY {self._distance} LIMIT {RESULTS}"
        return {row[0] for row in self.execute(statement, question)}

    @contextmanager
    def timed(self, per: int) -> Iterator[list[float]]:
        """Append the processor time of PostgreSQL in the context, in ms, divided by `per`."""
        taken: list[float] = []
        before = sum(self._process.cpu_times()[:2])
        yield taken
        taken.append((sum(self._process.cpu_times()[:2]) - before) / per * 1000)


def clustered(count: int, numbers: int, seed: int) -> NDArray[np.float32]:
    """Shape ``(count, numbers)``, each of length 1."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, numbers))
    dice = np.random.default_rng(seed)
    vectors = centres[dice.integers(0, CLUSTERS, count)] + 1.2 * dice.normal(size=(count, numbers))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def measure(
    connection: psycopg.Connection, kind: str, vectors: NDArray[np.float32]
) -> Sequence[object]:
    """Return build seconds, MB, ms per insertion, ms per search, recall."""
    count, numbers = vectors.shape
    index = Index(connection, kind, numbers)
    index.add(0, vectors)
    built = index.build()
    added = clustered(INSERTIONS, numbers, seed=2)
    with index.timed(INSERTIONS) as insertion:
        index.add(count, added)
    questions = clustered(SEARCHES, numbers, seed=3)
    with index.timed(SEARCHES) as search:
        found = [index.search(question) for question in questions]
    everything = np.concatenate([vectors, added])
    nearest = np.argsort(-(questions @ everything.T), axis=1)[:, :RESULTS]
    hits = [len(ids & set(near.tolist())) for ids, near in zip(found, nearest, strict=True)]
    return *built, *insertion, *search, sum(hits) / RESULTS / SEARCHES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--numbers", type=int, default=1024, help="length of a vector")
    add_results_option(parser)
    arguments = parser.parse_args()
    where = machine()
    vectors = clustered(arguments.vectors, arguments.numbers, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresProcess(Path(folder))
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            connection.execute("SET maintenance_work_mem = '1GB'")
            connection.execute(f"SET hnsw.ef_search = {CANDIDATES}".encode())
            register_vector(connection)
            rows = {name: measure(connection, kind, vectors) for name, kind in KINDS.items()}
        server.close()
    headings = ("per number", "build s", "MB", "insertion ms", "search ms", f"recall at {RESULTS}")
    title = f"Index of {arguments.vectors:,} vectors of {arguments.numbers} numbers"
    table = Table(title, headings, [[name, *row] for name, row in rows.items()])
    report("vector_index", where, {"rows": rows}, [table], folder=arguments.results)


if __name__ == "__main__":
    main()
