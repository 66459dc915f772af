"""Turns batches of uploaded photos and videos into searchable knowledge, on Dagster."""
