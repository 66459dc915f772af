"""Checks of everything that the pipeline needs, for people and for containers."""
