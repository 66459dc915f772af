"""Spaces of every width on real pgvector, and the tables that hold them."""

import json
import threading
import uuid

import numpy as np
import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import event, text

from batch_pipeline.database.revisions import VERSION_TABLE
from batch_pipeline.database.session import Database, with_driver
from batch_pipeline.database.spaces import (
    Questions,
    SpaceKey,
    find_or_make_space,
    find_space,
    get_space,
)
from batch_pipeline.errors import ConfigurationError, RefusedError, ServiceDownError
from batch_pipeline.model_servers.text_prefixes import TextPrefixes
from batch_pipeline.services.search.embedding_spaces import drop, settings_for
from batch_pipeline.services.search.filters import Filters
from batch_pipeline.services.search.queries import search
from batch_pipeline.services.states.upload_states import Embedded, NewVector
from batch_pipeline.settings import load_settings
from batch_pipeline.testing.records import USER, add_batch, upload_rows


class Model:
    """Embeds every question as the same vector."""

    name = "m"
    prefixes = TextPrefixes()

    def __init__(self, dimensions):
        self.dimensions = dimensions

    def embed(self, texts, **_):
        return [near(1.0, self.dimensions) for _ in texts]


def near(similarity, width):
    vector = np.zeros(width)
    vector[0], vector[-1] = similarity, np.sqrt(1 - similarity**2)
    return vector.tolist()


def space_of(database, width, model="m", **questions):
    with database.transaction() as connection:
        return find_or_make_space(connection, SpaceKey(model, width), Questions(**questions))


def complete(pipeline, width, similarities):
    """Process a whole batch, with one vector for each upload."""
    batch_id = add_batch(pipeline.database, len(similarities))
    pipeline.states.load_batch(batch_id, "run", limit=len(similarities))
    space = space_of(pipeline.database, width)
    for row, similarity in zip(upload_rows(pipeline.database, batch_id), similarities, strict=True):
        started = pipeline.states.start(row.id, "run")
        vector = NewVector(space.id, near(similarity, width))
        fits = pipeline.spaces.fits_local(width)
        pipeline.states.complete(
            started.claim, embedded=Embedded(vector, "m", "m", fits), seconds={}
        )
    return batch_id


@pytest.mark.parametrize("width", [384, 1024, 1536, 2000, 2560, 3072, 4000])
def test_vectors_of_each_width_are_stored_and_found_by_their_index(pipeline, width):
    database = pipeline.database
    batch_id = complete(pipeline, width, [0.1, 0.9, 0.5])
    plans = []

    def explain(connection, _cursor, statement, parameters, *_):
        if "ORDER BY" in statement and "<=>" in statement:
            with connection.connection.cursor() as other:
                other.execute("SET LOCAL enable_sort = off")  # three rows need no index
                other.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
                plans.append(json.dumps(other.fetchall()))

    event.listen(database.engine, "before_cursor_execute", explain)
    found = search(database, lambda _: Model(width), "x", filters=Filters(user_id=USER))
    event.remove(database.engine, "before_cursor_execute", explain)

    assert [hit.similarity for hit in found] == pytest.approx([0.9, 0.5, 0.1], abs=1e-3)
    plan, *_ = plans  # an exact search follows, because the index finds too few
    space = space_of(database, width)
    assert f'"ix_upload_vectors_{space.id}"' in plan
    assert f"::halfvec({width})" in plan
    [first, *_] = upload_rows(database, batch_id)
    assert (first.embedding_local is not None) == (width == 1024)
    like = search(database, lambda _: Model(width), like=found[0].upload_id)
    assert [hit.upload_id for hit in like] == [hit.upload_id for hit in found[1:]]


def test_more_than_4000_numbers_are_refused():
    with pytest.raises(ConfigurationError, match=r"EMBEDDING_DIMENSIONS.*4000"):
        load_settings(embedding_dimensions=4001)


def test_a_vector_of_another_width_is_not_stored_in_a_space(pipeline):
    space = space_of(pipeline.database, 384)
    with (
        psycopg.connect(pipeline.settings.database_url) as connection,
        pytest.raises(psycopg.errors.CheckViolation),
    ):
        connection.execute(
            "INSERT INTO upload_vectors VALUES (gen_random_uuid(), %s, array_fill(1, ARRAY[385])"
            "::vector)",
            [space.id],
        )


def test_vectors_are_deleted_with_their_upload_by_any_client(pipeline, database_url):
    batch_id = complete(pipeline, 384, [0.1, 0.9])
    with psycopg.connect(database_url, autocommit=True) as api:
        api.execute(
            "DELETE FROM uploads WHERE id = %s", [upload_rows(pipeline.database, batch_id)[0].id]
        )
        [[left]] = api.execute("SELECT count(*) FROM upload_vectors").fetchall()
    assert left == 1


