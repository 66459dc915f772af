"""Transitions of the sweep: repair what dead workers, outages and other programs left behind.

``orchestration/sweep.py`` asks Dagster which runs have ended. Every method may be repeated, even by
two processes at the same time. Methods that take `left_out` change each batch in a transaction of
its own. So only a batch that is locked, or whose row refuses the change, is left out.
"""

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import DBAPIError

from batch_pipeline.database.failures import each_repeated, refuses_rows, repeated
from batch_pipeline.database.models import (
    IN_WORK,
    OPEN_BATCH,
    OPEN_UPLOAD,
    BatchStatus,
    BatchToRecount,
    Upload,
    UploadBatch,
    UploadStatus,
    insert_all,
)
from batch_pipeline.database.readings import (
    HELD,
    UPLOAD_CAME,
    WAITING,
    interval,
    lease_expired,
    lease_lives,
    one_of,
)
from batch_pipeline.services.one_by_one import LeftOut, one_by_one
from batch_pipeline.services.progress.publishing import (
    Announcer,
    BatchProgress,
    ProgressPublisher,
)
from batch_pipeline.services.short_ids import short
from batch_pipeline.services.states.batch_states import REDOABLE_BATCH, BatchStates
from batch_pipeline.services.states.transitions import (
    ANNOUNCED,
    announce_file,
    count_failed,
    count_uploads,
    disown,
    is_done,
    percentage_reached,
    recount_batches,
    release_rows,
    updated_batch_or_none,
)
from batch_pipeline.visible_text import visible

#: An upload counts as the cause after this many workers died while processing it.
MAX_DEATHS = 3
#: A batch is given up after this many of its runs died in a row without an upload ending.
MAX_DIED_RUNS = 10
#: Age at which an upload without a batch counts as forgotten (seconds).
ADOPTION_AGE_SECONDS = 5 * 60
#: Batches that ended earlier than this are recounted only if a trigger recorded a change (seconds).
#: For a transaction that began before the batch ended, no trigger records a change; no transaction
#: lasts this long.
RECOUNT_SECONDS = 3600
#: Number of recorded changes that one sweep reads.
_NOTES_AT_ONCE = 10_000

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Rescue:
    """What happened to the uploads of dead owners."""

    returned: int = 0
    """Number of uploads that are pending again."""
    quarantined: int = 0
    """Number of uploads that failed because their worker died every time."""


