"""Separate tables for vectors, one for each embedding space, each with its own index.

Vectors in ``uploads.embedding_local``, of an upload API or of a development version, are copied,
some thousands per transaction, while other programs read and write. Each index is built after its
vectors were copied. Each user is answered from the space with most of the user's vectors.
"""

import uuid

import sqlalchemy as sa
from alembic import op

from batch_pipeline.database.triggers import SEARCH_PATH

_LOCAL_USER = uuid.UUID(int=0)
_ROWS_AT_ONCE = 2000
_MAKE = "batch_pipeline_make_vectors"
#: How vectors are indexed; ``%s`` is how many numbers they have.
_INDEX = "USING hnsw ((vector::halfvec(%s)) halfvec_cosine_ops) WITH (m = 16, ef_construction = 64)"
#: The index cannot hold every number. Only the direction of a vector counts, so vectors of unusual
#: length are stored with length 1, as ``model_servers/answers.py`` does.
_UNUSUAL_LENGTH = "vector_norm({}::vector) NOT BETWEEN 0.1 AND 10000"
#: The end of the definition of an index, as PostgreSQL writes it.
_DEFINITION = "halfvec_cosine_ops) WITH (m='16', ef_construction='64')"


def create() -> None:
    """Create the tables, and the function that creates the table of a space."""
    _make_tables()
    create_function()


def copy_vectors_of_uploads() -> None:
    """Copy vectors that no space contains yet, and choose the space that answers each user."""
    with op.get_context().autocommit_block():
        spaces = [(_make_space(model, width), model, width) for model, width in _models()]
        for space in spaces:
            _copy(*space)
        _build_indexes()
        for space in spaces:  # vectors that were added in the meantime
            _copy(*space)
    op.execute(
        sa.text("""
            INSERT INTO answering_spaces (user_id, space_id)
            SELECT DISTINCT ON (1) coalesce(u.user_id, :local), v.space_id
            FROM uploads u JOIN upload_vectors v ON v.upload_id = u.id
            WHERE NOT EXISTS (
                SELECT FROM answering_spaces WHERE user_id = coalesce(u.user_id, :local)
            )
            GROUP BY 1, 2 ORDER BY 1, count(*) DESC, 2
            ON CONFLICT DO NOTHING
        """).bindparams(sa.bindparam("local", _LOCAL_USER, sa.Uuid))
    )
    # Development versions had an index of that column. Every change of an upload changed it, too.
    with op.get_context().autocommit_block():
        for index in ("ix_uploads_embedding", "ix_uploads_embedding_being_built"):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}")


def _make_tables() -> None:
    def text(name: str) -> sa.Column[str]:
        return sa.Column(name, sa.Text, server_default="", nullable=False)

    now = sa.func.now()
    op.create_table(
        "embedding_spaces",
        sa.Column("id", sa.Integer, sa.Identity(), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        *map(text, ["document_prefix", "question_prefix", "embedder", "addresses", "options"]),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_embedding_spaces"),
        if_not_exists=True,
    )
    op.create_index(
        "ix_embedding_spaces_key",
        "embedding_spaces",
        ["model", "width", "document_prefix"],
        unique=True,
        if_not_exists=True,
    )
    op.execute("""
        CREATE TABLE IF NOT EXISTS upload_vectors (
            upload_id uuid NOT NULL, space_id integer NOT NULL, vector vector NOT NULL,
            CONSTRAINT pk_upload_vectors PRIMARY KEY (upload_id, space_id)
        ) PARTITION BY LIST (space_id)
    """)
    op.create_table(
        "answering_spaces",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("space_id", sa.Integer, nullable=False),
        sa.Column("since", sa.TIMESTAMP(timezone=True), server_default=now, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_answering_spaces"),
        if_not_exists=True,
    )
    op.create_index(
        "ix_answering_spaces_space_id", "answering_spaces", ["space_id"], if_not_exists=True
    )


def create_function() -> None:
    """Create a function that runs with the rights of the tables' owner, or replace it.

    So workers need no right to create tables. It only creates the table of a space that already has
    a row in ``embedding_spaces``. Every role may call it: if table and index are there, it takes no
    lock that others would wait for.

    The index has two bytes per number: it takes a third of the space of full vectors with 1,024
    numbers, and finds as much. It has pgvector's default options: with fewer neighbours, a search
    does not reach some vectors at all (benchmarks/README.md).
    """
    path = op.get_bind().scalar(sa.text(SEARCH_PATH))
    op.execute(f"""
        CREATE OR REPLACE FUNCTION {_MAKE}(space integer) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path}, pg_temp AS $$
        DECLARE
            of_space text := 'upload_vectors_' || space;
            numbers integer := (SELECT width FROM embedding_spaces WHERE id = space);
        BEGIN
            IF numbers IS NULL THEN
                RAISE 'there is no embedding space %', space;
            END IF;
            IF to_regclass('ix_' || of_space) IS NOT NULL
                AND (SELECT relispartition FROM pg_class WHERE oid = to_regclass(of_space))
            THEN
                RETURN;
            END IF;
            EXECUTE format(
                'CREATE TABLE IF NOT EXISTS %1$I (LIKE upload_vectors INCLUDING DEFAULTS,
                    CHECK (space_id = %2$s), CHECK (vector_dims(vector) = %3$s),
                    PRIMARY KEY (upload_id, space_id))', of_space, space, numbers);
            EXECUTE format(
                'CREATE INDEX IF NOT EXISTS %I ON %I {_INDEX}',
                'ix_' || of_space, of_space, numbers);
            -- Made apart and attached: that waits for nobody who reads or writes vectors.
            IF NOT (SELECT relispartition FROM pg_class WHERE oid = to_regclass(of_space)) THEN
                EXECUTE format('ALTER TABLE upload_vectors ATTACH PARTITION %I FOR VALUES IN (%s)',
                    of_space, space);
            END IF;
        END $$
    """)  # noqa: S608 - of constants


def _build_indexes() -> None:
    """Build the indexes that are missing, and replace those of development versions.

    Those had full vectors or fewer neighbours. The former index answers searches of running
    programs until the new one is built. A concurrent build reads only vectors that somebody can
    see. An ordinary build also reads vectors from before the update, which the index cannot hold.
    """
    for space, width in _former_indexes():
        index = f"ix_upload_vectors_{space}"
        op.execute(
            f"UPDATE upload_vectors_{space} SET vector = l2_normalize(vector) "  # noqa: S608
            f"WHERE {_UNUSUAL_LENGTH.format('vector')}"
        )
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}_being_built")
        op.execute(
            f"CREATE INDEX CONCURRENTLY {index}_being_built ON upload_vectors_{space} "
            f"{_INDEX % width}"
        )
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}")
        op.execute(f"ALTER INDEX {index}_being_built RENAME TO {index}")


