"""Runs the migrations on the connection that `Database.upgrade` hands over."""

from alembic import context

from batch_pipeline.database.models import Base
from batch_pipeline.database.revisions import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
