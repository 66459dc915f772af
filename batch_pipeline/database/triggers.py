"""Triggers on the tables of batches and uploads. They fire whichever program writes the rows.

The stages of an upload call no function: PostgreSQL checks the condition of a row trigger first,
and the conditions are false for them.

Migrations create them. ``db upgrade`` also creates those that are missing afterwards: an upload API
has to drop them before it can change the type of a column that they read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, text

from batch_pipeline.database.existing_tables import Problem
from batch_pipeline.database.models import IN_WORK, OPEN_BATCH, sql_list
from batch_pipeline.database.readings import WAITING_SQL

#: Selects the schemas in which functions of ours find tables, when they run with our rights: the
#: tables of an upload API may be in another schema than ours. ``pg_temp`` has to follow them, or
#: tables and types of the caller would come first.
SEARCH_PATH = """
    SELECT string_agg(quote_ident(name), ', ' ORDER BY place)
    FROM unnest(current_schemas(false)) WITH ORDINALITY AS schemas (name, place)
"""

_OPEN = sql_list(OPEN_BATCH)
_IN_WORK = sql_list(IN_WORK)
_ENDED = "('completed', 'failed', 'cancelled')"
_QUARANTINE = "('killed_worker', 'model_server_crash')"
_LOCAL_USER = "'00000000-0000-0000-0000-000000000000'::uuid"
#: The row after a change is an upload that no run has taken.
_WAITS = WAITING_SQL.replace("uploads.", "NEW.")


@dataclass(frozen=True)
class _Function:
    """A function that triggers call. It returns NULL, as a trigger after the change may do.

    It runs with the rights of its owner, so an upload API needs no rights on our tables. Therefore
    it refuses all tables except those of its triggers. Otherwise a role with few rights could make
    a trigger on a table of its own, and so choose what is deleted or sent, and column types whose
    casts run code.
    """

    does: str
    """SQL statements."""
    triggers: dict[str, str]
    """By name: when the trigger fires, on which table, and under which condition."""

    @property
    def tables(self) -> list[str]:
        """The tables of its triggers."""
        return sorted({_table_of(rule) for rule in self.triggers.values()})


def _table_of(rule: str) -> str:
    return rule.partition(" ON ")[2].partition(" ")[0]


#: Tells sensors that uploads wait (`services/dispatch/signals.py`).
_SIGNAL = _Function(
    "PERFORM pg_notify('batch_pipeline_work', '')",
    {
        "batch_pipeline_uploads_added": "AFTER INSERT ON uploads FOR EACH STATEMENT",
        "batch_pipeline_upload_waits": (
            "AFTER UPDATE OF processing_status, owner_run_id, batch_id ON uploads FOR EACH ROW "
            f"WHEN ({_WAITS} AND ("
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

_HAS_ENDED = f"coalesce(status::text, '') NOT IN {_OPEN}"
# Remember ended batches in which another program has changed something. Open batches need no
# record: their counters are updated with every change, and the sweep checks them.
_RECOUNT = f"""
    INSERT INTO batches_to_recount (batch_id)
    SELECT id FROM upload_batches
    WHERE id IN ({{batch_ids}}) AND {_HAS_ENDED}
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
_FORGET_VECTORS = """
    DELETE FROM upload_vectors
    WHERE NOT EXISTS (SELECT FROM uploads WHERE uploads.id = upload_vectors.upload_id)
"""
#: A trigger does not see the truncated rows. Vectors are deleted, not truncated: that would lock
#: them after uploads, and searches lock them in the other order.
_UPLOADS_TRUNCATED = _Function(
    f"""
        {_FORGET_VECTORS};
        INSERT INTO batches_to_recount (batch_id) SELECT id FROM upload_batches WHERE {_HAS_ENDED}
    """,  # noqa: S608 - of constants
    {"batch_pipeline_uploads_truncated": "AFTER TRUNCATE ON uploads FOR EACH STATEMENT"},
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

#: By name.
FUNCTIONS = {
    "batch_pipeline_signal_work": _SIGNAL,
    "batch_pipeline_note_changed_batches": _RECOUNT_OF_STATEMENT,
    "batch_pipeline_note_changed_upload": _RECOUNT_OF_ROW,
    "batch_pipeline_tell_batch": _BATCH_ENDED,
    "batch_pipeline_tell_upload": _UPLOAD_QUARANTINED,
    "batch_pipeline_tell_outage": _OUTAGE_BEGUN,
    "batch_pipeline_tell_end": _OUTAGE_ENDED,
    "batch_pipeline_vectors_of_gone_uploads": _UPLOADS_DELETED,
    "batch_pipeline_note_truncated_uploads": _UPLOADS_TRUNCATED,
    "batch_pipeline_answer_next_user": _UPLOAD_GIVEN_AWAY,
}
_TABLES = {
    trigger: _table_of(rule)
    for function in FUNCTIONS.values()
    for trigger, rule in function.triggers.items()
}

#: A trigger that is disabled, or that fires only in a replica, does not count as enabled.
_TRIGGERS = text("""
    SELECT tgname AS name, tgenabled IN ('O', 'A') AS enabled FROM pg_trigger
    WHERE tgname = ANY (:names) AND tgrelid IN (
        to_regclass('uploads'), to_regclass('upload_batches'), to_regclass('outages')
    )
""")
_SCHEMAS = text("""
    SELECT c.relname AS table, quote_literal(n.nspname) AS schema
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid IN ('uploads'::regclass, 'upload_batches'::regclass, 'outages'::regclass)
""")
#: The source of a function; NULL: there is none, or every role may execute it.
_SOURCE = text("""
    SELECT prosrc FROM pg_proc
    WHERE oid = to_regprocedure(:function) AND NOT EXISTS (
        SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE grantee = 0
    )
""")


def create(
    connection: Connection, commit: Callable[[], None], *, replace: bool = False
) -> list[str]:
    """Create functions and triggers that are missing, and return the names of these triggers.

    Functions whose source differs are replaced. If none differs, no rights are needed. Vectors of
    uploads that were deleted while the trigger for them was missing are deleted.

    Args:
        connection: sees our tables and those of the upload API.
        commit: commits what was done so far. It is called after each trigger, so that the lock of a
            table is not held while this waits for that of another one.
        replace: also replace triggers of the same names, of development versions.
    """
    _create_functions(connection)
    commit()
    found = set() if replace else set(_found(connection))
    created = sorted(set(_TABLES) - found)
    for name, function in FUNCTIONS.items():
        for trigger, rule in function.triggers.items():
            if trigger in created:
                connection.execute(text(f"DROP TRIGGER IF EXISTS {trigger} ON {_table_of(rule)}"))
                statement = f"CREATE TRIGGER {trigger} {rule} EXECUTE FUNCTION {name}()"
                connection.execute(text(statement))
                if function in (_UPLOADS_DELETED, _UPLOADS_TRUNCATED):
                    # In the same transaction: if it is interrupted, the next upgrade repeats both.
                    connection.execute(text(_FORGET_VECTORS))
                commit()
    return created


def trigger_problems(connection: Connection) -> Iterator[Problem]:
    """Find triggers that are missing or disabled."""
    found = _found(connection)
    if missing := sorted(set(_TABLES) - set(found)):
        yield Problem(
            f"triggers are missing, so vectors of deleted uploads stay, and changes by other "
            f"programs are not noticed ({', '.join(missing)})",
            "run `batch-pipeline db upgrade`",
        )
    for name in sorted(name for name, enabled in found.items() if not enabled):
        yield Problem(
            f"the trigger {name} of {_TABLES[name]} is disabled",
            f"ALTER TABLE {_TABLES[name]} ENABLE TRIGGER {name};",
        )


def _found(connection: Connection) -> dict[str, bool]:
    """Return which of our triggers there are, and whether they are enabled."""
    rows = connection.execute(_TRIGGERS, {"names": list(_TABLES)})
    return {row.name: row.enabled for row in rows}


def _create_functions(connection: Connection) -> None:
    path = connection.scalar(text(SEARCH_PATH))
    schemas = {row.table: row.schema for row in connection.execute(_SCHEMAS)}
    for name, function in FUNCTIONS.items():
        source = _source(function, schemas)
        if connection.scalar(_SOURCE, {"function": f"{name}()"}) == source:
            continue
        connection.execute(
            text(f"""
                CREATE OR REPLACE FUNCTION {name}() RETURNS trigger
                LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path}, pg_temp AS $${source}$$
            """)
        )
        # Only creating a trigger needs this right, firing does not. A restore grants it again, so
        # the function also checks the table.
        connection.execute(text(f"REVOKE EXECUTE ON FUNCTION {name}() FROM PUBLIC"))


def _source(function: _Function, schemas: dict[str, str]) -> str:
    # The function compares schema and name: no other table has both, and a restore changes neither.
    tables = ", ".join(f"({schemas[table]}, '{table}')" for table in function.tables)
    return f"""
        BEGIN
            IF (TG_TABLE_SCHEMA, TG_TABLE_NAME) NOT IN ({tables}) THEN
                RAISE insufficient_privilege USING MESSAGE = pg_catalog.format(
                    'the trigger %I does not work for the table %I.%I: if the pipeline uses this '
                    'table, run `batch-pipeline db upgrade`, else drop the trigger',
                    TG_NAME, TG_TABLE_SCHEMA, TG_TABLE_NAME);
            END IF;
            {function.does};
            RETURN NULL;
        END """
