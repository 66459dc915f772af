"""Names in databases, in a module that imports nothing: a health check must start quickly."""

#: Database of Dagster's tables, beside the pipeline's on the same server.
DAGSTER_DATABASE = "dagster"
#: Tag of the runs of a batch.
BATCH_TAG = "batch_pipeline/batch_id"
#: Tag of the runs of our jobs. Another project in the same instance may have jobs of these names.
JOB_TAG = "batch_pipeline/job"
#: Value of this tag.
OUR_JOB = "true"
#: Statuses of runs that wait in the queue, or that have or should have a process of their own.
RUNS_IN_FLIGHT = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")
#: Tables of Dagster's storages. A test compares them with Dagster's own definitions.
DAGSTER_TABLES = frozenset(
    {
        "asset_check_executions",
        "asset_daemon_asset_evaluations",
        "asset_event_tags",
        "asset_keys",
        "backfill_tags",
        "bulk_actions",
        "concurrency_limits",
        "concurrency_slots",
        "daemon_heartbeats",
        "dynamic_partitions",
        "event_logs",
        "instance_info",
        "instigators",
        "job_ticks",
        "jobs",
        "kvs",
        "pending_steps",
        "run_tags",
        "runs",
        "secondary_indexes",
        "snapshots",
    }
)
