"""Names of databases; importing it costs nothing, as a health check needs."""

#: Database of Dagster's tables, beside the pipeline's on the same server.
DAGSTER_DATABASE = "dagster"
