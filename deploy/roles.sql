-- Three roles for our database, each with the rights that it needs (docs/security.md). Run this once in
-- that database, as a role that may create roles and extensions. Then set their passwords (\password).
--
-- owner   batch-pipeline db upgrade, db restore, spaces drop: they create, replace or drop tables
-- worker  everything else that runs: code server, run workers, daemon, web server, other commands
-- reader  dashboards and other programs that only read

CREATE EXTENSION IF NOT EXISTS vector;

CREATE ROLE batch_pipeline_owner LOGIN;
CREATE ROLE batch_pipeline_worker LOGIN;
CREATE ROLE batch_pipeline_reader LOGIN;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT CREATE ON SCHEMA public TO batch_pipeline_owner;

-- Default privileges also apply to the tables of later versions.
ALTER DEFAULT PRIVILEGES FOR ROLE batch_pipeline_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO batch_pipeline_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE batch_pipeline_owner IN SCHEMA public
    GRANT USAGE, SELECT ON SEQUENCES TO batch_pipeline_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE batch_pipeline_owner IN SCHEMA public
    GRANT SELECT ON TABLES TO batch_pipeline_reader;

-- Dagster keeps its runs and events in a database of its own, and creates the tables there itself:
--   CREATE DATABASE dagster OWNER batch_pipeline_worker;
