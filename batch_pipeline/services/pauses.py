"""Pauses of everything, a user, a batch or a model server.

A pause stops work that has not begun. A model call in flight still ends, and its result is stored.
One second after the pause is committed, no new call begins. The rule for batches is one SQL
condition (`PAUSED` in ``database/readings.py``). The sensor checks it before it launches a run, and
every start of an upload checks it. Each process also checks `Pauses` right before each model call
(``server_group.py``). That also stops uploads that have started, and it is the only check for
pauses of servers.

No process listens for a pause, so pauses work behind a connection pooler. A resume signals new
work.
"""

import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    Uuid,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import aliased

from batch_pipeline.database.models import (
    OPEN_BATCH,
    ModelCallSlots,
    PauseScope,
    UploadBatch,
    WorkPause,
)
from batch_pipeline.database.readings import ACTIVE_PAUSE, PAUSED_BATCH_ID, PAUSES_BATCH, name_of
from batch_pipeline.database.session import Database
from batch_pipeline.errors import (
    NotFoundError,
    RefusedError,
    ServiceDownError,
    WorkPausedError,
)
from batch_pipeline.model_servers.base import CallKind, PausedCheck
from batch_pipeline.services.dispatch.signals import signal_work
from batch_pipeline.services.shared_call_slots import name_for_all_hosts
from batch_pipeline.services.short_ids import Named, batch_label, no_such
from batch_pipeline.settings import Settings
from batch_pipeline.visible_text import visible_line

#: How long a process uses what it has read. It is less than the one second after which a pause has
#: to take effect (seconds).
TRUSTED_SECONDS = 0.5
#: How long a new call waits for the database to say whether it is paused (seconds).
PATIENCE_SECONDS = 15.0
_WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class Pause:
    """Something that a person has paused."""

    scope: PauseScope
    target: str
    """Id of a user or batch, or name of a server; empty: everything."""
    reason: str
    since: datetime
    name: str | None = None
    """Name of the batch."""

    def __str__(self) -> str:
        """Return the pause as a sentence for people."""
        reason = f" ({self.reason})" if self.reason else ""
        since = self.since.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        return f"{named(self.scope, self.target, self.name)} has been paused since {since}{reason}"

    def shape(self) -> dict[str, Any]:
        """Return the pause as a dictionary for JSON."""
        return asdict(self)


def named(scope: PauseScope, target: str, name: str | None = None) -> str:
    """Return the name of what is paused; of a batch, its name and id."""
    if scope is PauseScope.BATCH:
        return f"batch {batch_label(target, name)}"
    kinds = {PauseScope.USER: "user", PauseScope.SERVER: "model server"}
    return f"{kinds[scope]} {target}" if scope in kinds else "everything"


_PAUSED_BATCH = aliased(UploadBatch)
_PAUSE = (
    WorkPause.scope,
    WorkPause.target,
    WorkPause.reason,
    WorkPause.since,
    select(name_of(_PAUSED_BATCH))
    .where(_PAUSED_BATCH.id == PAUSED_BATCH_ID)
    .correlate(WorkPause)
    .scalar_subquery()
    .label("name"),
)
_ORDER = (WorkPause.since, WorkPause.scope, WorkPause.target)
#: Pauses of a batch (`of_batch`; null: only pauses of everything), and those of servers.
_OF_BATCH = (
    select(*_PAUSE)
    .outerjoin(UploadBatch, UploadBatch.id == bindparam("of_batch", type_=Uuid))
    .where(
        or_(
            WorkPause.scope.in_([PauseScope.EVERYTHING, PauseScope.SERVER]),
            and_(UploadBatch.id.is_not(None), PAUSES_BATCH),
        )
    )
    .order_by(*_ORDER)
)


