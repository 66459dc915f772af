"""Quality of search: recall, reciprocal rank and nDCG of each method, on our own questions.

The set (``search_quality_set.json``) was written for this purpose. It has 60 descriptions, 40
questions that share no word with their answer, 20 questions in German, French and Spanish, 20
everyday questions that share some words, 12 for names of files and cameras or text in a picture,
and 20 without an answer. The descriptions are stored in a separate database on the embedded server
(or on ``--server-url``). The figures do not depend on how fast or busy the machine is.

    python benchmarks/search_quality.py --results benchmarks/results
"""

import argparse
import json
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from sqlalchemy import insert
from tools.results import Table, add_results_option, machine, report

from batch_pipeline.database.embedded_server import embedded_server_url
from batch_pipeline.database.models import UPLOAD_WORDS, Upload
from batch_pipeline.database.session import Database, with_driver
from batch_pipeline.model_servers import sentence_encoder
from batch_pipeline.model_servers.embedded import EmbeddedEmbedding
from batch_pipeline.model_servers.text_hashing import hash_text
from batch_pipeline.services.search.queries import search
from batch_pipeline.testing.databases import DatabaseServer
from batch_pipeline.testing.records import USER, fill_spaces

SET = json.loads((Path(__file__).parent / "search_quality_set.json").read_text(encoding="utf-8"))
KINDS = {
    "paraphrases": "other words",
    "other_languages": "other languages",
    "everyday": "everyday",
    "names": "names",
}
#: Constant of reciprocal rank fusion, as usually chosen.
RANK_CONSTANT = 60

Ranking = Callable[[str], Sequence[int]]
"""Returns the numbers of descriptions for a question, best first; may leave some out."""


def described() -> list[str]:
    """Return the descriptions, with the embedded analyzer's sentences on camera and text."""
    texts = list(SET["descriptions"])
    for number, about in SET["about"].items():
        if camera := about.get("camera"):
            texts[int(number)] += f" It was taken with a camera named {camera}."
        if text := about.get("text"):
            texts[int(number)] += f" Text can be read in it: “{text}”."
    return texts


@contextmanager
def filled_database(server_url: str, embedding: EmbeddedEmbedding) -> Iterator[Database]:
    """A database with the descriptions as uploads; the path of an upload is its number."""
    with DatabaseServer(server_url).new_database() as url:
        database = Database(with_driver(url, "psycopg", variable="URL"))
        with database.transaction() as connection:
            for number, text in enumerate(described()):
                about = SET["about"].get(str(number), {})
                camera = about.get("camera")
                connection.execute(
                    insert(Upload).values(
                        user_id=USER,
                        filename=about.get("filename", f"{number:08x}.jpg"),
                        file_path=str(number),
                        file_type="image",
                        file_size=1,
                        processing_status="completed",
                        description=text,
                        facts={"camera": camera} if camera else {},
                        embedding_model=embedding.name,
                        embedding_local=embedding.embed([text])[0],
                    )
                )
            fill_spaces(connection)
        yield database
        database.close()


# Ways to search ---------------------------------------------------------------------------------


def by_vectors(embed: Callable[[str], Sequence[float]]) -> Ranking:
    vectors = np.array([embed(text) for text in described()])

    def rank(question: str) -> list[int]:
        return np.argsort(-(vectors @ np.array(embed(question))), kind="stable").tolist()

    return rank


def by_full_text(url: str, *, all_words: bool) -> Ranking:
    """PostgreSQL's own ranking of descriptions with all words of a question, or any of them."""
    query = "plainto_tsquery('english', %(q)s) || plainto_tsquery('simple', %(q)s)"
    if not all_words:
        query = f"replace(({query})::text, '&', '|')::tsquery"
    words = UPLOAD_WORDS
    statement = (
        f"SELECT file_path FROM uploads, LATERAL (SELECT {query} AS query) AS asked "
        f"WHERE {words} @@ query ORDER BY ts_rank_cd({words}, query) DESC, file_path::int"
    )

    def rank(question: str) -> list[int]:
        with psycopg.connect(url) as connection:
            rows = connection.execute(statement, {"q": question}).fetchall()
        return [int(number) for [number] in rows]

    return rank