@each_repeated
class Backlog:
    """Every transition of the sweep."""

    def __init__(self, publisher: ProgressPublisher, *, lease_seconds: float) -> None:
        self._publisher = publisher
        self._lease_seconds = lease_seconds
        self._batches = BatchStates(publisher)

    def owners(self) -> list[str]:
        """List the runs that hold uploads."""
        with self._publisher.transaction() as transaction:
            return list(
                transaction.connection.scalars(
                    select(Upload.owner_run_id).where(Upload.owner_run_id.is_not(None)).distinct()
                )
            )

    def run_is_silent(self, run_id: str) -> bool:
        """Return whether a run holds no upload with a heartbeat younger than the lease."""
        with self._publisher.transaction() as transaction:
            alive = transaction.connection.scalar(
                select(Upload.id)
                .where(Upload.owner_run_id == run_id, lease_lives(self._lease_seconds))
                .limit(1)
            )
        return alive is None

    def left_behind(self, batch_id: uuid.UUID, run_id: str, slice_number: int | None) -> int:
        """Count the remaining uploads of a run: those it holds and those in its slice.

        A run that a person launched may have no slice; then no waiting upload is meant for it.
        """
        its_own = Upload.owner_run_id == run_id
        if slice_number is not None:
            in_slice = and_(Upload.batch_id == batch_id, Upload.slice == slice_number, WAITING)
            its_own = or_(its_own, in_slice)
        with self._publisher.transaction() as transaction:
            count = transaction.connection.scalar(
                select(func.count()).select_from(Upload).where(its_own)
            )
        return count or 0

    def rescue(
        self,
        ended_run_ids: Sequence[str] = (),
        left_out: LeftOut | None = None,
        *,
        not_of: Collection[str] = (),
    ) -> Rescue:
        """Return the uploads of dead owners to ``pending``.

        An owner is dead when its run has ended, or when its heartbeat is older than the lease on
        the database's clock. For an upload in progress without a claim, ``updated_at`` counts as
        the heartbeat. An upload whose workers died `MAX_DEATHS` times while they processed it fails
        instead. An upload that an upload API has ended in the meantime only loses its owner. The
        uploads of the runs `not_of` stay as they are.
        """
        dead = and_(
            HELD,
            or_(Upload.owner_run_id.in_(ended_run_ids), lease_expired(self._lease_seconds)),
        )
        if not_of:
            dead = and_(dead, func.coalesce(Upload.owner_run_id, "").not_in(not_of))
        return self._rescue_each_batch(dead, left_out)

    def rescue_run(self, run_id: str) -> Rescue:
        """Return the uploads of one run that has ended to ``pending``, as `rescue` does."""
        return self._rescue_each_batch(Upload.owner_run_id == run_id, None)

    def _rescue_each_batch(self, dead: Any, left_out: LeftOut | None) -> Rescue:
        rescued = self._each_batch_of(dead, self._rescue, left_out)
        return Rescue(
            sum(rescue.returned for rescue in rescued),
            sum(rescue.quarantined for rescue in rescued),
        )

    @repeated
    def _rescue(self, dead: Any) -> Rescue:
        died_in_work = and_(
            Upload.owner_run_id.is_not(None), Upload.processing_status.in_(IN_WORK)
        ).label("died_in_work")
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            rows = connection.execute(
                select(Upload.id, Upload.deaths, Upload.processing_status, died_in_work)
                .where(dead)
                .order_by(Upload.id)
                .with_for_update(skip_locked=True)
            ).all()
            suspects = [row.id for row in rows if row.died_in_work]
            killers = [row.id for row in rows if row.died_in_work and row.deaths + 1 >= MAX_DEATHS]
            connection.execute(
                update(Upload).where(one_of(Upload.id, suspects)).values(deaths=Upload.deaths + 1)
            )
            self._quarantine(transaction, killers)
            open_ = [row.id for row in rows if row.processing_status in OPEN_UPLOAD]
            ended = [row.id for row in rows if row.processing_status not in OPEN_UPLOAD]
            disown(connection, one_of(Upload.id, ended))
            others = [upload_id for upload_id in open_ if upload_id not in killers]
            returned = release_rows(connection, one_of(Upload.id, others), dispatch_reason="rescue")
        return Rescue(returned, len(killers))

    def release_slices(
        self, slices: Sequence[tuple[uuid.UUID, int]], *, resume_after_seconds: float = 0
    ) -> int:
        """Remove uploads from slices whose run ended without taking them; returns how many.

        The uploads wait for a while first. Otherwise a fault that ends every run at its start would
        launch runs in a loop.
        """
        not_before = func.now() + interval(resume_after_seconds)
        with self._publisher.transaction() as transaction:
            return sum(
                release_rows(
                    transaction.connection,
                    and_(Upload.batch_id == batch_id, Upload.slice == number, WAITING),
                    dispatch_reason="rescue",
                    not_before=not_before,
                )
                for batch_id, number in slices
            )

    def note_died_run(self, batch_id: uuid.UUID, reason: str) -> BatchProgress | None:
        """Count a run that died; fails the batch after too many deaths in a row.

        The reason is stored in ``error_message`` of the batch, until the batch ends for another
        reason. Returns the batch if it failed now, otherwise None.
        """
        given_up = (UploadBatch.died_runs + 1) >= MAX_DIED_RUNS
        last = f"{MAX_DIED_RUNS} runs died one after the other; the last one: {reason}"
        message = f"a run died, another run continues its work: {reason}"
        with self._publisher.transaction() as transaction:
            progress = updated_batch_or_none(
                transaction.connection,
                update(UploadBatch)
                .where(UploadBatch.id == batch_id, UploadBatch.status.in_(OPEN_BATCH))
                .values(
                    died_runs=UploadBatch.died_runs + 1,
                    status=case((given_up, BatchStatus.FAILED), else_=UploadBatch.status),
                    error_message=case((given_up, visible(last)), else_=visible(message)),
                    updated_at=func.now(),
                ),
            )
            if progress is None or progress.status != BatchStatus.FAILED:
                return None
            transaction.announce(progress, progress.user_id)
        return progress

    def retry_due(self, left_out: LeftOut | None = None) -> int:
        """Retry uploads that failed for a temporary reason and are due; returns how many."""
        return sum(self._each_batch_of(_due(), self._retry, left_out))

    @repeated
    def _retry(self, due: Any) -> int:
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            rows = connection.execute(
                select(Upload.id, Upload.batch_id)
                .where(due)
                .order_by(Upload.id)
                .with_for_update(skip_locked=True)
            ).all()
            count = release_rows(
                connection,
                one_of(Upload.id, [row.id for row in rows]),
                dispatch_reason="retry",
                attempts=0,
                retries=Upload.retries + 1,
            )
            recount_batches(transaction, {row.batch_id for row in rows if row.batch_id})
        return count

    def adopt(self) -> int:
        """Put waiting uploads without a batch into one batch per user; returns how many uploads."""
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            rows = connection.execute(
                select(Upload.id, Upload.user_id)
                .where(_forgotten())
                .order_by(Upload.user_id, Upload.id)
                .with_for_update(skip_locked=True)
            ).all()
            adopted = 0
            for user_id, uploads in groupby(rows, key=lambda row: row.user_id):
                upload_ids = [row.id for row in uploads]
                try:
                    with connection.begin_nested():
                        batch_id = _adopt(connection, user_id, upload_ids)
                except DBAPIError as error:
                    if not refuses_rows(error):  # the API's table requires values that we lack
                        raise
                    log.warning("uploads of user %s stay without a batch: %s", user_id, error.orig)
                else:
                    adopted += len(upload_ids)
                    recount_batches(transaction, [batch_id])
        return adopted

    def reopen_ended(self, left_out: LeftOut | None = None) -> int:
        """Reopen ended batches that have waiting uploads; returns how many uploads.

        An upload API has added these uploads, or has made old ones pending again. Data about
        earlier attempts is reset.
        """
        with self._publisher.transaction() as transaction:
            batch_ids = transaction.connection.scalars(_ended_with_waiting()).all()
        return sum(_each_batch(batch_ids, self._reopen, left_out))

    @repeated
    def _reopen(self, batch_id: uuid.UUID) -> int:
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            locked = list(
                connection.scalars(
                    select(Upload.id)
                    .where(Upload.batch_id == batch_id, WAITING)
                    .order_by(Upload.id)
                    .with_for_update(skip_locked=True)
                )
            )
            # If the batch is no longer completed here, another sweep has reopened it and handles
            # its uploads.
            ended = select(UploadBatch.id).where(UploadBatch.status == BatchStatus.COMPLETED)
            count = release_rows(
                connection,
                and_(one_of(Upload.id, locked), Upload.batch_id.in_(ended)),
                attempts=0,
                deaths=0,
                server_deaths=0,
                retries=0,
                not_before=None,
            )
            recount_batches(transaction, [batch_id])
        return count

    def reconcile_batches(self, left_out: LeftOut | None = None) -> list[BatchProgress]:
        """Recount batches whose counters are wrong, and end batches that are done."""
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            notes = connection.execute(
                select(BatchToRecount.id, BatchToRecount.batch_id).limit(_NOTES_AT_ONCE)
            ).all()
            changed = list({note.batch_id for note in notes})
            drifted = connection.scalars(_drifted(changed)).all()
        # A transition in progress also looks like a difference; the recount waits for it.
        recounted = dict(
            _each_batch(
                drifted,
                lambda batch_id: (batch_id, self._batches.recount_batch(batch_id)),
                left_out,
            )
        )
        # One note stays for each batch that was left out. More would hide notes of other batches.
        missed = set(drifted) - recounted.keys()
        kept = set({note.batch_id: note.id for note in notes if note.batch_id in missed}.values())
        done = [note.id for note in notes if note.id not in kept]
        with self._publisher.transaction() as transaction:
            transaction.connection.execute(
                delete(BatchToRecount).where(BatchToRecount.id.in_(done))
            )
        return [progress for progress in recounted.values() if progress]

    def overdue(self) -> dict[str, int]:
        """Count what the transitions above would repair now, by kind."""
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            due = select(func.count()).select_from(Upload).where(_due())
            forgotten = select(func.count()).select_from(Upload).where(_forgotten())
            return {
                "uploads to retry": connection.scalar(due) or 0,
                "uploads without a batch": connection.scalar(forgotten) or 0,
                "uploads in batches that had ended": _waiting_in(connection, _ended_with_waiting()),
                "batches to recount": len(
                    connection.scalars(_drifted(select(BatchToRecount.batch_id))).all()
                ),
            }

    def _each_batch_of(
        self, condition: Any, work: Callable[[Any], Result], left_out: LeftOut | None
    ) -> list[Result]:
        """Call `work` for each batch with such uploads; its argument selects them."""
        with self._publisher.transaction() as transaction:
            rows = transaction.connection.execute(
                select(Upload.batch_id, Upload.id)
                .where(condition)
                .order_by(Upload.batch_id, Upload.id)
            ).all()
        found = {
            batch_id: [row.id for row in of_batch]
            for batch_id, of_batch in groupby(rows, key=lambda row: row.batch_id)
        }
        return _each_batch(
            found,
            lambda batch_id: work(and_(one_of(Upload.id, found[batch_id]), condition)),
            left_out,
        )

    def _quarantine(self, transaction: Announcer, upload_ids: Sequence[uuid.UUID]) -> None:
        rows = transaction.connection.execute(
            update(Upload)
            .where(one_of(Upload.id, upload_ids))
            .values(
                processing_status=UploadStatus.FAILED,
                owner_run_id=None,
                slice=None,
                error_kind="killed_worker",
                error_message=(
                    f"the worker died {MAX_DEATHS} times while it processed this file. The file "
                    "is not tried again automatically; use `batch-pipeline retry`"
                ),
                updated_at=func.now(),
            )
            .returning(*ANNOUNCED)
        ).all()
        for row in rows:
            announce_file(transaction, row, percentage_reached(row), "failed")
        for batch_id, failed in sorted(
            Counter(row.batch_id for row in rows if row.batch_id).items()
        ):
            if progress := count_failed(transaction.connection, batch_id, failed):
                transaction.announce(progress, progress.user_id)


