"""Our own tables, without those of embedding spaces. ``models.py`` describes each column."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

_MOMENT = TIMESTAMP(timezone=True)
_NEW_ID = sa.text("gen_random_uuid()")
_NOW = sa.func.now()
_CLOCK = sa.func.clock_timestamp()


def create() -> None:
    """Create the tables that are missing, their indexes, and the identity of the database."""
    _create_tables_of_model_calls()
    _create_tables_of_dispatch()
    _create_tables_of_notifications()
    _create(
        "database_identity",
        sa.Column("id", sa.Uuid, server_default=_NEW_ID, nullable=False),
        key=["id"],
    )
    op.execute(
        "INSERT INTO database_identity (id) SELECT gen_random_uuid() "
        "WHERE NOT EXISTS (SELECT FROM database_identity)"
    )
    # Thumbnails of development versions have no record, so they are never removed as leftovers.
    _create(
        "made_thumbnails",
        sa.Column("upload_id", sa.Uuid, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("made_at", _MOMENT, server_default=_NOW, nullable=False),
        key=["upload_id"],
    )


def _create(table: str, *parts: sa.schema.SchemaItem, key: list[str]) -> None:
    op.create_table(
        table, *parts, sa.PrimaryKeyConstraint(*key, name=f"pk_{table}"), if_not_exists=True
    )


def _create_index(name: str, table: str, column: str) -> None:
    op.create_index(name, table, [column], if_not_exists=True)


def _create_tables_of_model_calls() -> None:
    _create(
        "model_call_slots",
        sa.Column("server", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("holder", sa.Uuid, nullable=False),
        sa.Column("wanted", sa.Integer, nullable=False),
        sa.Column("held", sa.Integer, nullable=False),
        sa.Column("since", _MOMENT, nullable=False),
        sa.Column("leased_until", _MOMENT, nullable=False),
        key=["server", "kind", "holder"],
    )
    _create(
        "model_pauses",
        sa.Column("server", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("not_before", _MOMENT, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        key=["server", "kind"],
    )
    _create(
        "model_calls",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("upload_id", sa.Uuid),
        sa.Column("batch_id", sa.Uuid),
        sa.Column("user_id", sa.Uuid),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("tokens_in", sa.Integer, nullable=False),
        sa.Column("tokens_out", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("answered_at", _MOMENT, server_default=_NOW, nullable=False),
        key=["id"],
    )
    _create_index("ix_model_calls_upload", "model_calls", "upload_id")
    _create_index("ix_model_calls_batch", "model_calls", "batch_id")
    _create_index("ix_model_calls_user", "model_calls", "user_id")
    _create_index("ix_model_calls_answered_at", "model_calls", "answered_at")
    _create(
        "descriptions_in_work",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("checksum", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("upload_id", sa.Uuid, nullable=False),
        sa.Column("claim_token", sa.BigInteger, nullable=False),
        sa.Column("taken_at", _MOMENT, server_default=_NOW, nullable=False),
        key=["user_id", "checksum", "fingerprint"],
    )


def _create_tables_of_dispatch() -> None:
    _create(
        "asked_slices",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("asked_at", _MOMENT, server_default=_NOW, nullable=False),
        key=["key"],
    )
    _create(
        "batches_to_recount",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("batch_id", sa.Uuid, nullable=False),
        key=["id"],
    )
    _create(
        "work_pauses",
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("target", sa.Text, server_default="", nullable=False),
        sa.Column("reason", sa.Text, server_default="", nullable=False),
        sa.Column("since", _MOMENT, server_default=_NOW, nullable=False),
        key=["scope", "target"],
    )


def _create_tables_of_notifications() -> None:
    _create(
        "outages",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("began_at", _MOMENT, server_default=_CLOCK, nullable=False),
        sa.Column("seen_at", _MOMENT, server_default=_CLOCK, nullable=False),
        key=["kind"],
    )
    _create(
        "notifications",
        sa.Column("id", sa.Uuid, server_default=_NEW_ID, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("data", JSONB, nullable=False),
        sa.Column("occurred_at", _MOMENT, server_default=_CLOCK, nullable=False),
        sa.Column("addressed_at", _MOMENT),
        key=["id"],
    )
    _create(
        "notification_deliveries",
        sa.Column("notification_id", sa.Uuid, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, server_default="0", nullable=False),
        sa.Column("next_attempt_at", _MOMENT, server_default=_CLOCK),
        sa.Column("delivered_at", _MOMENT),
        sa.Column("answer", sa.Text),
        sa.ForeignKeyConstraint(
            ["notification_id"],
            ["notifications.id"],
            name="fk_notification_deliveries_notification_id",
            ondelete="CASCADE",
        ),
        key=["notification_id", "target"],
    )
    _create_index(
        "ix_notification_deliveries_next_attempt_at", "notification_deliveries", "next_attempt_at"
    )
