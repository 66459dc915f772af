"""Telling other programs and people what has happened; docs/notifications.md describes it."""