class Pauses:
    """Checks whether a model call may begin; one object for each process, thread-safe.

    If nothing is paused, the result is used for `TRUSTED_SECONDS`, so that many short calls share
    one query. A pause is read again at every check, because it may have ended.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._looks: Mapping[uuid.UUID | None, _Look] = {}

    def of(self, batch_id: uuid.UUID | None) -> PausedCheck:
        """Return the check for calls of a batch; None: only pauses of everything and of servers.

        The check raises `ServiceDownError` if the database does not answer in time.
        """
        return partial(self._reason, batch_id)

    def of_servers(self, server: str) -> str:
        """Return why a server may not be called, or an empty text; for calls without an upload."""
        if not server:
            return ""
        pauses = self._recent(None)
        return _reason_at(server, [p for p in pauses if p.scope is PauseScope.SERVER])

    def _reason(self, batch_id: uuid.UUID | None, server: str) -> str:
        return _reason_at(server, self._recent(batch_id))

    def _recent(self, batch_id: uuid.UUID | None) -> Sequence[Pause]:
        with self._lock:  # one thread reads, the others wait for its result
            look = self._looks.get(batch_id)
            if look is None or look.pauses or not look.is_recent:
                look = self._look(batch_id)
                kept = {key: other for key, other in self._looks.items() if other.is_recent}
                self._looks = {**kept, batch_id: look}
            return look.pauses

    def _look(self, batch_id: uuid.UUID | None) -> "_Look":
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self._database.transaction() as connection:
                    looked_at = time.monotonic()
                    look = _Look(looked_at, _of_batch(connection, batch_id))
                if look.is_recent:
                    return look
                failure = ServiceDownError("database_down", "the database answers too slowly")
            except ServiceDownError as error:
                failure = error
            if time.monotonic() > give_up_at:
                raise failure
            time.sleep(_WAIT_SECONDS)


@dataclass(frozen=True)
class _Look:
    """The pauses that were read, and the monotonic time at which reading began (seconds)."""

    looked_at: float
    pauses: Sequence[Pause]

    @property
    def is_recent(self) -> bool:
        return time.monotonic() - self.looked_at < TRUSTED_SECONDS


def why_paused(
    database: Database, settings: Settings, batch_id: uuid.UUID | None = None
) -> WorkPausedError | None:
    """Return why a pause keeps a batch from being processed now; None: no pause does.

    Without a batch: why a pause keeps everything from being processed.
    """
    with database.transaction() as connection:
        pauses = _of_batch(connection, batch_id)
    of_servers = [pause for pause in pauses if pause.scope is PauseScope.SERVER]
    if held := [pause for pause in pauses if pause not in of_servers]:
        return WorkPausedError(str(held[0]))
    for kind, addresses in _addresses(settings).items() if of_servers else ():
        reasons = [_reason_at(address, of_servers) for address in addresses]
        if reasons and all(reasons):
            return WorkPausedError(f"every {kind} server is paused: {'; '.join(reasons)}")
    return None


def all_servers_paused(connection: Connection, settings: Settings) -> bool:
    """Tell whether every server of a kind is paused, so that nothing can be processed.

    Raises:
        ConfigurationError: a setting is not the address of a server.
    """
    servers = select(WorkPause.target).where(WorkPause.scope == PauseScope.SERVER)
    paused = set(connection.scalars(servers))
    return bool(paused) and any(
        addresses and paused.issuperset(map(name_for_all_hosts, addresses))
        for addresses in _addresses(settings).values()
    )


def active_pauses(database: Database) -> list[Pause]:
    """List what is paused, oldest first, without batches that have ended."""
    statement = select(*_PAUSE).where(ACTIVE_PAUSE).order_by(*_ORDER)
    with database.transaction() as connection:
        return _pauses(connection.execute(statement).all())


def pauses_of_batches(
    connection: Connection, batch_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, list[Pause]]:
    """Read the pauses that hold each of these batches; batches without pauses are left out."""
    rows = connection.execute(
        select(UploadBatch.id, *_PAUSE)
        .join(WorkPause, PAUSES_BATCH)
        .where(UploadBatch.id.in_(batch_ids), UploadBatch.status.in_(OPEN_BATCH))
        .order_by(*_ORDER)
    ).all()
    found: dict[uuid.UUID, list[Pause]] = {}
    for batch_id, *pause in rows:
        found.setdefault(batch_id, []).extend(_pauses([pause]))
    return found


def chosen(
    user: uuid.UUID | None, batch: uuid.UUID | None, server: str | None
) -> tuple[PauseScope, str]:
    """Return scope and target of what a person has named; everything if nothing is named.

    Raises:
        RefusedError: more than one is named.
    """
    named_ = {PauseScope.USER: user, PauseScope.BATCH: batch, PauseScope.SERVER: server}
    given = [(scope, str(target)) for scope, target in named_.items() if target is not None]
    if len(given) > 1:
        raise RefusedError(
            "expected at most one of user, batch and server; none of them means everything"
        )
    return given[0] if given else (PauseScope.EVERYTHING, "")


def pause(
    database: Database, settings: Settings, scope: PauseScope, target: str = "", reason: str = ""
) -> Pause:
    """Pause something. If it is already paused, only its reason is replaced, if one is given.

    Raises:
        NotFoundError: there is no such batch, or no such model server.
    """
    with database.transaction() as connection:
        target = _checked(connection, settings, scope, target)
        values = {"scope": scope, "target": target, "reason": visible_line(reason)}
        statement = insert(WorkPause).values(values)
        kept = func.coalesce(func.nullif(statement.excluded.reason, ""), WorkPause.reason)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=[WorkPause.scope, WorkPause.target], set_={"reason": kept}
            )
        )
        [paused] = _pauses(connection.execute(_one_pause(scope, target)).all())
    return paused


def resume(database: Database, scope: PauseScope, target: str = "") -> Pause:
    """Resume what was paused, and signal that there may be work.

    Raises:
        NotFoundError: it is not paused; the message names what is paused.
    """
    if scope is PauseScope.SERVER:
        target = _server(target)
    with database.transaction() as connection:
        pauses = _pauses(connection.execute(_one_pause(scope, target).with_for_update()).all())
        for found in pauses:
            connection.execute(
                delete(WorkPause).where(WorkPause.scope == scope, WorkPause.target == target)
            )
            signal_work(connection)
            return found
    others = "; ".join(map(str, active_pauses(database)))
    if scope is PauseScope.EVERYTHING:
        missing = "there is no pause of everything"
    else:
        missing = f"{named(scope, target)} is not paused"
    raise NotFoundError(f"{missing}; {others or 'nothing is paused'}")


def _checked(connection: Connection, settings: Settings, scope: PauseScope, target: str) -> str:
    """Return the target as it is stored; raises if the batch or server does not exist."""
    if scope is PauseScope.BATCH:
        if not connection.scalar(select(exists().where(UploadBatch.id == uuid.UUID(target)))):
            raise no_such(Named.BATCH, target)
    elif scope is PauseScope.SERVER:
        target = _server(target)
        addresses = {url for urls in _addresses(settings).values() for url in urls}
        known = {name_for_all_hosts(address) for address in addresses}
        # A worker on another host may have other settings.
        known |= set(connection.scalars(select(ModelCallSlots.server).distinct()))
        if target not in known:
            servers = ", ".join(sorted(known))
            raise NotFoundError(
                f"there is no model server {target}; "
                + (f"expected one of: {servers}" if known else "the models are embedded")
            )
    return target


def _server(target: str) -> str:
    try:
        return name_for_all_hosts(target)
    except ValueError:
        raise RefusedError(f"{target!r} is not the address of a server") from None


def _addresses(settings: Settings) -> Mapping[CallKind, Sequence[str]]:
    from batch_pipeline.model_servers.factory import server_addresses  # noqa: PLC0415 - 0.2 s

    return server_addresses(settings)


def _one_pause(scope: PauseScope, target: str) -> Select[*tuple[Any, ...]]:
    return select(*_PAUSE).where(WorkPause.scope == scope, WorkPause.target == target)


def _of_batch(connection: Connection, batch_id: uuid.UUID | None) -> list[Pause]:
    return _pauses(connection.execute(_OF_BATCH, {"of_batch": batch_id}).all())


def _pauses(rows: Sequence[Any]) -> list[Pause]:
    return [
        Pause(PauseScope(scope), target, reason, since, name)
        for scope, target, reason, since, name in rows
    ]


def _reason_at(server: str, pauses: Sequence[Pause]) -> str:
    """Return the pause that prevents a call to a server, as text; empty: none does."""
    name = name_for_all_hosts(server) if server and pauses else ""
    for held in pauses:
        if held.scope is not PauseScope.SERVER or held.target == name:
            return str(held)
    return ""
