"""Functions with the rights of the owner refuse other tables; a trigger sees truncated uploads.

In revision 0027, every role could use these functions in triggers on a table of its own. Vectors of
uploads that were truncated stayed; they are deleted here.
"""

from alembic import op

from batch_pipeline.database import triggers
from batch_pipeline.database.migrations import commit
from batch_pipeline.database.migrations.first_release import embedding_spaces

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    """Replace the functions, and create the trigger."""
    embedding_spaces.create_function()
    triggers.create(op.get_bind(), commit)
