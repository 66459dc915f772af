"""A user who gets embedded uploads from another one is answered by the same embedding space.

An upload API does that with an UPDATE of ``uploads.user_id``. Without a row in ``answering_spaces``
no search of that user found anything.
"""

import sqlalchemy as sa
from alembic import op

from batch_pipeline.database.migrations import SEARCH_PATH

revision = "0021"
down_revision = "0020"

_LOCAL_USER = "'00000000-0000-0000-0000-000000000000'::uuid"
_NAME = "batch_pipeline_answer_next_user"


def upgrade() -> None:
    """Create the trigger, then the missing rows; safe to repeat."""
    path = op.get_bind().scalar(sa.text(SEARCH_PATH))
    # It runs with the rights of its owner, so an upload API needs no rights on the table. The lock
    # keeps the space from being dropped before this row names it.
    op.execute(f"""
        CREATE OR REPLACE FUNCTION {_NAME}() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path}, pg_temp AS $$
        BEGIN
            INSERT INTO answering_spaces (user_id, space_id)
            SELECT coalesce(NEW.user_id, {_LOCAL_USER}), space_id FROM answering_spaces
            WHERE user_id = coalesce(OLD.user_id, {_LOCAL_USER}) FOR SHARE
            ON CONFLICT DO NOTHING;
            RETURN NULL;
        END $$
    """)  # noqa: S608 - of constants
    op.execute(f"DROP TRIGGER IF EXISTS {_NAME} ON uploads")
    op.execute(
        f"CREATE TRIGGER {_NAME} AFTER UPDATE OF user_id ON uploads FOR EACH ROW WHEN ("
        "OLD.user_id IS DISTINCT FROM NEW.user_id AND NEW.embedding_model IS NOT NULL) "
        f"EXECUTE FUNCTION {_NAME}()"
    )
    op.execute(f"""
        INSERT INTO answering_spaces (user_id, space_id)
        SELECT DISTINCT ON (1) coalesce(u.user_id, {_LOCAL_USER}), v.space_id
        FROM uploads u JOIN upload_vectors v ON v.upload_id = u.id
        WHERE NOT EXISTS (
            SELECT FROM answering_spaces WHERE user_id = coalesce(u.user_id, {_LOCAL_USER})
        )
        GROUP BY 1, 2 ORDER BY 1, count(*) DESC, 2
        ON CONFLICT DO NOTHING
    """)  # noqa: S608 - of constants
