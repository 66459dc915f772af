"""Notifies other programs and people of events; see docs/notifications.md."""
