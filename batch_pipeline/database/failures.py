"""What errors of PostgreSQL mean for us: an outage, something to fix, or a transaction to repeat.

::

    40001, 40P01         a transaction conflicted with another: `ConflictError`, see `repeated`
    08…, 53…, 57P…, 58…  the server cannot serve clients now: `ServiceDownError`
    25006                the server accepts no writes, in a failover: `ServiceDownError`
    55P03, 57014         a time limit ended a statement: `ServiceDownError`; 55P03 in
                         `short_lock_waits`: `LockedError`
    42501, 3F000         a right or a schema is missing: `ConfigurationError`, with the fix
    everything else      our mistake, or a row that a constraint refuses: raised unchanged
"""

import functools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import psycopg
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoFreeConnectionError

from batch_pipeline.database.lock_waits import LockedError, lock_waits_are_short
from batch_pipeline.errors import ConfigurationError, ServiceDownError

#: SQLSTATE classes of a server that cannot serve now: connection, resources, operator, system.
_DOWN_CLASSES = ("08", "53", "57P", "58")
#: A server that accepts no writes: a standby, or a server that has become one.
READ_ONLY = "25006"
#: A wait for a lock that was given up.
LOCK_NOT_AVAILABLE = "55P03"
#: ``lock_timeout`` or ``statement_timeout`` ended a statement, or a person did.
_ENDED_EARLY = (LOCK_NOT_AVAILABLE, "57014")
#: A deadlock, and a serialization conflict with another transaction.
_CONFLICTS = ("40P01", "40001")
#: ``RAISE EXCEPTION`` in a trigger.
_RAISED = "P0001"
#: How often a transaction that conflicts with others is tried.
_TRIES = 10
#: Longest pause before the second try (seconds). It doubles with each try, up to the second value.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0

_TO_FIX = {
    "42501": "Give the role of BATCH_PIPELINE_DATABASE_URL that right (GRANT; if it has to be the "
    "owner: ALTER TABLE … OWNER TO), or name another role",
    "3F000": "No schema of the role's search_path exists: ALTER ROLE … SET search_path = public",
}

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")


class ConflictError(ServiceDownError):
    """A transaction was rolled back in favour of another one; it may succeed when repeated."""


@contextmanager
def failures_named() -> Iterator[None]:
    """Turn errors of the database into ours, whose names say what to do next.

    Raises:
        ServiceDownError: the server cannot be reached, serves nobody now, accepts no writes, or has
            ended a statement early.
        LockedError: in `short_lock_waits`, another transaction has locked a row.
        ConflictError: the transaction conflicted with another one.
        ConfigurationError: the URL, a right or an extension is wrong; the message says what to do.
    """
    try:
        yield
    except NoFreeConnectionError as error:  # all statements in progress take very long
        raise ServiceDownError(
            "database_down", f"no connection to the database became free: {error}"
        ) from error
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
                f"the database accepts no writes; is it a standby, or in a failover? {cause}",
            ) from error
        if state == LOCK_NOT_AVAILABLE and lock_waits_are_short():
            raise LockedError("another transaction has locked its row") from error
        if state in _ENDED_EARLY:
            raise ServiceDownError(
                "database_down", f"the database ended a statement early: {cause}"
            ) from error
        if advice := _TO_FIX.get(state or ""):
            raise ConfigurationError(f"the database refuses: {cause}. {advice}") from error
        if "statement pooling" in str(cause):
            raise ConfigurationError(
                f"the pooler in front of the database has pool_mode = statement, which allows no "
                f"transaction: set it to transaction or session ({cause})"
            ) from error
        if "unsupported startup parameter" in str(cause):
            raise ConfigurationError(
                f"the pooler in front of the database refuses a parameter of the URL, such as "
                f"`options`: remove it there ({cause})"
            ) from error
        if _is_down(error, state):
            raise ServiceDownError(
                "database_down", f"the database does not answer: {cause}"
            ) from error
        if isinstance(error, ProgrammingError | psycopg.ProgrammingError) and not state:
            # The error is not from a server: the library could not read the URL.
            raise ConfigurationError(
                f"BATCH_PIPELINE_DATABASE_URL cannot be used: {cause}"
            ) from error
        raise


def sqlstate(error: BaseException) -> str | None:
    """Return the server's code for an error; None if the error is not from a server."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    # Dagster's storages use psycopg2, which calls it `pgcode`.
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def refuses_rows(error: DBAPIError) -> bool:
    """Return whether a constraint or a trigger refuses a change of rows, in tables of an API."""
    return isinstance(error, IntegrityError | DataError) or sqlstate(error) == _RAISED


def repeated(transaction: Callable[P, T]) -> Callable[P, T]:
    """Repeat a function that is one transaction, while it conflicts with other transactions.

    Raises:
        ConflictError: every try conflicted.
    """

    @functools.wraps(transaction)
    def repeat(*args: P.args, **kwargs: P.kwargs) -> T:
        pause = _FIRST_PAUSE
        for _ in range(_TRIES - 1):
            try:
                return transaction(*args, **kwargs)
            except ConflictError:
                time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - keeps two apart
                pause = min(2 * pause, _LONGEST_PAUSE)
        return transaction(*args, **kwargs)

    return repeat


def each_repeated(cls: type[C]) -> type[C]:
    """Apply `repeated` to all public methods of a class; each must be one transaction."""
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
