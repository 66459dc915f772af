"""Dagster's own storage: on the pipeline's server, with pools and grouped event writes."""
