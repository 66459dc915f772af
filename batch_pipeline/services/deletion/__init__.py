"""Deletes what a person names, and files that are provably ours and no longer needed."""