def fused(*rankings: Ranking) -> Ranking:
    """Reciprocal rank fusion."""

    def rank(question: str) -> list[int]:
        scores: dict[int, float] = defaultdict(float)
        for ranking in rankings:
            for place, number in enumerate(ranking(question), 1):
                scores[number] += 1 / (RANK_CONSTANT + place)
        return sorted(scores, key=lambda number: (-scores[number], number))

    return rank


def as_we_do(database: Database, embedding: EmbeddedEmbedding) -> Ranking:
    return lambda question: [
        int(hit.file_path) for hit in search(database, lambda _: embedding, question, limit=60)
    ]


def ways(database: Database) -> dict[str, Ranking]:
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    embedding = EmbeddedEmbedding()
    joined = by_vectors(lambda text: embedding.embed([text])[0])
    full_text = by_full_text(url, all_words=False)
    return {
        "hashing": by_vectors(lambda text: hash_text(text, 1024).tolist()),
        "full text": full_text,
        "sentences": by_vectors(lambda text: sentence_encoder.encode([text])[0].tolist()),
        "sentences, words": joined,
        "… fused with any word": fused(joined, full_text),
        "… fused with all words": fused(joined, by_full_text(url, all_words=True)),
        "batch-pipeline search": as_we_do(database, embedding),
    }


# Measures ---------------------------------------------------------------------------------------


def measured(rank: Ranking, questions: Sequence[tuple[str, int]]) -> dict[str, float]:
    """Measure the ranks; each question has one right description."""
    places = []
    for question, right in questions:
        found = list(rank(question))
        places.append(found.index(right) + 1 if right in found else math.inf)
    return {
        "recall_at_5": statistics.mean(place <= 5 for place in places),
        "mrr": statistics.mean(1 / place for place in places),
        "ndcg_at_10": statistics.mean(
            1 / math.log2(place + 1) if place <= 10 else 0.0 for place in places
        ),
    }


def weakness(database: Database, embedding: EmbeddedEmbedding) -> dict[str, float]:
    """Return how often right answers, and first results without an answer, are weak."""
    right = [
        hit.weak
        for kind in KINDS
        for question, number in SET[kind]
        for hit in search(database, lambda _: embedding, question, limit=60)
        if int(hit.file_path) == number
    ]
    none = [
        search(database, lambda _: embedding, q, limit=1)[0].weak for q in SET["without_answer"]
    ]
    return {"right_marked": statistics.mean(right), "none_marked": statistics.mean(none)}


def figures(server_url: str) -> dict[str, Any]:
    """Return all measurements."""
    embedding = EmbeddedEmbedding()
    with filled_database(server_url, embedding) as database:
        found: dict[str, Mapping[str, dict[str, float]]] = {
            name: {kind: measured(rank, SET[kind]) for kind in KINDS}
            for name, rank in ways(database).items()
        }
        return {"ways": found, "weak": weakness(database, embedding)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server-url", help="PostgreSQL with pgvector; default: an embedded one")
    add_results_option(parser)
    given = parser.parse_args()
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = figures(given.server_url or embedded_server_url(Path(folder) / "server"))
    tables = [
        Table(
            f"{KINDS[kind]} ({len(SET[kind])} questions)".capitalize(),
            ("way", "recall at 5", "MRR", "nDCG at 10"),
            [
                [name, *(f"{value:.2f}" for value in measures[kind].values())]
                for name, measures in found["ways"].items()
            ],
        )
        for kind in KINDS
    ]
    weak = found["weak"]
    tables.append(
        Table(
            "Marked as weak",
            ("what", "share"),
            [
                ["the right answer", f"{weak['right_marked']:.2f}"],
                [
                    "the first result where nothing is an answer "
                    f"({len(SET['without_answer'])} questions)",
                    f"{weak['none_marked']:.2f}",
                ],
            ],
        )
    )
    report("search_quality", where, found, tables, folder=given.results)


if __name__ == "__main__":
    main()