def _former_indexes() -> list[tuple[int, int]]:
    """List the spaces, with their widths, whose table has no index of today's kind."""
    found = op.get_bind().execute(
        sa.text("""
            SELECT id, width FROM embedding_spaces
            WHERE to_regclass('upload_vectors_' || id) IS NOT NULL AND NOT EXISTS (
                SELECT FROM pg_index
                WHERE indexrelid = to_regclass('ix_upload_vectors_' || id) AND indisvalid
                    AND right(pg_get_indexdef(indexrelid), length(:end)) = :end
            )
            ORDER BY id
        """).bindparams(end=_DEFINITION)
    )
    return [(space, width) for space, width in found]


def _models() -> list[tuple[str, int]]:
    width = op.get_bind().scalar(
        sa.text(
            "SELECT atttypmod FROM pg_attribute "
            "WHERE attrelid = to_regclass('uploads') AND attname = 'embedding_local'"
        )
    )
    of_row = f"{int(width or 0)}" if (width or 0) > 0 else "vector_dims(embedding_local)"
    found = op.get_bind().execute(
        sa.text(
            f"SELECT DISTINCT embedding_model, {of_row} FROM uploads "  # noqa: S608 - of constants
            "WHERE embedding_model IS NOT NULL AND embedding_local IS NOT NULL ORDER BY 1, 2"
        )
    )
    return [(model, width) for model, width in found]


def _make_space(model: str, width: int) -> int:
    """Create a space with its table, unless it is there, and return its number.

    A new table gets its index after vectors were copied: building an index over existing rows is
    ten times faster than adding them one by one.
    """
    connection = op.get_bind()
    key = {"model": model, "width": width}
    connection.execute(
        sa.text(
            "INSERT INTO embedding_spaces (model, width) VALUES (:model, :width) "
            "ON CONFLICT DO NOTHING"
        ),
        key,
    )
    space: int = connection.execute(
        sa.text(
            "SELECT id FROM embedding_spaces "
            "WHERE model = :model AND width = :width AND document_prefix = ''"
        ),
        key,
    ).scalar_one()
    if not connection.scalar(sa.text(f"SELECT to_regclass('upload_vectors_{space}')")):
        connection.execute(sa.text(f"SELECT {_MAKE}({space})"))
        connection.execute(sa.text(f"DROP INDEX ix_upload_vectors_{space}"))
    return space


def _copy(space: int, model: str, width: int) -> None:
    table = f"upload_vectors_{space}"
    copied = sa.text(f"""
        WITH wanted AS (
            SELECT id, embedding_local FROM uploads
            WHERE embedding_model = :model AND embedding_local IS NOT NULL
                AND vector_dims(embedding_local) = :width AND id > :after
                AND NOT EXISTS (SELECT FROM {table} v WHERE v.upload_id = uploads.id)
            ORDER BY id LIMIT {_ROWS_AT_ONCE}
        ), copied AS (
            INSERT INTO {table} (upload_id, space_id, vector)
            SELECT id, {space}, CASE
                WHEN {_UNUSUAL_LENGTH.format("embedding_local")}
                THEN l2_normalize(embedding_local::vector) ELSE embedding_local::vector END
            FROM wanted ON CONFLICT DO NOTHING
        )
        SELECT id FROM wanted ORDER BY id DESC LIMIT 1
    """)  # noqa: S608 - of constants
    after: uuid.UUID | None = uuid.UUID(int=0)
    while after is not None:
        after = op.get_bind().scalar(copied, {"model": model, "width": width, "after": after})
