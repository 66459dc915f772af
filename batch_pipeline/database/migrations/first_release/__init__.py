"""The parts of migration 0026. After the release, a change of a table is a new migration."""