def _each_batch(
    batch_ids: Iterable[uuid.UUID | None],
    work: Callable[[Any], Result],
    left_out: LeftOut | None,
) -> list[Result]:
    """Call `work` for each batch. Without `left_out`, the first error is raised."""
    if left_out is None:
        return [work(batch_id) for batch_id in batch_ids]
    return one_by_one(batch_ids, work, left_out, named=_name_of_batch)


def _name_of_batch(batch_id: uuid.UUID | None) -> str:
    return f"batch {short(batch_id)}" if batch_id else "uploads without a batch"


def _due() -> Any:
    """Select failed uploads that are due for a retry."""
    return and_(
        Upload.retry_at <= func.now(),
        Upload.processing_status == UploadStatus.FAILED,
        exists().where(UploadBatch.id == Upload.batch_id, UploadBatch.status.in_(REDOABLE_BATCH)),
    )


def _forgotten() -> Any:
    """Select uploads that have waited without a batch for longer than a submission takes."""
    return and_(
        Upload.batch_id.is_(None),
        WAITING,
        UPLOAD_CAME < func.now() - interval(ADOPTION_AGE_SECONDS),  # noqa: SIM300 - a column
    )


def _adopt(
    connection: Connection, user_id: uuid.UUID | None, upload_ids: Sequence[uuid.UUID]
) -> uuid.UUID:
    """Create a batch for these uploads; returns its id."""
    batch_id = uuid.uuid4()
    row = {"id": batch_id, "user_id": user_id}
    connection.execute(insert_all(UploadBatch, row), row)
    connection.execute(
        update(Upload)
        .where(one_of(Upload.id, upload_ids))
        .values(batch_id=batch_id, slice=None, updated_at=func.now())
    )
    return batch_id


