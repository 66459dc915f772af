"""Names of the run tags by which people and sensors find the runs of a batch."""

from collections.abc import Mapping
from uuid import UUID

from batch_pipeline.database import names
from batch_pipeline.visible_text import visible_line

BATCH_TAG = names.BATCH_TAG
#: The name of the batch, if it has one.
NAME_TAG = "batch_pipeline/batch_name"
USER_TAG = "batch_pipeline/user_id"
SLICE_TAG = "batch_pipeline/slice"
#: Why a run was launched: new, retry, rescue or reprocess.
REASON_TAG = "batch_pipeline/reason"
#: How an unsuccessful run ended: see `run_ends.RunOutcome`.
OUTCOME_TAG = "batch_pipeline/outcome"
#: Value of that tag in a run that re-executes an unsuccessful one, until it is unsuccessful itself:
#: Dagster copies the tags of the other run, and tags cannot be removed.
NOT_FAILED = "not_failed"
#: The id of the terminated run, once it has cancelled its batch. Another id was copied from a run
#: that this one re-executes.
CANCELLED_TAG = "batch_pipeline/batch_cancelled_by"
#: Why a sweep was launched.
FOUND_TAG = "batch_pipeline/found"
#: Marks the runs of our jobs.
OURS = {names.JOB_TAG: names.OUR_JOB}
#: Tags of each of our jobs. Dagster's own tag turns run retries off, because another run of ours
#: takes the uploads that a run leaves.
JOB = OURS | {"dagster/max_retries": "0"}
#: Tags of jobs that take moments: their runs go before others that wait in the queue. A pause would
#: otherwise begin after all runs that it should hold back.
SHORT_JOB = JOB | {"dagster/priority": "1"}
#: Dagster's own tag: the key that keeps a sensor from requesting the same run twice.
RUN_KEY_TAG = "dagster/run_key"


def tags_of_batch(batch_id: UUID, user_id: UUID, name: str | None) -> Mapping[str, str]:
    """Return the tags by which the runs of a batch are found."""
    tags = {BATCH_TAG: str(batch_id), USER_TAG: str(user_id)}
    return tags | ({NAME_TAG: visible_line(name)} if name else {})
