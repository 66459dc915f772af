"""Dumps of whole databases by PostgreSQL's own programs, and how they are restored.

A dump contains everything in a database, because tables of other programs and ours may refer to
each other. So a dump first checks whether our role may read all tables, and a restore first checks
whether it would replace tables of other programs. ``backup.py`` puts dumps and files into one
archive.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from batch_pipeline.database.connection_setup import is_pooled
from batch_pipeline.database.embedded_server import SERVER_VERSION, postgres_programs
from batch_pipeline.database.failures import LOCK_NOT_AVAILABLE, failures_named, sqlstate
from batch_pipeline.database.libpq import libpq_url
from batch_pipeline.database.relations import (
    Program,
    Relation,
    drop_statement,
    needing,
    relations_of,
)
from batch_pipeline.database.session import Database
from batch_pipeline.errors import PipelineError, RefusedError, ServiceDownError
from batch_pipeline.wording import listed

#: Longest wait of a restore for a lock that others hold (seconds).
_LOCK_SECONDS = 15
#: A statement in the head of each script of ``pg_restore``; it would lift the limit above.
_NO_LIMIT = b"SET lock_timeout = 0;"
#: What a script drops before it makes anything.
_DROPPED = re.compile(r"DROP ((?:MATERIALIZED |FOREIGN )?(?:TABLE|VIEW)|SEQUENCE) IF EXISTS (.+);")
#: An entry in the list of a dump about a schema or an extension, or a comment on one.
_ABOUT_SCHEMA = re.compile(r"\d+; \d+ \d+ (?:COMMENT - )?(SCHEMA|EXTENSION) (?:- )?(.+)")
_SCHEMAS = text("""
    SELECT 'SCHEMA' AS kind, nspname AS name FROM pg_namespace
    UNION ALL SELECT 'EXTENSION', extname FROM pg_extension
""")
_EXTENSION = re.compile(r"CREATE EXTENSION IF NOT EXISTS (.+) WITH SCHEMA (.+);")
_EXTENSIONS = text("""
    SELECT extname AS name, nspname AS schema
    FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