def _ended_with_waiting() -> Select[uuid.UUID]:
    """Select ended batches of any age that have waiting uploads.

    The query jumps from one batch to the next in the index `ix_uploads_waiting`. Reading the whole
    index takes long while millions of uploads wait.
    """
    waiting = select(Upload.batch_id).where(WAITING).order_by(Upload.batch_id).limit(1)
    first = waiting.where(Upload.batch_id.is_not(None)).scalar_subquery()
    found = select(first.label("id")).cte("with_waiting", recursive=True)
    following = waiting.where(Upload.batch_id > found.c.id).scalar_subquery()
    found = found.union_all(select(following).where(found.c.id.is_not(None)))
    ended = (
        select(UploadBatch.id)
        .where(UploadBatch.id == found.c.id, UploadBatch.status == BatchStatus.COMPLETED)
        .limit(1)  # one by one, by their ids
        .lateral("ended")
    )
    return select(ended.c.id).select_from(found.join(ended, true())).order_by(ended.c.id)


def _waiting_in(connection: Connection, batches: Select[uuid.UUID]) -> int:
    batch_ids = connection.scalars(batches).all()
    waiting = select(func.count()).where(one_of(Upload.batch_id, batch_ids), WAITING)
    return (connection.scalar(waiting) or 0) if batch_ids else 0


def _drifted(changed: Any) -> Select[uuid.UUID]:
    """Select batches whose counters differ from a recount, and open ones without open uploads.

    The query checks batches that are open or ended recently, and those in `changed`.
    """
    counts = count_uploads(UploadBatch.id).lateral("counts")
    counted = counts.c.successful + counts.c.failed
    is_open = UploadBatch.status.in_(OPEN_BATCH)
    done = is_done(UploadBatch.status, counts.c)
    return (
        select(UploadBatch.id)
        .join(counts, true())
        .where(
            or_(
                is_open,
                UploadBatch.updated_at > func.now() - interval(RECOUNT_SECONDS),
                UploadBatch.id.in_(changed),
            ),
            or_(
                UploadBatch.total_uploads.is_distinct_from(counts.c.total),
                UploadBatch.successful_uploads.is_distinct_from(counts.c.successful),
                UploadBatch.failed_uploads.is_distinct_from(counts.c.failed),
                UploadBatch.processed_uploads.is_distinct_from(counted),
                and_(is_open, done),
                and_(UploadBatch.status == BatchStatus.COMPLETED, ~done),
            ),
        )
        .order_by(UploadBatch.id)
    )
