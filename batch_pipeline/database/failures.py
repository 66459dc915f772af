"""What errors of PostgreSQL mean for us: an outage, something to fix, or a transaction to repeat.

::

    40001, 40P01         a transaction gave way to another: `ConflictError`, see `repeated`
    08…, 53…, 57P…, 58…  the server serves nobody now: `ServiceDownError`
    25006                it takes no writes, in a failover: `ServiceDownError`
    42501, 3F000, 22P05  a right or a schema is missing: `ConfigurationError`, with the fix
    everything else      a mistake of ours, or a row that a constraint refuses: as it is
"""

import functools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import psycopg
from sqlalchemy.exc import DBAPIError, ProgrammingError

from batch_pipeline.errors import ConfigurationError, ServiceDownError

#: SQLSTATE classes of a server that cannot serve now: connection, resources, operator, system.
_DOWN_CLASSES = ("08", "53", "57P", "58")
#: A server that takes no writes: a standby, or one that has become one.
READ_ONLY = "25006"
#: A deadlock, and a transaction that another one overtook.
_CONFLICTS = ("40P01", "40001")
#: How often a transaction is tried that has to give way to others.
_TRIES = 10
#: Longest pause before the second try (seconds); doubled with each, up to the other.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0

_TO_FIX = {
    "42501": "give the role of BATCH_PIPELINE_DATABASE_URL that right (GRANT), or name another",
    "3F000": "no schema of the role's search_path exists: ALTER ROLE … SET search_path = public",
    "22P05": "the database's encoding has no such character: it has to be UTF8",
}

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")


class ConflictError(ServiceDownError):
    """A transaction was rolled back in favour of another one; the same again may succeed."""


@contextmanager
def failures_named() -> Iterator[None]:
    """Raise errors of the database by what to do next.

    Raises:
        ServiceDownError: the server cannot be reached, serves nobody now, or takes no writes.
        ConflictError: the transaction gave way to another one.
        ConfigurationError: the URL, a right or an extension is wrong; the message says what to do.
    """
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        state = sqlstate(error)
        if state in _CONFLICTS:
            raise ConflictError(
                "database_down", f"the database let other transactions go first: {cause}"
            ) from error
        if state == READ_ONLY:
            raise ServiceDownError(
                "database_down",
                f"the database takes no writes; is it a standby, or in a failover? {cause}",
            ) from error
        if advice := _TO_FIX.get(state or ""):
            raise ConfigurationError(f"the database refuses: {cause}\n{advice}") from error
        if "statement pooling" in str(cause):
            raise ConfigurationError(
                f"the pooler in front of the database has pool_mode = statement, which allows no "
                f"transaction: set it to transaction or session ({cause})"
            ) from error
        if "unsupported startup parameter" in str(cause):
            raise ConfigurationError(
                f"the pooler in front of the database takes no such parameter: remove it from the "
                f"URL, `options` for instance ({cause})"
            ) from error
        if _is_down(error, state):
            raise ServiceDownError(
                "database_down", f"the database does not answer: {cause}"
            ) from error
        if isinstance(error, ProgrammingError | psycopg.ProgrammingError) and not state:
            # No server was asked: the library could not read what it was told.
            raise ConfigurationError(
                f"BATCH_PIPELINE_DATABASE_URL cannot be used: {cause}"
            ) from error
        raise


def sqlstate(error: BaseException) -> str | None:
    """The server's word for an error; None if no server was asked."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlstate", None)


def repeated(transaction: Callable[P, T]) -> Callable[P, T]:
    """Repeat a function that is one transaction, while it has to give way to others.

    Raises:
        ConflictError: it had to every time.
    """

    @functools.wraps(transaction)
    def repeat(*args: P.args, **kwargs: P.kwargs) -> T:
        pause = _FIRST_PAUSE
        for _ in range(_TRIES - 1):
            try:
                return transaction(*args, **kwargs)
            except ConflictError:
                time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - parts two that collide
                pause = min(2 * pause, _LONGEST_PAUSE)
        return transaction(*args, **kwargs)

    return repeat


def each_repeated(cls: type[C]) -> type[C]:
    """Decorate a class whose public methods are one transaction each: `repeated`, all of them."""
    for name, method in list(vars(cls).items()):
        if callable(method) and not name.startswith("_"):
            setattr(cls, name, repeated(method))
    return cls


def _is_down(error: DBAPIError | psycopg.Error, state: str | None) -> bool:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    if state is None:
        return isinstance(cause, psycopg.OperationalError)
    return state.startswith(_DOWN_CLASSES)