""")
#: SQLSTATE of a table that cannot be dropped, because others need it.
_NEEDED_BY_OTHERS = "2BP01"


def require_known_version(database: Database) -> None:
    """Refuse a server that is newer than our ``pg_dump``.

    Raises:
        RefusedError: the server is newer.
    """
    with database.transaction() as connection:
        version = int(connection.execute(text("SHOW server_version_num")).scalar_one()) // 10_000
    if version > SERVER_VERSION:
        raise RefusedError(
            f"the server is PostgreSQL {version}, our pg_dump is version {SERVER_VERSION}: use the "
            "server's own pg_dump, then copy the storage"
        )


@dataclass(frozen=True)
class DumpedDatabase:
    """A database that is dumped, or restored."""

    url: URL
    variable: str
    """Setting that names it."""
    programs: tuple[Program, ...]
    """The programs that own the database. All other tables belong to other programs."""

    def dump(self, file: Path) -> list[str]:
        """Write a dump; returns the tables of other programs that our role may not read.

        Raises:
            RefusedError: without these tables it could not be restored, our role may not read
                tables of ours, or a pooler is in front of the server.
            PipelineError: ``pg_dump`` failed.
        """
        _require_no_pooler(self.url)
        left_out = _unreadable(self)
        options = [f"--exclude-table={relation.name}" for relation in left_out]
        _run("pg_dump", "--format=custom", f"--file={file}", *options, url=self.url)
        return [relation.name for relation in left_out if not relation.is_part]


@dataclass(frozen=True)
class ReadyDump:
    """A dump that has passed all checks that are possible before a restore."""

    database: DumpedDatabase
    script: Path
    drop: str
    """Statements that drop the tables that are replaced. They also drop tables of ours that are not
    in the dump: those would conflict with the migrations that follow."""

    @classmethod
    def make(
        cls, dump: Path, database: DumpedDatabase, *, replace_others: bool = False
    ) -> "ReadyDump":
        """Replace a dump by the script that restores it; changes nothing in the database.

        Args:
            dump: a file that `DumpedDatabase.dump` wrote.
            database: where to restore it.
            replace_others: also replace tables of other programs.

        Raises:
            RefusedError: tables of other programs would be replaced, or need ours; an extension is
                in another schema; or a pooler is in front of the server.
            ConfigurationError: our role may not replace the tables.
            ServiceDownError: another transaction uses the tables.
            PipelineError: ``pg_restore`` failed.
        """
        _require_no_pooler(database.url)
        entries, script = dump.with_suffix(".list"), dump.with_suffix(".sql")
        target = Database(database.url)
        try:
            with target.transaction() as connection:
                schemas = {(row.kind, row.name) for row in connection.execute(_SCHEMAS)}
                extensions = {row.name: row.schema for row in connection.execute(_EXTENSIONS)}
                found = relations_of(connection, database.programs)
            _require_same_schemas(dump, extensions)
            _run("pg_restore", "--list", f"--file={entries}", str(dump))
            entries.write_text(_without(schemas, entries.read_text("utf-8")), "utf-8")
            _run(
                *("pg_restore", "--clean", "--if-exists", "--no-owner", "--no-privileges"),
                *(f"--use-list={entries}", f"--file={script}", str(dump)),
            )
            dump.unlink()
            _keep_limit_of_locks(script)
            dropped = _dropped(script)
            others = [
                it for it in found if not (it.is_own or it.is_part) and _as_dropped(it) in dropped
            ]
            if others and not replace_others:
                raise RefusedError(
                    f"the database {database.url.database!r} has tables of other programs that the "
                    f"backup would replace: {', '.join(it.name for it in others)}. Restore into a "
                    "new database, and copy from there what you need; or use --replace-others to "
                    "replace them, too"
                )
            drop = drop_statement([*(it for it in found if it.is_own), *others])
            _require_droppable(target, drop)
        finally:
            target.close()
        return cls(database, script, drop)

    def restore(self) -> None:
        """Restore in one transaction, so that the database is unchanged after any error.

        Raises:
            PipelineError: ``psql`` failed.
        """
        _run(
            *("psql", "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1"),
            f"--command=SET lock_timeout = '{_LOCK_SECONDS}s'",
            *([f"--command={self.drop}"] if self.drop else []),
            f"--file={self.script}",
            url=self.database.url,
        )


def _require_same_schemas(dump: Path, extensions: Mapping[str, str]) -> None:
    """Refuse a dump whose tables expect an extension in another schema than the one it is in."""
    head = dump.with_suffix(".head")
    _run("pg_restore", "--section=pre-data", f"--file={head}", str(dump))
    for name, schema in _EXTENSION.findall(head.read_text("utf-8", errors="replace")):
        here, there = extensions.get(name.strip('"')), schema.strip('"')
        if here not in {None, there}:
            raise RefusedError(
                f"the extension {name} is in the schema {here} of this database, but the tables in "
                f"the backup need it in {there}. As its owner, run: CREATE SCHEMA IF NOT "
                f"EXISTS {schema}; ALTER EXTENSION {name} SET SCHEMA {schema};"
            )
    head.unlink()


def _without(schemas: set[tuple[str, str]], entries: str) -> str:
    """Remove schemas and extensions that are there already from the list of a dump.

    The role that owns the tables need not own these, so it could not replace them.
    """
    return "".join(
        line
        for line in entries.splitlines(keepends=True)
        if not (
            (about := _ABOUT_SCHEMA.match(line))
            # The owner follows the name; both may have spaces.
            and any(kind == about[1] and about[2].startswith(f"{name} ") for kind, name in schemas)
        )
    )


def _keep_limit_of_locks(script: Path) -> None:
    with script.open("r+b") as file:
        at = file.read(1 << 12).find(_NO_LIMIT)
        if at >= 0:
            file.seek(at)
            file.write(b" " * len(_NO_LIMIT))


def _dropped(script: Path) -> set[str]:
    """Return what a script drops, as `_as_dropped` writes it."""
    dropped = set()
    with script.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("-- Name: "):  # from here on, the script creates things
                break
            if found := _DROPPED.match(line):
                dropped.add(f"{found[1]} {found[2]}".replace('"', ""))
    return dropped


def _as_dropped(relation: Relation) -> str:
    """Write a relation without quotation marks: versions quote different words."""
    return f"{relation.kind} {relation.name}".replace('"', "")


def _require_droppable(target: Database, drop: str) -> None:
    """Drop what will be replaced, and roll back: an error must come before files are written."""
    if not drop:
        return
    with failures_named(), target.engine.connect() as connection:
        try:
            connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
            connection.execution_options(no_parameters=True).exec_driver_sql(drop)
        except DBAPIError as error:
            if sqlstate(error) == LOCK_NOT_AVAILABLE:
                raise ServiceDownError(
                    "database_down",
                    "other transactions use the tables that would be replaced: stop Dagster and "
                    f"other programs that use them, then run the command again ({error.orig})",
                ) from error
            if sqlstate(error) != _NEEDED_BY_OTHERS:
                raise
            detail = getattr(getattr(error.orig, "diag", None), "message_detail", "")
            raise RefusedError(
                "our tables cannot be replaced, because other programs need them. Restore into a "
                f"new database, or drop first what needs them: {detail}"
            ) from error
        finally:
            connection.rollback()


def _unreadable(dumped: DumpedDatabase) -> list[Relation]:
    """Find tables of other programs that our role may not read, with their sequences.

    Raises:
        RefusedError: without them the backup could not be restored, or our role may not read our
            own tables.
    """
    database = Database(dumped.url)
    try:
        with database.transaction() as connection:
            role = connection.scalar(text("SELECT current_user"))
            unreadable = [
                it for it in relations_of(connection, dumped.programs) if not it.is_readable
            ]
            needed = needing(connection, unreadable)
    finally:
        database.close()
    own = [it for it in unreadable if it.is_own]
    another = f"name a role that may in BATCH_PIPELINE_{dumped.variable} for this command"
    if hidden := [it.name for it in own if it.is_filtered]:
        raise RefusedError(
            f"row-level security may hide rows of {listed(hidden)} from the role {role}, and "
            f"pg_dump needs all of them: {another}, such as the owner of the tables, or as a "
            f'superuser: ALTER ROLE "{role}" BYPASSRLS'
        )
    if own:
        raise RefusedError(
            f"the role {role} may not read {listed([it.name for it in own])}: {another}, such as "
            "the owner of the tables"
        )
    if needed:
        names = listed(sorted({f"{table} (needed by {needs})" for needs, table in needed}))
        raise RefusedError(
            f"the role {role} may not read all of {names}, and without it the backup could not be "
            f"restored: GRANT SELECT on it and its sequences (with row-level security: ALTER ROLE "
            f'"{role}" BYPASSRLS), or {another}'
        )
    return unreadable


def _run(program: str, *arguments: str, url: URL | None = None) -> None:
    """Run one of PostgreSQL's programs; no list of processes shows the password."""
    variables, target = {}, []
    if url is not None:
        bare = url.set(password=None).render_as_string(hide_password=False)
        target = [f"--dbname={libpq_url(bare)}"]
        variables = {"PGPASSWORD": url.password} if url.password else {}
    try:
        done = subprocess.run(  # noqa: S603 - the server's own program
            [postgres_programs() / program, *target, *arguments],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise PipelineError(f"{program} cannot be started: {error}") from error
    if done.returncode:
        # The statement that failed may name every table, and would hide the reason.
        said = "\n".join(
            line for line in done.stderr.splitlines() if "detail: Query was: " not in line
        )
        raise PipelineError(f"{program} failed: {said.strip()[-500:]}")


def _require_no_pooler(url: URL) -> None:
    """Refuse a pooler: its other clients would get the session settings of these programs."""
    address = libpq_url(url.render_as_string(hide_password=False))
    with failures_named(), psycopg.connect(address, connect_timeout=10) as connection:
        if is_pooled(connection):
            raise RefusedError(
                f"the address of the database {url.database!r} leads to a pooler (PgBouncer); "
                "pg_dump and psql need the server itself: set BATCH_PIPELINE_DATABASE_URL, or "
                "BATCH_PIPELINE_DAGSTER_DATABASE_URL, to its address for this command"
            )
