"""Backup of databases and files in one archive, and its restore."""