@pytest.mark.parametrize("user", [uuid.UUID(int=7), None])
def test_a_user_to_whom_an_api_gives_an_upload_is_answered_by_its_space(
    pipeline, database_url, user
):
    batch_id = complete(pipeline, 384, [0.1, 0.9])
    _, given = upload_rows(pipeline.database, batch_id)
    with psycopg.connect(database_url, autocommit=True) as api:
        api.execute("ALTER TABLE uploads ALTER user_id DROP NOT NULL")
        api.execute("UPDATE uploads SET user_id = %s WHERE id = %s", [user, given.id])
    mine = Filters(user_id=user or USER)  # without a user it belongs to that of its batch
    found = search(pipeline.database, lambda _: Model(384), "x", filters=mine)
    assert given.id in {hit.upload_id for hit in found}
    with pytest.raises(RefusedError, match="answers the searches of 2 users"):
        drop(pipeline.database, space_of(pipeline.database, 384).id, SpaceKey("other", 384))


def test_a_space_is_made_once_even_if_many_ask_for_it(pipeline):
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(space_of(pipeline.database, 384).id))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1


def test_a_new_space_does_not_wait_for_readers_or_writers_of_vectors(pipeline, database_url):
    complete(pipeline, 384, [0.1])
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM upload_vectors")  # a long read, like pg_dump's
        reader.execute("UPDATE upload_vectors SET vector = vector")
        assert space_of(pipeline.database, 768).key.width == 768


@pytest.mark.slow
def test_a_space_whose_vectors_are_in_use_is_not_dropped_and_the_error_says_so(
    pipeline, database_url
):
    space = space_of(pipeline.database, 384)
    with psycopg.connect(database_url) as reader:
        reader.execute("SELECT count(*) FROM upload_vectors")  # a long read, like pg_dump's
        with pytest.raises(ServiceDownError, match="another transaction uses the vectors"):
            drop(pipeline.database, space.id, SpaceKey("other", 384))
    assert drop(pipeline.database, space.id, SpaceKey("other", 384)) == space


def test_the_way_to_embed_questions_is_kept_up_to_date(pipeline):
    one = space_of(pipeline.database, 384, embedder="ollama", question_prefix="query: ")
    two = space_of(pipeline.database, 384, embedder="openai", addresses="http://a/v1")

    assert one.id == two.id
    with pipeline.database.transaction() as connection:
        assert get_space(connection, one.id) == two


@pytest.mark.parametrize(
    ("before", "now"),
    [("", "#8"), ("#4", "#8"), ("#4", ""), ("", "/"), ("/", "#8")],
)
def test_the_key_goes_to_a_server_whose_address_differs_only_in_its_cap_or_its_slash(
    pipeline, change, before, now
):
    address = "https://api.example/v1"
    settings = change(analyzer="openai", openai_base_url=address + now, openai_api_key="secret")
    old = space_of(pipeline.database, 384, embedder="openai", addresses=address + before)

    of_old = settings_for(settings, old)

    assert of_old.openai_api_key.get_secret_value() == "secret"
    assert of_old.openai_embedding_base_url == address + now


def test_the_key_of_ollama_goes_only_to_servers_that_are_named(pipeline, change):
    settings = change(analyzer="ollama", ollama_host="https://new.example")
    old = space_of(pipeline.database, 384, embedder="ollama", addresses="http://old.example")

    without_key = settings_for(settings, old)
    with_key = settings_for(settings.model_copy(update={"ollama_api_key": SecretStr("k")}), old)

    assert without_key.ollama_host == "http://old.example,https://new.example"
    assert with_key.ollama_host == "https://new.example"


def test_the_key_of_one_service_goes_to_no_other(pipeline, change):
    settings = change(
        analyzer="openai", openai_base_url="https://new.example/v1", openai_api_key="secret"
    )
    moved = space_of(pipeline.database, 384, embedder="openai", addresses="http://old.example/v1")
    same = space_of(pipeline.database, 768, embedder="openai", addresses="https://new.example/v1")

    of_old, of_same = settings_for(settings, moved), settings_for(settings, same)

    assert of_old.openai_embedding_base_url == "http://old.example/v1"
    assert of_old.openai_api_key.get_secret_value() == ""
    assert of_same.openai_api_key.get_secret_value() == "secret"
    assert (of_same.embedding_dimensions, of_same.embedder_name) == (768, "openai")


