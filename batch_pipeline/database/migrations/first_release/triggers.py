"""Triggers on the tables of batches and uploads. They fire whichever program writes the rows.

The stages of an upload only evaluate conditions: PostgreSQL checks the condition of a row trigger
before it calls the function.
"""

from dataclasses import dataclass

import sqlalchemy as sa
from alembic import op

from batch_pipeline.database.migrations import SEARCH_PATH, commit

_OPEN = "('pending', 'processing')"
_IN_WORK = "('analyzing', 'embedding')"
_ENDED = "('completed', 'failed', 'cancelled')"
_QUARANTINE = "('killed_worker', 'model_server_crash')"
_LOCAL_USER = "'00000000-0000-0000-0000-000000000000'::uuid"


@dataclass(frozen=True)
class _Function:
    """A function that triggers call. It returns NULL, as a trigger after the change may do.

    It runs with the rights of its owner, so an upload API needs no rights on our tables.
    """

    does: str
    """SQL statement."""
    triggers: dict[str, str]
    """By name: when the trigger fires, on which table, and under which condition."""


#: Tells sensors that uploads wait (`services/dispatch/signals.py`).
_SIGNAL = _Function(
    "PERFORM pg_notify('batch_pipeline_work', '')",
    {
        "batch_pipeline_uploads_added": "AFTER INSERT ON uploads FOR EACH STATEMENT",
        "batch_pipeline_upload_waits": (
            "AFTER UPDATE OF processing_status, owner_run_id, batch_id ON uploads FOR EACH ROW "
            "WHEN (NEW.processing_status = 'pending' AND NEW.owner_run_id IS NULL AND ("
            "OLD.processing_status <> 'pending' OR OLD.owner_run_id IS NOT NULL "
            "OR OLD.batch_id IS DISTINCT FROM NEW.batch_id))"
        ),
        # When a batch has begun, its other slices may start. When a batch is reopened, its uploads
        # may already be pending.
        "batch_pipeline_batch_opened": (
            "AFTER UPDATE OF status ON upload_batches FOR EACH ROW "
            f"WHEN (NEW.status IN {_OPEN} AND NEW.status <> OLD.status)"
        ),
    },
)

# Remember ended batches in which another program has changed something. Open batches need no
# record: their counters are updated with every change, and the sweep checks them.
_RECOUNT = f"""
    INSERT INTO batches_to_recount (batch_id)
    SELECT id FROM upload_batches
    WHERE id IN ({{batch_ids}}) AND coalesce(status::text, '') NOT IN {_OPEN}
"""  # noqa: S608 - of constants
_RECOUNT_OF_STATEMENT = _Function(
    _RECOUNT.format(batch_ids="SELECT batch_id FROM changed"),
    {
        "batch_pipeline_uploads_came": (
            "AFTER INSERT ON uploads REFERENCING NEW TABLE AS changed FOR EACH STATEMENT"
        ),
        "batch_pipeline_uploads_gone": (
            "AFTER DELETE ON uploads REFERENCING OLD TABLE AS changed FOR EACH STATEMENT"
        ),
    },
)
_RECOUNT_OF_ROW = _Function(
    _RECOUNT.format(batch_ids="OLD.batch_id, NEW.batch_id"),
    {
        # Our own changes go through the two statuses in progress, and we count them ourselves.
        "batch_pipeline_upload_changed": (
            "AFTER UPDATE OF processing_status, batch_id ON uploads FOR EACH ROW WHEN ("
            "OLD.batch_id IS DISTINCT FROM NEW.batch_id OR ("
            "OLD.processing_status IS DISTINCT FROM NEW.processing_status "
            f"AND coalesce(OLD.processing_status::text, '') NOT IN {_IN_WORK} "
            f"AND coalesce(NEW.processing_status::text, '') NOT IN {_IN_WORK}))"
        ),
    },
)

