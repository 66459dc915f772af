"""All that Dagster sees; the rooms below know nothing of it."""
