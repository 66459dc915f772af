"""Turns batches of uploaded photos and videos into searchable knowledge, orchestrated by Dagster."""
