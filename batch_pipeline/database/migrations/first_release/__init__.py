"""The parts of migration 0026. They do not change: a change of a table is a new migration."""
