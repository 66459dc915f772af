"""Names of the run tags by which people and sensors find the runs of a batch."""

BATCH_TAG = "batch_pipeline/batch_id"
#: What people call the batch, if it has a name.
NAME_TAG = "batch_pipeline/batch_name"
USER_TAG = "batch_pipeline/user_id"
SLICE_TAG = "batch_pipeline/slice"
#: Why a run was launched: new, retry, rescue or reprocess.
REASON_TAG = "batch_pipeline/reason"
#: How a run ended that was no success: see `run_ends.Outcome`.
OUTCOME_TAG = "batch_pipeline/outcome"
#: What a sweep was launched for.
FOUND_TAG = "batch_pipeline/found"
#: Dagster's own, on our jobs: what a run leaves goes to another run of ours, not to a retry of it.
NO_RUN_RETRIES = {"dagster/max_retries": "0"}
#: Dagster's own: the key by which a sensor does not ask twice for the same run.
RUN_KEY_TAG = "dagster/run_key"
