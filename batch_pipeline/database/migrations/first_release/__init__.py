"""The parts of migration 0027. After the release, a change of a table is a new migration."""
