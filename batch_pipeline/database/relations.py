"""Tables, views and sequences of a database: whose they are, and whether our role may read them.

A backup contains a whole database, and other programs may have tables in it, too. A person must be
told before one of those is replaced, or if one is missing from a backup.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from batch_pipeline.database.models import Base
from batch_pipeline.database.names import DAGSTER_TABLES
from batch_pipeline.database.revisions import VERSION_TABLE

_SPACE_TABLE = re.compile("upload_vectors_[0-9]+")
#: A sequence belongs to the table that uses it, and cannot be backed up without it.
_RELATIONS = text("""
    WITH found AS (
        SELECT c.oid, n.nspname AS schema, c.relname AS bare,
            format('%I.%I', n.nspname, c.relname) AS name,
            CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
            coalesce(s.refobjid, c.oid) AS of_table,
            c.relkind IN ('r', 'p', 'S') AND NOT (has_schema_privilege(n.oid, 'USAGE') AND CASE
                WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                ELSE has_table_privilege(c.oid, 'SELECT') END) AS forbidden,
            c.relkind IN ('r', 'p') AND row_security_active(c.oid) AS filtered
        FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_depend s ON c.relkind = 'S' AND s.classid = 'pg_class'::regclass
            AND s.objid = c.oid AND s.refclassid = 'pg_class'::regclass
            AND s.deptype IN ('a', 'i')
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
            AND NOT EXISTS (
                SELECT FROM pg_depend e
                WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e'
            )
    )
    SELECT oid, of_table, schema, bare, name, kind, bool_or(forbidden) OVER own AS forbidden,
        bool_or(filtered) OVER own AS filtered,
        oid IN (to_regclass('uploads'), to_regclass('upload_batches')) AS visible
    FROM found WINDOW own AS (PARTITION BY of_table) ORDER BY name
""")
_SCHEMA_OF = text("""
    SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass(:table)
""")
#: Foreign keys, views, defaults, policies and partitions of other tables that need one of these.
_NEEDING = text("""
    SELECT DISTINCT coalesce(k.conrelid, r.ev_class, a.adrelid, p.polrelid, h.inhrelid)::regclass
        ::text AS needing, d.refobjid::regclass::text AS needed
    FROM pg_depend d
    LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
    LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    LEFT JOIN pg_attrdef a ON d.classid = 'pg_attrdef'::regclass AND a.oid = d.objid
    LEFT JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
    LEFT JOIN pg_inherits h ON d.classid = 'pg_class'::regclass AND h.inhrelid = d.objid
        AND h.inhparent = d.refobjid
    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY(:oids)
        AND coalesce(k.conrelid, r.ev_class, a.adrelid, p.polrelid, h.inhrelid) <> ALL(:oids)
    ORDER BY 1, 2
""")
_DROP_ORDER = ("VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE", "TABLE", "SEQUENCE")


@dataclass(frozen=True)
class Program:
    """A program whose tables a backup is for."""

    tables: frozenset[str]
    markers: tuple[str, ...]
    """Tables whose names no other program uses. All tables of the program are in the same schema as
    these; a table in another schema belongs to another program."""


PIPELINE = Program(frozenset({*Base.metadata.tables, VERSION_TABLE}), (VERSION_TABLE,))
#: Dagster uses Alembic with its usual table. It has three storages, and makes the tables of each
#: storage at its first use. So each storage has a marker.
DAGSTER = Program(
    DAGSTER_TABLES | {"alembic_version"}, ("event_logs", "daemon_heartbeats", "instigators")
)


@dataclass(frozen=True)
class Relation:
    """A table, a view or a sequence."""

    oid: int
    of_table: int
    """For a sequence that a table owns: ``oid`` of the table. Else its own."""
    name: str
    """Name with its schema, quoted where SQL needs it."""
    kind: str
    """``TABLE``, ``VIEW``, ``MATERIALIZED VIEW``, ``FOREIGN TABLE`` or ``SEQUENCE``."""
    is_own: bool
    """Whether it belongs to one of the programs, and not to another one."""
    is_forbidden: bool
    """Whether our role lacks the right to read it, or a sequence of it."""
    is_filtered: bool
    """Whether row-level security may hide rows of it from our role."""

    @property
    def is_part(self) -> bool:
        """Whether it is a sequence that belongs to a table."""
        return self.of_table != self.oid

    @property
    def is_readable(self) -> bool:
        """Whether our role may read all of it."""
        return not (self.is_forbidden or self.is_filtered)


def relations_of(connection: Connection, programs: Iterable[Program]) -> list[Relation]:
    """List what a database contains, without members of extensions.

    The tables of batches and uploads always count as ours, because an upload API may have made
    them.
    """
    named = {
        (connection.scalar(_SCHEMA_OF, {"table": marker}), table)
        for program in programs
        for marker in program.markers
        for table in program.tables
    }
    spaces = {schema for schema, table in named if table == VERSION_TABLE}
    rows = connection.execute(_RELATIONS).all()
    own = {
        row.oid
        for row in rows
        if row.visible
        or (row.schema, row.bare) in named
        or (row.schema in spaces and _SPACE_TABLE.fullmatch(row.bare))
    }
    return [
        Relation(
            row.oid,
            row.of_table,
            row.name,
            row.kind,
            row.of_table in own,
            row.forbidden,
            row.filtered,
        )
        for row in rows
    ]


def needing(connection: Connection, left_out: Collection[Relation]) -> Sequence[tuple[str, str]]:
    """List tables and views that cannot be restored without others, each with what it needs."""
    oids = [relation.oid for relation in left_out]
    return [(row.needing, row.needed) for row in connection.execute(_NEEDING, {"oids": oids})]


def drop_statement(relations: Iterable[Relation]) -> str:
    """Return statements that drop relations; they fail if anything else depends on these."""
    names: dict[str, list[str]] = {kind: [] for kind in _DROP_ORDER}
    for relation in relations:
        if not relation.is_part:  # a part goes with its table
            names[relation.kind].append(relation.name)
    return "; ".join(
        f"DROP {kind} IF EXISTS {', '.join(named)}" for kind, named in names.items() if named
    )
