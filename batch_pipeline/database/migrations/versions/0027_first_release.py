"""All tables of the first release.

No table has to exist before, neither ours nor those of an upload API. Existing tables stay, and
only what is missing is added. So the migration can be run again and continues where it stopped, and
it upgrades the databases of the development versions, whose revisions were 0001 to 0026.
"""

from alembic import op

from batch_pipeline.database import triggers
from batch_pipeline.database.migrations import commit
from batch_pipeline.database.migrations.first_release import (
    embedding_spaces,
    own_tables,
    statistics,
    uploads,
    words,
)

revision = "0027"
down_revision = None


def upgrade() -> None:
    """Create what is missing, while other programs write."""
    words.create_functions()
    uploads.create_or_extend()
    own_tables.create()
    embedding_spaces.create()
    triggers.create(op.get_bind(), commit, replace=True)
    embedding_spaces.copy_vectors_of_uploads()
    statistics.create()
