"""Names in databases, in a module that imports nothing: a health check must start quickly."""

#: Database of Dagster's tables, beside the pipeline's on the same server.
DAGSTER_DATABASE = "dagster"
#: Tag of the runs of a batch.
BATCH_TAG = "batch_pipeline/batch_id"