@pytest.mark.slow
@pytest.mark.parametrize(
    "former_index",
    [
        "CREATE INDEX ix_upload_vectors_2 ON upload_vectors_2"
        " USING hnsw ((vector::vector(1024)) vector_cosine_ops) WITH (m=16, ef_construction=64)",
        "CREATE INDEX ix_upload_vectors_2 ON upload_vectors_2"
        " USING hnsw ((vector::halfvec(1024)) halfvec_cosine_ops) WITH (m=12, ef_construction=48)",
        # The upgrade was interrupted after it had dropped the former index.
        "CREATE INDEX ix_upload_vectors_2_being_built ON upload_vectors_2"
        " USING hnsw ((vector::halfvec(1024)) halfvec_cosine_ops)",
    ],
    ids=["full_vectors", "fewer_neighbours", "interrupted"],
)
def test_the_upgrade_makes_spaces_of_existing_vectors(server, former_index):
    """Rows of two models and users; an interrupted upgrade is repeated and continues."""
    with server.new_database() as url:
        database = Database(with_driver(url, "psycopg", variable="X"))
        other = "00000000-0000-0000-0000-000000000007"
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in (
                "DROP TABLE upload_vectors, embedding_spaces, answering_spaces",
                f"UPDATE {VERSION_TABLE} SET version_num = '0014'",
                "CREATE INDEX ix_uploads_embedding ON uploads"
                " USING hnsw (embedding_local vector_cosine_ops)",
                f"""INSERT INTO uploads (user_id, filename, file_path, file_type, file_size,
                    processing_status, description, embedding_model, embedding_local)
                SELECT CASE WHEN n <= 30 THEN '{USER}'::uuid ELSE '{other}' END,
                    n || '.jpg', n, 'image', 1, 'completed', 'x',
                    CASE WHEN n % 3 = 0 THEN 'old' ELSE 'new' END,
                    array_fill(CASE WHEN n = 7 THEN 1e30 ELSE n END, ARRAY[1024])::vector
                FROM generate_series(1, 50) n""",
            ):
                connection.execute(statement.encode())
            with psycopg.connect(url) as somebody:  # reads in the meantime, and continues
                somebody.execute("SELECT count(*) FROM uploads")
                somebody.commit()
                database.upgrade()
            moved = connection.execute(
                "SELECT model, count(*) FROM upload_vectors JOIN embedding_spaces ON id = space_id"
                " JOIN uploads u ON u.id = upload_id AND u.embedding_model = model"
                " AND u.embedding_local = vector GROUP BY 1 ORDER BY 1"
            ).fetchall()
            users = connection.execute(
                "SELECT model, count(*) FROM answering_spaces"
                " JOIN embedding_spaces ON id = space_id GROUP BY 1"
            ).fetchall()
            [[indexes]] = connection.execute(
                "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'"
                " AND tablename LIKE 'upload_vectors_%'"
            ).fetchall()
            [[left]] = connection.execute(
                "SELECT count(*) FROM pg_indexes WHERE indexname = 'ix_uploads_embedding'"
            ).fetchall()
            # As development versions built it.
            connection.execute("DROP INDEX ix_upload_vectors_2")
            if "::vector(" in former_index:
                connection.execute(
                    "UPDATE upload_vectors_2 SET vector = array_fill(70000, ARRAY[1024])"
                )
            connection.execute(former_index.encode())
            # Repeat it, as after an interruption; some vectors are missing.
            connection.execute("DELETE FROM upload_vectors WHERE space_id = 1")
            connection.execute("DROP INDEX ix_upload_vectors_1")
            connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0014'")
            # While a transaction with a number is open, an index that is not built concurrently
            # also reads the vectors of before the update.
            with psycopg.connect(url) as somebody:
                somebody.execute("SELECT pg_current_xact_id()")
                database.upgrade()
            [[again]] = connection.execute("SELECT count(*) FROM upload_vectors").fetchall()
            definitions = connection.execute(
                "SELECT indexname, substring(indexdef FROM 'USING .*') FROM pg_indexes"
                " WHERE indexname LIKE 'ix_upload_vectors_%' ORDER BY 1"
            ).fetchall()
        with database.transaction() as connection:
            space = find_space(connection, SpaceKey("new", 1024))
            assert connection.scalar(text(f"SELECT to_regclass('ix_upload_vectors_{space.id}')"))
        database.close()
    assert moved == [("new", 33), ("old", 16)], "one had numbers that the index cannot hold"
    assert users == [("new", 2)]
    assert (indexes, left, again) == (2, 0, 50)
    index = (
        "USING hnsw (((vector)::halfvec(1024)) halfvec_cosine_ops) "
        "WITH (m='16', ef_construction='64')"
    )
    assert definitions == [("ix_upload_vectors_1", index), ("ix_upload_vectors_2", index)]
