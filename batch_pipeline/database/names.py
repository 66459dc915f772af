"""Names of databases, in a module that imports nothing: a health check must start quickly."""

#: Database of Dagster's tables, beside the pipeline's on the same server.
DAGSTER_DATABASE = "dagster"
