"""Statements that are transactions of their own, and are executed past SQLAlchemy.

SQLAlchemy compiles them, once. To execute one through it takes 0.25 ms of processor time, 0.17 of
them its own (an UPDATE of one row that returns it, 2 cores); with BEGIN and COMMIT around it, 0.31.
What every upload goes through is worth the difference.
"""

from collections.abc import Mapping
from typing import Any

from psycopg import Connection
from psycopg.rows import namedtuple_row
from sqlalchemy import Insert, Select, Update
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]


class LoneStatement:
    """A statement that returns at most one row.

    Args:
        statement: without ``IN`` over a list of values, whose SQL depends on them.
    """

    def __init__(self, statement: Insert | Update | Select[Any]) -> None:
        self.statement = statement
        compiled: Any = statement.compile(dialect=_DIALECT)
        self._sql = str(compiled).encode()
        self._constants: dict[str, Any] = {}
        self._processors: dict[str, Any] = {}
        for parameter, name in compiled.bind_names.items():
            process = parameter.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)
            if not parameter.required:
                value = parameter.effective_value
                self._constants[name] = process(value) if process else value
            elif process:
                self._processors[name] = process

    def execute(self, connection: Connection[Any], parameters: Mapping[str, Any]) -> Any:
        """Execute it on a connection in autocommit; returns a named tuple, or None."""
        values = {**self._constants, **parameters}
        for name, process in self._processors.items():
            values[name] = process(values[name])
        return connection.cursor(row_factory=namedtuple_row).execute(self._sql, values).fetchone()
