"""Deletes an upload, a batch or a user: files first, then Dagster's history, then the rows.

Every step may be repeated, and the rows are deleted last. So after any interruption the same
command finds what is left and completes the deletion. Before the first step the rows are emptied,
so that no page shows and no search finds what is being deleted.

A `History` deletes what Dagster keeps; `orchestration/forgetting.py` implements it.
"""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import (
    ColumnElement,
    Connection,
    Uuid,
    all_,
    and_,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError

from batch_pipeline.database.failures import refuses_rows
from batch_pipeline.database.models import (
    OPEN_BATCH,
    AnsweringSpace,
    AskedSlice,
    BatchToRecount,
    DescriptionInWork,
    MadeThumbnail,
    ModelCall,
    Upload,
    UploadBatch,
    UploadVector,
    WorkPause,
)
from batch_pipeline.database.readings import (
    HELD,
    LOCAL_USER,
    NAME,
    lease_lives,
    one_of,
    owned_by,
    owner,
    upload_owned_by,
)
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.errors import PermanentError, RefusedError
from batch_pipeline.services.deletion.file_ownership import paths_in_use
from batch_pipeline.services.notifications.outbox import forget_events
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.short_ids import Named, batch_label, no_such
from batch_pipeline.services.states.transitions import recount_batch
from batch_pipeline.storage import Storage

#: Whether an upload has a vector in any space.
_HAS_VECTOR = or_(
    Upload.embedding_local.is_not(None), exists().where(UploadVector.upload_id == Upload.id)
)


class History(Protocol):
    """What Dagster keeps about batches and uploads. Every method may be repeated."""

    def in_flight(self, batch_id: uuid.UUID) -> Sequence[str]:
        """Return the ids of the runs of a batch that have not ended."""

    def batches_of(self, user_id: uuid.UUID) -> Sequence[uuid.UUID]:
        """Return the batches of a user that are named in tags of runs."""

    def wait_for_ticks(self) -> None:
        """Wait until no sensor can still report what it read before the rows were emptied."""

    def count(self, batch_id: uuid.UUID) -> Mapping[str, int]:
        """Count what `forget_batch` would delete."""

    def forget_batch(self, batch_id: uuid.UUID) -> Mapping[str, int]:
        """Delete runs, events, partition and logs of a batch; returns the counts by kind."""

    def runs_with(self, upload_ids: Sequence[uuid.UUID]) -> Mapping[uuid.UUID, Sequence[str]]:
        """Find the runs that have a step for each of these uploads."""

    def forget_upload(
        self, upload_id: uuid.UUID, batch_id: uuid.UUID | None, runs: Sequence[str]
    ) -> Mapping[str, int]:
        """Delete what is kept about one upload, and the reports of its batch.

        `runs` are those of `runs_with`. Returns the counts by kind.
        """

    def report_again(self, batch_id: uuid.UUID) -> None:
        """Create the report of an ended batch again."""


@dataclass
class Receipt:
    """What was deleted, or with `dry_run` would be; contains no name and no description."""

    named: Named
    id: uuid.UUID
    dry_run: bool
    batches: list[uuid.UUID] = field(default_factory=list)
    uploads: list[uuid.UUID] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Counts by kind: ``batches``, ``uploads``, ``vectors``, ``model_calls``, ``originals``,
    ``thumbnails``, ``files_kept``, ``files_missing`` (rows name them, but the storage does not have
    them), ``runs``, ``events``, ``checks``, ``ticks``, ``partitions``."""
    at: datetime | None = None
    """When the deletion was complete, by the database's clock."""

    def shape(self) -> dict[str, Any]:
        """Return the receipt as a dictionary for JSON."""
        return {
            "named": self.named,
            "id": self.id,
            "dry_run": self.dry_run,
            "batches": self.batches,
            "uploads": self.uploads,
            "counts": dict(self.counts),
            "at": self.at,
        }


@dataclass(frozen=True)
class _Chosen:
    """The batches and uploads to delete."""

    batches: Sequence[uuid.UUID] = ()
    """Batches that are deleted as a whole."""
    lone: Sequence[tuple[uuid.UUID, uuid.UUID | None]] = ()
    """Single uploads, each with its batch, which stays, or None."""
    user_id: uuid.UUID | None = None
    shared: Sequence[uuid.UUID] = ()
    """Batches of the user that also have uploads of other users; one of those users gets them."""


def forget(
    pipeline: Pipeline,
    history: History,
    named: Named,
    id_: uuid.UUID,
    *,
    originals: bool = False,
    dry_run: bool = False,
) -> Receipt:
    """Delete an upload, a batch or a user with everything that is kept about it.

    Args:
        pipeline: the pipeline with the rows and files.
        history: what Dagster keeps.
        named: whether the id is that of an upload, a batch or a user.
        id_: the id. If its rows are already gone, what Dagster keeps about it is still deleted.
        originals: also delete files that are not proven to be the pipeline's own.
        dry_run: only count.

    Raises:
        NotFoundError: nothing is kept about it.
        RefusedError: it is being processed, or may be; or the upload API does not let its rows be
            deleted. Or it was reopened, or an upload was added to it, during the deletion; then the
            message says that a part is deleted.
        ServiceDownError: database or storage cannot be used, or the storage holds none of the
            files that rows name. Another call completes the deletion.
    """
    receipt = Receipt(named, id_, dry_run)
    chosen = _choose(pipeline.database, history, named, id_)
    files = _Files(pipeline, originals=originals, dry_run=dry_run)
    _require_rest(pipeline, history, chosen)
    if not dry_run:
        receipt.counts += _empty(pipeline, chosen)
        history.wait_for_ticks()
    with _partly_deleted():
        for batch_id in chosen.batches:
            _forget_batch(pipeline, history, files, batch_id, receipt)
        lone = [upload_id for upload_id, _ in chosen.lone]
        runs = history.runs_with(lone) if lone and not dry_run else {}
        for upload_id, batch_of in chosen.lone:
            of_it = runs.get(upload_id, ())
            _forget_upload(pipeline, history, files, upload_id, batch_of, of_it, receipt)
        if not dry_run:
            for batch_of in dict.fromkeys(batch_of for _, batch_of in chosen.lone if batch_of):
                history.report_again(batch_of)
        if chosen.user_id is not None:
            _forget_rest_of_user(pipeline, files, chosen.user_id, receipt)
    receipt.at = pipeline.database.now()
    if not receipt.counts:
        raise no_such(named, id_)
    return receipt


@contextmanager
def _partly_deleted() -> Iterator[None]:
    """Say in a refusal that the deletion had begun. A dry run is never refused here."""
    try:
        yield
    except RefusedError as error:
        raise RefusedError(f"a part is deleted; {error}") from error


def _choose(database: Database, history: History, named: Named, id_: uuid.UUID) -> _Chosen:
    with database.transaction() as connection:
        match named:
            case Named.BATCH:
                return _Chosen(batches=[id_])
            case Named.UPLOAD:
                row = connection.execute(
                    select(Upload.id, Upload.batch_id).where(Upload.id == id_)
                ).one_or_none()
                return _Chosen(lone=[(id_, row.batch_id if row else None)])
            case Named.USER:
                theirs = connection.execute(
                    select(
                        UploadBatch.id,
                        exists()
                        .where(Upload.batch_id == UploadBatch.id, Upload.user_id != id_)
                        .label("is_shared"),
                    )
                    .where(owner(UploadBatch.user_id) == id_)
                    .order_by(UploadBatch.created_at, UploadBatch.id)
                ).all()
                whole = [batch.id for batch in theirs if not batch.is_shared]
                shared = [batch.id for batch in theirs if batch.is_shared]
                lone = connection.execute(
                    select(Upload.id, Upload.batch_id)
                    .where(
                        upload_owned_by(id_),
                        or_(
                            Upload.batch_id.is_(None),
                            Upload.batch_id != all_(cast(whole, ARRAY(Uuid))),
                        ),
                    )
                    .order_by(Upload.id)
                ).all()
                # If another program has deleted the rows of a batch, Dagster still keeps its runs.
                # If it has given the batch to another user, the runs are that user's, too.
                of_runs = history.batches_of(id_)
                stored = connection.scalars(
                    select(UploadBatch.id).where(one_of(UploadBatch.id, of_runs))
                )
                gone = set(of_runs) - set(stored)
    batches = [*whole, *(one for one in of_runs if one in gone)]
    return _Chosen(batches, [(row.id, row.batch_id) for row in lone], id_, shared)


def _require_rest(pipeline: Pipeline, history: History, chosen: _Chosen) -> None:
    """Refuse if a run processes one of the uploads, or may begin to."""
    lone = [upload_id for upload_id, _ in chosen.lone]
    batches = {*chosen.batches, *(batch_id for _, batch_id in chosen.lone if batch_id)}
    held = and_(HELD, lease_lives(pipeline.settings.lease_seconds))
    with pipeline.database.transaction() as connection:
        labels = {batch_id: _require_ended(connection, batch_id) for batch_id in sorted(batches)}
        at_work = connection.scalar(
            select(Upload.id)
            .where(held, or_(one_of(Upload.batch_id, batches), one_of(Upload.id, lone)))
            .limit(1)
        )
    if at_work:
        raise RefusedError(
            f"upload {at_work} is still in progress: wait until its worker releases it (at most "
            f"{pipeline.settings.lease_seconds:g} seconds after a cancel), then delete again"
        )
    for batch_id, label in labels.items():
        if runs := history.in_flight(batch_id):
            raise RefusedError(
                f"run {runs[0]} of batch {label} has not ended: wait for it or terminate it in "
                "the UI, then delete again"
            )


def _require_ended(connection: Connection, batch_id: uuid.UUID) -> str:
    """Lock a batch, and refuse if it is open; returns its name in messages."""
    row = connection.execute(
        select(UploadBatch.status, NAME).where(UploadBatch.id == batch_id).with_for_update()
    ).one_or_none()
    label = batch_label(batch_id, row and row.name)
    if row and row.status in OPEN_BATCH:
        raise RefusedError(
            f"batch {label} is {row.status}: cancel it first (batch-pipeline cancel {batch_id}), "
            "then delete again"
        )
    return label


def _empty(pipeline: Pipeline, chosen: _Chosen) -> Counter[str]:
    """Remove from the rows everything that people see and search finds.

    Returns the number of uploads whose vectors were deleted, as ``vectors``.
    """
    counts: Counter[str] = Counter()
    lone = [upload_id for upload_id, _ in chosen.lone]
    its_own = or_(one_of(Upload.batch_id, chosen.batches), one_of(Upload.id, lone))
    with pipeline.database.transaction() as connection, _refusals_named():
        ids = connection.scalars(
            select(Upload.id).where(its_own).order_by(Upload.id).with_for_update()
        ).all()
        # Check constraints of the API now that are otherwise deferred to the commit.
        connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        _require_deletable(connection, ids, chosen.batches)
        counts["vectors"] = connection.execute(
            select(func.count()).where(one_of(Upload.id, ids), _HAS_VECTOR)
        ).scalar_one()
        connection.execute(delete(UploadVector).where(one_of(UploadVector.upload_id, ids)))
        connection.execute(
            update(Upload)
            .where(one_of(Upload.id, ids))
            .values(
                # Each name is different: an API may allow a name only once in a batch.
                filename=func.concat("deleted ", Upload.id),
                hidden=True,
                description=None,
                vision_tags=[],
                visible_text=None,
                embedding_local=None,
                embedding_model=None,
                error_message=None,
                facts={},
                retry_at=None,  # otherwise a sweep may open the batch again
            )
        )
        if chosen.user_id not in {None, LOCAL_USER}:
            # A shared batch goes to another user below, but these uploads must not: another call
            # has to find them if this one is interrupted.
            of_nobody = and_(Upload.user_id.is_(None), one_of(Upload.batch_id, chosen.shared))
            connection.execute(
                update(Upload)
                .where(one_of(Upload.id, ids), of_nobody)
                .values(user_id=chosen.user_id)
            )
        others = select(Upload.user_id).where(
            Upload.batch_id == UploadBatch.id, Upload.user_id != chosen.user_id
        )
        connection.execute(
            update(UploadBatch)
            .where(one_of(UploadBatch.id, chosen.shared), exists(others))
            .values(user_id=others.order_by(Upload.id).limit(1).scalar_subquery(), name=None)
        )
        # No sensor reports a batch that ended so long ago.
        connection.execute(
            update(UploadBatch)
            .where(one_of(UploadBatch.id, chosen.batches))
            .values(
                name=None,
                error_message="is being deleted: call `batch-pipeline delete` again",
                completed_at=literal_column("'epoch'"),
            )
        )
    return counts


@contextmanager
def _refusals_named() -> Iterator[None]:
    """Explain why an upload API does not let rows be emptied or deleted."""
    try:
        yield
    except DBAPIError as error:
        if not refuses_rows(error):
            raise
        raise _kept_by_the_api(f" ({str(error.orig).strip()})") from error


def _kept_by_the_api(reason: str) -> RefusedError:
    return RefusedError(
        f"nothing was deleted, because the upload API keeps these rows{reason}: delete through "
        "that API, or first remove what needs them"
    )


def _require_deletable(
    connection: Connection, upload_ids: Sequence[uuid.UUID], batch_ids: Sequence[uuid.UUID]
) -> None:
    """Try to delete the rows, and refuse if the upload API does not allow it.

    Files and history are deleted first, so the real deletion would notice that too late.
    """
    uploads, batches = one_of(Upload.id, upload_ids), one_of(UploadBatch.id, batch_ids)
    with connection.begin_nested() as trial:
        connection.execute(delete(Upload).where(uploads))
        connection.execute(delete(UploadBatch).where(batches))
        # An API that only marks rows as deleted lets the statements pass.
        if connection.scalar(select(or_(exists().where(uploads), exists().where(batches)))):
            raise _kept_by_the_api(", by a trigger, a rule or a policy")
        trial.rollback()


def _forget_batch(
    pipeline: Pipeline, history: History, files: "_Files", batch_id: uuid.UUID, receipt: Receipt
) -> None:
    database = pipeline.database
    with database.transaction() as connection:
        is_there = connection.scalar(select(UploadBatch.id).where(UploadBatch.id == batch_id))
        rows = _rows(connection, Upload.batch_id == batch_id)
    ids = [row.id for row in rows]
    receipt.batches += [batch_id] if is_there else []
    receipt.uploads += ids
    receipt.counts += files.remove(rows)
    of_batch = or_(ModelCall.batch_id == batch_id, one_of(ModelCall.upload_id, ids))
    if receipt.dry_run:
        receipt.counts += Counter(history.count(batch_id))
        with database.transaction() as connection:
            receipt.counts += Counter(
                batches=1 if is_there else 0,
                uploads=len(rows),
                vectors=sum(row.has_vector for row in rows),
                model_calls=_count_calls(connection, of_batch),
            )
        return
    receipt.counts += Counter(history.forget_batch(batch_id))
    with database.transaction() as connection:
        uploads = _delete_uploads(connection, one_of(Upload.id, ids), files)
        label = _require_ended(connection, batch_id)
        if connection.scalar(select(Upload.id).where(Upload.batch_id == batch_id).limit(1)):
            # Its file, and what Dagster keeps about it, would stay for ever.
            raise RefusedError(
                f"an upload was added to batch {label} while the batch was being deleted: delete "
                "again"
            )
        calls = connection.execute(delete(ModelCall).where(of_batch)).rowcount
        connection.execute(delete(AskedSlice).where(AskedSlice.key.contains(str(batch_id))))
        connection.execute(delete(WorkPause).where(WorkPause.target == str(batch_id)))
        batches = connection.execute(delete(UploadBatch).where(UploadBatch.id == batch_id)).rowcount
        forget_events(connection, [batch_id, *ids])
        # Triggers have recorded these deletions as changes of the batch, so this comes last.
        connection.execute(delete(BatchToRecount).where(BatchToRecount.batch_id == batch_id))
        receipt.counts += Counter(batches=batches, uploads=uploads, model_calls=calls)


def _forget_upload(  # noqa: PLR0917
    pipeline: Pipeline,
    history: History,
    files: "_Files",
    upload_id: uuid.UUID,
    batch_id: uuid.UUID | None,
    runs: Sequence[str],
    receipt: Receipt,
) -> None:
    with pipeline.database.transaction() as connection:
        rows = _rows(connection, Upload.id == upload_id)
    receipt.uploads += [row.id for row in rows]
    receipt.counts += files.remove(rows)
    of_upload = ModelCall.upload_id == upload_id
    if receipt.dry_run:
        with pipeline.database.transaction() as connection:
            receipt.counts += Counter(
                uploads=len(rows),
                vectors=sum(row.has_vector for row in rows),
                model_calls=_count_calls(connection, of_upload),
            )
        return
    receipt.counts += Counter(history.forget_upload(upload_id, batch_id, runs))
    with pipeline.publisher.transaction() as transaction:
        connection = transaction.connection
        uploads = _delete_uploads(connection, Upload.id == upload_id, files)
        calls = connection.execute(delete(ModelCall).where(of_upload)).rowcount
        receipt.counts += Counter(uploads=uploads, model_calls=calls)
        # An API may have deleted the row of the batch.
        if batch_id is not None and (progress := recount_batch(connection, batch_id)):
            transaction.announce(progress, progress.user_id)
        forget_events(connection, [upload_id])


def _forget_rest_of_user(
    pipeline: Pipeline, files: "_Files", user_id: uuid.UUID, receipt: Receipt
) -> None:
    """Delete rows that name the user but no longer belong to an upload."""
    # Uploads that have no user in their row, but belong to the user of their batch.
    of_others = exists().where(Upload.id == ModelCall.upload_id, Upload.user_id.is_(None))
    of_user = and_(ModelCall.user_id == user_id, ~of_others)
    # An upload that still has a row belongs to another user now, and so does its thumbnail.
    of_gone = and_(
        MadeThumbnail.user_id == user_id,
        ~exists().where(Upload.id == MadeThumbnail.upload_id),
    )
    with pipeline.database.transaction() as connection:
        noted = connection.scalars(select(MadeThumbnail.upload_id).where(of_gone)).all()
        came = or_(
            exists().where(owned_by(UploadBatch.user_id, user_id)),
            exists().where(upload_owned_by(user_id)),
        )
        if not receipt.dry_run and connection.scalar(select(came)):
            # A submission adds them, or the sweep, which puts uploads without a batch into one.
            raise RefusedError(
                f"uploads or a batch were added to user {user_id} while the user was being "
                "deleted: delete again"
            )
        if receipt.dry_run:
            counted = receipt.counts["model_calls"]
            more = max(0, _count_calls(connection, of_user) - counted)
            receipt.counts += Counter(model_calls=more)
        else:
            calls = connection.execute(delete(ModelCall).where(of_user)).rowcount
            receipt.counts += Counter(model_calls=calls)
    receipt.counts += files.remove_thumbnails(user_id, noted)
    if not receipt.dry_run:
        with pipeline.database.transaction() as connection:
            removed = one_of(MadeThumbnail.upload_id, set(noted) - files.shared)
            connection.execute(delete(MadeThumbnail).where(of_gone, removed))
            answers = exists().where(owned_by(Upload.user_id, user_id))
            connection.execute(
                delete(AnsweringSpace).where(AnsweringSpace.user_id == user_id, ~answers)
            )
            of_theirs = DescriptionInWork.user_id == user_id
            connection.execute(delete(DescriptionInWork).where(of_theirs))
            connection.execute(delete(WorkPause).where(WorkPause.target == str(user_id)))
            forget_events(connection, [user_id])
        pipeline.storage.remove_empty_folder(str(user_id))


def _count_calls(connection: Connection, which: ColumnElement[bool]) -> int:
    return connection.execute(select(func.count()).select_from(ModelCall).where(which)).scalar_one()


def _rows(connection: Connection, which: ColumnElement[bool]) -> Sequence[AnyRow]:
    return connection.execute(
        select(
            Upload.id,
            owner(Upload.user_id),
            Upload.file_path,
            Upload.thumbnail_path,
            _HAS_VECTOR.label("has_vector"),
        )
        .where(which)
        .order_by(Upload.id)
    ).all()


def _delete_uploads(connection: Connection, which: ColumnElement[bool], files: "_Files") -> int:
    """Delete uploads in the order of their ids, with the records of their thumbnails."""
    ids = connection.scalars(
        select(Upload.id).where(which).order_by(Upload.id).with_for_update()
    ).all()
    noted = set(ids) - files.shared
    connection.execute(delete(MadeThumbnail).where(one_of(MadeThumbnail.upload_id, noted)))
    connection.execute(delete(DescriptionInWork).where(one_of(DescriptionInWork.upload_id, ids)))
    return int(connection.execute(delete(Upload).where(one_of(Upload.id, ids))).rowcount)


class _Files:
    """Removes the files of uploads that are proven to belong to the pipeline.

    On a storage that this database owns (``file_ownership.py``), these are originals and thumbnails
    at the paths where `submit` and the pipeline write them. On a storage without an owner, they are
    the thumbnails that are recorded as ours. Other files may belong to another system and are
    removed only if a person asks for it.
    """

    def __init__(self, pipeline: Pipeline, *, originals: bool, dry_run: bool) -> None:
        self._storage, self._database = pipeline.storage, pipeline.database
        self._all, self._dry_run = originals, dry_run
        self._ownership = ownership = pipeline.ownership
        self._is_ours = ownership.would_own() if dry_run else ownership.claim()
        self._is_nobodys = not self._is_ours and ownership.owner() is None
        #: Files that are counted as removed or missing, since two uploads may name the same one.
        self._counted: set[str] = set()
        #: Uploads whose thumbnail other rows name, since an upload API may copy rows. Their records
        #: stay, so that the tidy finds the thumbnail when those rows are gone.
        self.shared: set[uuid.UUID] = set()

    def remove(self, rows: Sequence[AnyRow]) -> Counter[str]:
        """Remove the files of uploads; returns the counts by kind."""
        counts: Counter[str] = Counter()
        paths = {path for row in rows for path in (row.file_path, row.thumbnail_path) if path}
        shared = paths_in_use(self._database, paths, but_of={row.id for row in rows})
        noted = self._noted(rows)
        for row in rows:
            # The upload may have been another user's when its thumbnail was made.
            thumbnail = Storage.thumbnail_path(noted.get(row.id, row.user_id), row.id)
            if thumbnail in shared:
                self.shared.add(row.id)
            for path in dict.fromkeys(filter(None, [thumbnail, row.thumbnail_path])):
                may = self._may(path == thumbnail, is_noted=row.id in noted) and path not in shared
                is_named = path == row.thumbnail_path
                self._remove(path, "thumbnails", counts, may=may, is_named=is_named)
            extension = (row.file_path or "").rpartition(".")[2]
            original = Storage.original_path(row.user_id, row.id, extension)
            if row.file_path:
                may = self._may(row.file_path == original) and row.file_path not in shared
                self._remove(row.file_path, "originals", counts, may=may)
        self._require_storage()
        return counts

    def remove_thumbnails(
        self, user_id: uuid.UUID, upload_ids: Sequence[uuid.UUID]
    ) -> Counter[str]:
        """Remove recorded thumbnails of uploads whose rows are gone; returns the counts by kind."""
        counts: Counter[str] = Counter()
        paths = {id_: Storage.thumbnail_path(user_id, id_) for id_ in upload_ids}
        shared = paths_in_use(self._database, paths.values())
        self.shared |= {id_ for id_, path in paths.items() if path in shared}
        for path in paths.values():
            may = self._may(True, is_noted=True) and path not in shared
            self._remove(path, "thumbnails", counts, may=may, is_named=False)
        self._require_storage()
        return counts

    def _may(self, is_in_our_place: bool, *, is_noted: bool = False) -> bool:
        ours = is_in_our_place and (self._is_ours or (self._is_nobodys and is_noted))
        return ours or self._all

    def _require_storage(self) -> None:
        """Raise an error if the storage went away: its files only seem gone, and rows must stay."""
        if not self._dry_run:
            self._ownership.require_note()

    def _remove(
        self, path: str, kind: str, counts: Counter[str], *, may: bool, is_named: bool = True
    ) -> None:
        """Remove a file that is there; `is_named` says whether a row names it."""
        if path in self._counted:
            return
        try:
            if not self._storage.exists(path):
                if is_named:
                    self._counted.add(path)
                    counts["files_missing"] += 1
                return
            if not may:
                counts["files_kept"] += 1
                return
            if not self._dry_run:
                self._storage.remove(path)
        except PermanentError:  # the path leads out of the storage
            counts["files_kept"] += 1
        else:
            self._counted.add(path)
            counts[kind] += 1

    def _noted(self, rows: Sequence[AnyRow]) -> dict[uuid.UUID, uuid.UUID]:
        """Return the users in whose folders we made thumbnails of these uploads."""
        notes = select(MadeThumbnail.upload_id, MadeThumbnail.user_id).where(
            one_of(MadeThumbnail.upload_id, [row.id for row in rows])
        )
        with self._database.transaction() as connection:
            return {note.upload_id: note.user_id for note in connection.execute(notes)}