# The outbox of notifications, written in the transaction that causes the event.
_TELL = "INSERT INTO notifications (type, data) SELECT {event}"
_BATCH_ENDED = _Function(
    _TELL.format(
        event="""
            'batch.' || NEW.status::text, jsonb_build_object(
                'batch_id', NEW.id, 'user_id', NEW.user_id, 'name', NEW.name,
                'status', NEW.status::text, 'total', coalesce(NEW.total_uploads, 0),
                'successful', coalesce(NEW.successful_uploads, 0),
                'failed', coalesce(NEW.failed_uploads, 0), 'reason', NEW.error_message)
        """
    ),
    {
        "batch_pipeline_tell_batch": (
            "AFTER UPDATE OF status ON upload_batches FOR EACH ROW "
            f"WHEN (NEW.status::text IN {_ENDED} AND OLD.status IS DISTINCT FROM NEW.status)"
        )
    },
)
_UPLOAD_QUARANTINED = _Function(
    _TELL.format(
        event="""
            'upload.quarantined', jsonb_build_object(
                'upload_id', NEW.id, 'batch_id', NEW.batch_id, 'user_id', NEW.user_id,
                'filename', NEW.filename, 'error_kind', NEW.error_kind,
                'reason', NEW.error_message)
        """
    ),
    {
        "batch_pipeline_tell_upload": (
            "AFTER UPDATE OF processing_status ON uploads FOR EACH ROW "
            f"WHEN (NEW.processing_status::text = 'failed' AND NEW.error_kind IN {_QUARANTINE} "
            "AND OLD.processing_status IS DISTINCT FROM NEW.processing_status)"
        )
    },
)
_OUTAGE_BEGUN = _Function(
    _TELL.format(
        event="""
            'outage.begun', jsonb_build_object(
                'kind', NEW.kind, 'reason', NEW.reason, 'began_at', NEW.began_at)
        """
    ),
    {"batch_pipeline_tell_outage": "AFTER INSERT ON outages FOR EACH ROW"},
)
_OUTAGE_ENDED = _Function(
    _TELL.format(
        event="""
            'outage.ended', jsonb_build_object(
                'kind', OLD.kind, 'reason', OLD.reason, 'began_at', OLD.began_at,
                'seconds', round(extract(epoch FROM clock_timestamp() - OLD.began_at)))
        """
    ),
    {"batch_pipeline_tell_end": "AFTER DELETE ON outages FOR EACH ROW"},
)

#: A foreign key is not used, because it would keep an upload API from truncating its table.
_UPLOADS_DELETED = _Function(
    "DELETE FROM upload_vectors WHERE upload_id IN (SELECT id FROM gone)",
    {
        "batch_pipeline_vectors_of_gone_uploads": (
            "AFTER DELETE ON uploads REFERENCING OLD TABLE AS gone FOR EACH STATEMENT"
        )
    },
)
#: A user who gets embedded uploads from another one is answered by the same embedding space. The
#: lock keeps the space from being dropped before this row names it.
_UPLOAD_GIVEN_AWAY = _Function(
    f"""
        INSERT INTO answering_spaces (user_id, space_id)
        SELECT coalesce(NEW.user_id, {_LOCAL_USER}), space_id FROM answering_spaces
        WHERE user_id = coalesce(OLD.user_id, {_LOCAL_USER}) FOR SHARE
        ON CONFLICT DO NOTHING
    """,  # noqa: S608 - of constants
    {
        "batch_pipeline_answer_next_user": (
            "AFTER UPDATE OF user_id ON uploads FOR EACH ROW WHEN ("
            "OLD.user_id IS DISTINCT FROM NEW.user_id AND NEW.embedding_model IS NOT NULL)"
        )
    },
)

_FUNCTIONS = {
    "batch_pipeline_signal_work": _SIGNAL,
    "batch_pipeline_note_changed_batches": _RECOUNT_OF_STATEMENT,
    "batch_pipeline_note_changed_upload": _RECOUNT_OF_ROW,
    "batch_pipeline_tell_batch": _BATCH_ENDED,
    "batch_pipeline_tell_upload": _UPLOAD_QUARANTINED,
    "batch_pipeline_tell_outage": _OUTAGE_BEGUN,
    "batch_pipeline_tell_end": _OUTAGE_ENDED,
    "batch_pipeline_vectors_of_gone_uploads": _UPLOADS_DELETED,
    "batch_pipeline_answer_next_user": _UPLOAD_GIVEN_AWAY,
}


def create() -> None:
    """Create functions and triggers, or replace them by the same ones."""
    path = op.get_bind().scalar(sa.text(SEARCH_PATH))
    for name, function in _FUNCTIONS.items():
        op.execute(f"""
            CREATE OR REPLACE FUNCTION {name}() RETURNS trigger
            LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path}, pg_temp AS $$
            BEGIN
                {function.does};
                RETURN NULL;
            END $$
        """)
        for trigger, rule in function.triggers.items():
            table = rule.split(" ON ")[1].split()[0]
            op.execute(f"DROP TRIGGER IF EXISTS {trigger} ON {table}")
            op.execute(f"CREATE TRIGGER {trigger} {rule} EXECUTE FUNCTION {name}()")
            commit()
