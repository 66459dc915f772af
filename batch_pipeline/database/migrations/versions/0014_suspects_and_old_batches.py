"""Suspects of a model server's death, and ended batches that another program has changed.

- ``uploads.server_deaths`` counts the calls for an upload during which a model server died.
- Triggers write ``batches_to_recount`` when an upload is added to, removed from or changed in a
  batch that is not open. Open batches need no record: their counters are updated with every change,
  and the sweep checks them.
- Metrics leave out the uploads of cancelled and given-up batches. They find these batches by a new
  index.
"""

import sqlalchemy as sa
from alembic import op

from batch_pipeline.database.migrations import SEARCH_PATH

revision = "0014"
down_revision = "0012"

_INDEX = "ix_upload_batches_stopped"
_IN_WORK = "('analyzing', 'embedding')"
_OF_STATEMENT = "batch_pipeline_note_changed_batches"
_OF_ROW = "batch_pipeline_note_changed_upload"
_FUNCTIONS = {_OF_STATEMENT: "SELECT batch_id FROM changed", _OF_ROW: "OLD.batch_id, NEW.batch_id"}
_TRIGGERS = {
    "batch_pipeline_uploads_came": (
        "AFTER INSERT ON uploads REFERENCING NEW TABLE AS changed FOR EACH STATEMENT",
        _OF_STATEMENT,
    ),
    "batch_pipeline_uploads_gone": (
        "AFTER DELETE ON uploads REFERENCING OLD TABLE AS changed FOR EACH STATEMENT",
        _OF_STATEMENT,
    ),
    # Our own changes go through the two statuses in progress, and we count them ourselves.
    "batch_pipeline_upload_changed": (
        "AFTER UPDATE OF processing_status, batch_id ON uploads FOR EACH ROW WHEN ("
        "OLD.batch_id IS DISTINCT FROM NEW.batch_id OR ("
        "OLD.processing_status IS DISTINCT FROM NEW.processing_status "
        f"AND coalesce(OLD.processing_status::text, '') NOT IN {_IN_WORK} "
        f"AND coalesce(NEW.processing_status::text, '') NOT IN {_IN_WORK}))",
        _OF_ROW,
    ),
}


def upgrade() -> None:
    """Build everything while other programs write; safe to repeat."""
    op.execute(
        "ALTER TABLE uploads ADD COLUMN IF NOT EXISTS server_deaths integer NOT NULL DEFAULT 0"
    )
    op.create_table(
        "batches_to_recount",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("batch_id", sa.Uuid, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_batches_to_recount"),
        if_not_exists=True,
    )
    path = op.get_bind().scalar(sa.text(SEARCH_PATH))
    for name, batch_ids in _FUNCTIONS.items():
        # It runs with the rights of its owner, so an upload API needs no rights on the table.
        op.execute(f"""
            CREATE OR REPLACE FUNCTION {name}() RETURNS trigger
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path}, pg_temp AS $$
            BEGIN
                INSERT INTO batches_to_recount (batch_id)
                SELECT id FROM upload_batches
                WHERE id IN ({batch_ids})
                    AND coalesce(status::text, '') NOT IN ('pending', 'processing');
                RETURN NULL;
            END $$
        """)  # noqa: S608 - of constants
    for name, (rule, function) in _TRIGGERS.items():
        op.execute(f"DROP TRIGGER IF EXISTS {name} ON uploads")
        op.execute(f"CREATE TRIGGER {name} {rule} EXECUTE FUNCTION {function}()")
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_INDEX}")
        op.create_index(
            _INDEX,
            "upload_batches",
            ["id"],
            postgresql_concurrently=True,
            postgresql_where=sa.text("status IN ('cancelled', 'failed')"),
        )
