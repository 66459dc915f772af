"""Jobs, sensors, assets and everything else that Dagster loads."""
