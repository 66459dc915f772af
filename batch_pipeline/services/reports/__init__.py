"""Reads the tables for people: status, summaries, reports, metrics."""
