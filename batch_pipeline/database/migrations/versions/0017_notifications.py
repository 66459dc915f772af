"""The outbox of notifications, written by triggers in the transaction that causes the event.

The triggers fire whichever program writes the rows, for example an upload API that cancels a batch.
They fire once when a batch ends, when an upload is quarantined, and when an outage begins or ends.
The stages of an upload only evaluate a condition.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

from batch_pipeline.database.migrations import SEARCH_PATH

revision = "0017"
down_revision = "0016"

_NOW = sa.text("clock_timestamp()")
_ENDED = "('completed', 'failed', 'cancelled')"
_QUARANTINE = "('killed_worker', 'model_server_crash')"

_BATCH = """
    'batch.' || NEW.status::text, jsonb_build_object(
        'batch_id', NEW.id, 'user_id', NEW.user_id, 'name', NEW.name, 'status', NEW.status::text,
        'total', coalesce(NEW.total_uploads, 0), 'successful', coalesce(NEW.successful_uploads, 0),
        'failed', coalesce(NEW.failed_uploads, 0), 'reason', NEW.error_message)
"""
_UPLOAD = """
    'upload.quarantined', jsonb_build_object(
        'upload_id', NEW.id, 'batch_id', NEW.batch_id, 'user_id', NEW.user_id,
        'filename', NEW.filename, 'error_kind', NEW.error_kind, 'reason', NEW.error_message)
"""
_BEGUN = """
    'outage.begun', jsonb_build_object(
        'kind', NEW.kind, 'reason', NEW.reason, 'began_at', NEW.began_at)
"""
_OVER = """
    'outage.ended', jsonb_build_object(
        'kind', OLD.kind, 'reason', OLD.reason, 'began_at', OLD.began_at,
        'seconds', round(extract(epoch FROM clock_timestamp() - OLD.began_at)))
"""
_TRIGGERS = {
    "batch_pipeline_tell_batch": (
        "AFTER UPDATE OF status ON upload_batches FOR EACH ROW "
        f"WHEN (NEW.status::text IN {_ENDED} AND OLD.status IS DISTINCT FROM NEW.status)",
        _BATCH,
    ),
    "batch_pipeline_tell_upload": (
        "AFTER UPDATE OF processing_status ON uploads FOR EACH ROW "
        f"WHEN (NEW.processing_status::text = 'failed' AND NEW.error_kind IN {_QUARANTINE} "
        "AND OLD.processing_status IS DISTINCT FROM NEW.processing_status)",
        _UPLOAD,
    ),
    "batch_pipeline_tell_outage": ("AFTER INSERT ON outages FOR EACH ROW", _BEGUN),
    "batch_pipeline_tell_end": ("AFTER DELETE ON outages FOR EACH ROW", _OVER),
}


def upgrade() -> None:
    """Create tables and triggers; safe to repeat."""
    moment = TIMESTAMP(timezone=True)
    op.create_table(
        "outages",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("began_at", moment, nullable=False, server_default=_NOW),
        sa.Column("seen_at", moment, nullable=False, server_default=_NOW),
        sa.PrimaryKeyConstraint("kind", name="pk_outages"),
        if_not_exists=True,
    )
    op.create_table(
        "notifications",
        sa.Column("id", sa.Uuid, nullable=False, server_default=sa.text("gen_random_uuid()")),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("data", JSONB, nullable=False),
        sa.Column("occurred_at", moment, nullable=False, server_default=_NOW),
        sa.Column("addressed_at", moment),
        sa.PrimaryKeyConstraint("id", name="pk_notifications"),
        if_not_exists=True,
    )
    op.create_table(
        "notification_deliveries",
        sa.Column("notification_id", sa.Uuid, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_attempt_at", moment, server_default=_NOW),
        sa.Column("delivered_at", moment),
        sa.Column("answer", sa.Text),
        sa.PrimaryKeyConstraint("notification_id", "target", name="pk_notification_deliveries"),
        sa.ForeignKeyConstraint(
            ["notification_id"],
            ["notifications.id"],
            name="fk_notification_deliveries_notification_id",
            ondelete="CASCADE",
        ),
        if_not_exists=True,
    )
    op.create_index(
        "ix_notification_deliveries_next_attempt_at",
        "notification_deliveries",
        ["next_attempt_at"],
        if_not_exists=True,
    )
    path = op.get_bind().scalar(sa.text(SEARCH_PATH))
    for name, (rule, event) in _TRIGGERS.items():
        # It runs with the rights of its owner, so an upload API needs no rights on the table.
        op.execute(f"""
            CREATE OR REPLACE FUNCTION {name}() RETURNS trigger
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path}, pg_temp AS $$
            BEGIN
                INSERT INTO notifications (type, data) SELECT {event};
                RETURN NULL;
            END $$
        """)
        table = rule.split(" ON ")[1].split()[0]
        op.execute(f"DROP TRIGGER IF EXISTS {name} ON {table}")
        op.execute(f"CREATE TRIGGER {name} {rule} EXECUTE FUNCTION {name}()")
