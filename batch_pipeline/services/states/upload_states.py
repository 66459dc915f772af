"""Transitions of a run: reserve uploads, start them, store results, end and release them.

Every change of an upload is a conditional update that names the owner and the claim token of the
claim. A write with an older token is refused. Related modules: ``upload_statements.py`` (the
statements), ``transitions.py`` (rules of all transitions), ``batch_states.py`` (transitions that
people ask for), ``backlog.py`` (transitions of the sweep).
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    and_,
    case,
    delete,
    func,
    or_,
    select,
    update,
)

from batch_pipeline.database.connection_setup import LATEST
from batch_pipeline.database.failures import each_repeated
from batch_pipeline.database.lone_statements import LoneStatement
from batch_pipeline.database.models import (
    OPEN_BATCH,
    OPEN_UPLOAD,
    BatchStatus,
    Upload,
    UploadBatch,
    UploadStatus,
    UploadVector,
)
from batch_pipeline.database.readings import (
    FILENAME,
    WAITING,
    count,
    interval,
    lease_lives,
    one_of,
)
from batch_pipeline.database.session import AnyRow
from batch_pipeline.errors import ClaimLostError, KindedError, PipelineError, TransientError
from batch_pipeline.media.sniffing import MediaType
from batch_pipeline.model_servers.base import Description
from batch_pipeline.services.descriptions.known_results import Described
from batch_pipeline.services.notifications.outbox import note_outage
from batch_pipeline.services.progress.publishing import (
    PROGRESS,
    Addressed,
    Announcer,
    BatchProgress,
    ProgressPublisher,
)
from batch_pipeline.services.states.transitions import (
    ANNOUNCED,
    BEGUN,
    DESCRIPTION_STORED,
    ENDED_WELL,
    THUMBNAIL_STORED,
    announce_file,
    count_failed,
    disown,
    end_if_done,
    file_progress,
    noted,
    percentage_reached,
    recount_batch,
    recount_batches,
    release_rows,
    reopen_batch,
    retry_failed,
    updated_batch,
)
from batch_pipeline.services.states.upload_statements import (
    COMPLETE,
    COMPLETE_WITH_VECTOR,
    COMPLETE_WITHIN,
    COMPLETE_WITHIN_WITH_VECTOR,
    LOCK_REFUSED,
    REPLACE_DESCRIPTION,
    START,
    STORE_DESCRIPTION,
    STORE_THUMBNAIL,
    held_by,
    held_update,
)

#: Delays after which the sweep retries an upload that failed for a temporary reason (seconds after
#: each failure). After the last one, only a person can retry it.
RETRY_DELAYS = (15 * 60, 60 * 60, 6 * 60 * 60)


@dataclass(frozen=True)
class Claim:
    """The right to process an upload: its owner and the claim token."""

    upload_id: uuid.UUID
    run_id: str
    token: int


@dataclass(frozen=True)
class StartedUpload:
    """An upload whose attempt has started, with its current columns `STARTED`."""

    claim: Claim
    row: AnyRow


@dataclass(frozen=True)
class SkippedUpload:
    """An upload that is not processed, with the reason."""

    upload_id: uuid.UUID
    reason: str
    filename: str = ""


@dataclass(frozen=True)
class NewVector:
    """A vector of an upload in an embedding space."""

    space_id: int
    numbers: Sequence[float]


@dataclass(frozen=True)
class Embedded:
    """The result of embedding an upload."""

    vector: NewVector
    """The vector in the space into which new vectors go."""
    model: str
    fingerprint: str
    fits_local: bool
    """The vector is as wide as ``uploads.embedding_local``."""
    answering: NewVector | None = None
    """The vector in the space that answers the user, if that is another space."""

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the statements that store it."""
        other = self.answering
        return {
            "space": self.vector.space_id,
            "vector": list(self.vector.numbers),
            "fits": self.fits_local,
            "model": self.model,
            "made_with": self.fingerprint,
            "other_space": other.space_id if other else None,
            "other_vector": list(other.numbers) if other else None,
        }


@dataclass(frozen=True)
class LoadedBatch:
    """The result of reserving uploads of a batch."""

    progress: BatchProgress
    expected_total: int
    """``total_uploads`` before it was corrected."""
    reserved: Sequence[AnyRow]
    """``id`` and ``filename``, oldest first."""


@each_repeated
class UploadStates:
    """Every transition that a run makes."""

    def __init__(self, publisher: ProgressPublisher, *, lease_seconds: float) -> None:
        self._publisher = publisher
        self._lease_seconds = lease_seconds

    def load_batch(
        self,
        batch_id: uuid.UUID,
        run_id: str,
        *,
        slice_number: int | None = None,
        upload_ids: Sequence[uuid.UUID] = (),
        limit: int,
        paused: bool = False,
    ) -> LoadedBatch | None:
        """Mark a batch as processing and reserve uploads of it for this run.

        With ``upload_ids``, the failed uploads among them are reopened first, and so is the batch
        if it was given up. If the batch has ended or is ``paused``, nothing is reserved, and its
        uploads leave their slice, because the run of that slice ends without them. Returns None if
        there is no such batch.
        """
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            batch = connection.execute(
                select(UploadBatch.status, count(UploadBatch.total_uploads)).where(
                    UploadBatch.id == batch_id
                )
            ).one_or_none()
            if batch is None:
                return None
            _reopen_named(connection, batch_id, upload_ids)
            recounted = recount_batch(connection, batch_id)
            if recounted is None:
                return None
            if paused or recounted.status not in OPEN_BATCH:
                if slice_number is not None:
                    _release_waiting(connection, batch_id, slice_number)
                return LoadedBatch(recounted, batch.total_uploads, [])
            waiting = (
                select(Upload.id)
                .where(_waiting_of(batch_id, slice_number, upload_ids))
                .order_by(Upload.created_at, Upload.id)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            reserved = connection.execute(
                update(Upload)
                .where(Upload.id.in_(waiting.scalar_subquery()))
                .values(
                    owner_run_id=run_id,
                    claim_token=Upload.claim_token + 1,
                    heartbeat_at=func.now(),
                    not_before=None,
                )
                .returning(Upload.id, FILENAME, Upload.created_at)
            ).all()
            progress = updated_batch(
                connection,
                update(UploadBatch)
                .where(UploadBatch.id == batch_id)
                .values(
                    status=case(
                        (UploadBatch.status == BatchStatus.PENDING, BatchStatus.PROCESSING),
                        else_=UploadBatch.status,
                    ),
                    started_at=func.coalesce(UploadBatch.started_at, func.now()),
                    updated_at=func.now(),
                ),
            )
            transaction.announce(progress, progress.user_id)
        oldest_first = sorted(reserved, key=lambda row: (row.created_at or LATEST, row.id))
        return LoadedBatch(progress, batch.total_uploads, oldest_first)

    def start(self, upload_id: uuid.UUID, run_id: str) -> StartedUpload | SkippedUpload:
        """Start an attempt if this run may process the upload.

        A failed upload is reopened, because re-executing its step asks for that. A batch that was
        given up is reopened, too. A claim whose heartbeat is older than the lease is taken over.
        A paused upload is skipped and is pending afterwards.
        """
        names = {"of_upload": upload_id, "of_run": run_id, "lease": self._lease_seconds}
        row = self._publisher.execute(START, names, _begun)
        if row is None:
            with self._publisher.transaction() as transaction:
                if skipped := self._open_to_start(transaction, upload_id, run_id):
                    return skipped
                row = transaction.connection.execute(START.statement, names).one_or_none()
                if row is None:
                    return SkippedUpload(upload_id, "its batch was cancelled or given up meanwhile")
                for message, user_id in _begun(row):
                    transaction.note(message, user_id)
        return StartedUpload(Claim(upload_id, run_id, row.claim_token), row)

    def store_thumbnail(self, claim: Claim, path: str, seconds: Mapping[str, float]) -> None:
        """Store the thumbnail; a later attempt does not make it again."""
        self._advance(claim, THUMBNAIL_STORED, STORE_THUMBNAIL, path=path, seconds=dict(seconds))

    def store_description(
        self,
        claim: Claim,
        *,
        described: Described,
        facts: Mapping[str, Any],
        checksum: str | None,
        media_type: MediaType | None,
        video_codec: str | None,
        regenerated: bool,
        seconds: Mapping[str, float],
    ) -> None:
        """Store a description that passed the audit; a later attempt does not ask for it again."""
        description = described.description
        self._advance(
            claim,
            DESCRIPTION_STORED,
            REPLACE_DESCRIPTION if regenerated else STORE_DESCRIPTION,
            words=description.text,
            tags=list(description.tags),
            readable=description.visible_text or None,
            score=described.score,
            model=described.model,
            made_with=described.fingerprint,
            content=checksum,
            found={**facts, **_as_facts(description)},
            true_file_type=media_type.file_type if media_type else None,
            true_mime_type=media_type.mime_type if media_type else None,
            codec=video_codec,
            regenerated=int(regenerated),
            seconds=dict(seconds),
        )

    def complete(
        self,
        claim: Claim,
        *,
        embedded: Embedded | None = None,
        seconds: Mapping[str, float],
    ) -> BatchProgress | None:
        """Store vectors, end the upload and count it; ends the batch after its last upload.

        Without ``embedded``, the stored vectors stay.
        """
        names = {**_names(claim), "seconds": dict(seconds)}
        within, whole = COMPLETE_WITHIN, COMPLETE
        if embedded is not None:
            within, whole = COMPLETE_WITHIN_WITH_VECTOR, COMPLETE_WITH_VECTOR
            names |= embedded.parameters()
        tell = self._publisher.counters_are_due(claim.run_id)

        def messages(row: AnyRow) -> Iterator[Addressed]:
            yield file_progress(row, ENDED_WELL, "completed"), row.user_id
            progress = _counted(row)
            if tell and progress:
                yield progress, progress.user_id

        row = self._publisher.execute(within, {**names, "tell": tell}, messages)
        if row is not None:
            progress = _counted(row)
            if progress and not tell:
                self._publisher.left_out(progress.batch_id)
            return progress
        # It may be the last upload of its batch, or the claim is lost.
        with self._publisher.transaction() as transaction:
            row = transaction.connection.execute(whole, names).one_or_none()
            if row is None:
                return _ended_before(transaction.connection, claim)
            announce_file(transaction, row, ENDED_WELL, "completed")
            progress = _counted(row)
            if progress:
                progress = end_if_done(transaction.connection, progress)
                transaction.announce(progress, progress.user_id)
        return progress

    def forget_vector(self, claim: Claim, space_id: int) -> None:
        """Delete the vector of an upload in a space: it belongs to an older description."""
        with self._publisher.transaction() as transaction:
            transaction.connection.execute(
                delete(UploadVector).where(
                    UploadVector.upload_id
                    == select(Upload.id).where(_held(claim)).scalar_subquery(),
                    UploadVector.space_id == space_id,
                )
            )

    def fail(self, claim: Claim, error: KindedError) -> BatchProgress | None:
        """Fail the upload for a reason, and count it."""
        statement = held_update(
            processing_status=UploadStatus.FAILED,
            owner_run_id=None,
            deaths=0,
            retry_at=_next_retry() if isinstance(error, TransientError) else None,
            **noted(error),
        )
        with self._publisher.transaction() as transaction:
            row = _written(transaction.connection, claim, statement)
            announce_file(transaction, row, percentage_reached(row), "failed")
            if row.batch_id is None:
                return None
            progress = count_failed(transaction.connection, row.batch_id, 1)
            if progress:
                transaction.announce(progress, progress.user_id)
        return progress

    def note_error(self, claim: Claim, error: KindedError) -> None:
        """Store why an attempt failed; the same run will try again.

        Until then the upload is reserved as it was before, so that its heartbeat is renewed.
        """
        waiting = held_update(processing_status=UploadStatus.PENDING, deaths=0, **noted(error))
        with self._publisher.transaction() as transaction:
            _written(transaction.connection, claim, waiting)

    def release(
        self,
        claim: Claim,
        reason: PipelineError | None = None,
        *,
        resume_after_seconds: float = 0,
        server_died: bool = False,
    ) -> None:
        """Release an upload in progress; the attempt does not count. The row keeps the reason.

        `server_died`: the model server died during the call for this upload. That makes the upload
        a suspect.
        """
        with self._publisher.transaction() as transaction:
            release_rows(
                transaction.connection,
                _held(claim),
                **noted(reason),
                attempts=Upload.attempts - 1,
                deaths=0,
                server_deaths=Upload.server_deaths + int(server_died),
                not_before=func.now() + interval(resume_after_seconds),
            )
            note_outage(transaction.connection, reason)

    def release_run(
        self,
        run_id: str,
        reason: PipelineError | None = None,
        *,
        resume_after_seconds: float = 0,
    ) -> int:
        """Release the uploads that a run has reserved but not started.

        Returns how many uploads.
        """
        with self._publisher.transaction() as transaction:
            released = release_rows(
                transaction.connection,
                and_(
                    Upload.owner_run_id == run_id,
                    Upload.processing_status == UploadStatus.PENDING,
                ),
                **noted(reason),
                not_before=func.now() + interval(resume_after_seconds),
            )
            note_outage(transaction.connection, reason)
        return released

    def release_waiting(
        self,
        batch_id: uuid.UUID,
        reason: PipelineError,
        *,
        slice_number: int | None = None,
        upload_ids: Sequence[uuid.UUID] = (),
        resume_after_seconds: float,
    ) -> int:
        """Delay waiting uploads of a run that cannot process them now; returns how many.

        They leave their slice, because its run ends here. So the sensor asks for a new slice. With
        ``upload_ids``, the failed uploads among them are reopened first, as by `load_batch`.
        """
        with self._publisher.transaction() as transaction:
            _reopen_named(transaction.connection, batch_id, upload_ids)
            released = _release_waiting(
                transaction.connection,
                batch_id,
                slice_number,
                upload_ids,
                **noted(reason),
                not_before=func.now() + interval(resume_after_seconds),
            )
            note_outage(transaction.connection, reason)
            if upload_ids:
                recount_batches(transaction, [batch_id])
        return released

    def heartbeat(self, run_id: str, in_work: Sequence[Claim]) -> None:
        """Renew the heartbeats of a run: of its reservations and of its claims in progress.

        A row that another transaction has locked is left out, so that the others do not wait for
        it. A rescue skips locked rows, too.
        """
        alive = (
            select(Upload.id)
            .where(
                Upload.owner_run_id == run_id,
                or_(
                    Upload.processing_status == UploadStatus.PENDING,
                    Upload.id.in_([claim.upload_id for claim in in_work]),
                ),
            )
            .order_by(Upload.id)
            .with_for_update(skip_locked=True)
        )
        with self._publisher.transaction() as transaction:
            connection = transaction.connection
            locked = connection.scalars(alive).all()
            connection.execute(
                update(Upload).where(Upload.id.in_(locked)).values(heartbeat_at=func.now())
            )

    def holds(self, run_id: str) -> dict[uuid.UUID, bool]:
        """Return the uploads of a run whose lease has not expired; True means in progress."""
        with self._publisher.transaction() as transaction:
            rows = transaction.connection.execute(
                select(Upload.id, Upload.processing_status).where(
                    Upload.owner_run_id == run_id, lease_lives(self._lease_seconds)
                )
            ).all()
        return {row.id: row.processing_status != UploadStatus.PENDING for row in rows}

    def wanted(self, claims: Sequence[Claim]) -> set[Claim]:
        """Return the claims that are still valid and whose batch is not cancelled.

        A claim is no longer valid if an upload API has ended the upload.
        """
        with self._publisher.transaction() as transaction:
            rows = transaction.connection.execute(
                select(Upload.id, Upload.owner_run_id, Upload.claim_token)
                .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
                .where(
                    Upload.id.in_([claim.upload_id for claim in claims]),
                    Upload.processing_status.in_(OPEN_UPLOAD),
                    UploadBatch.status.is_distinct_from(BatchStatus.CANCELLED),
                )
            ).all()
        return set(claims) & {
            Claim(row.id, row.owner_run_id or "", row.claim_token) for row in rows
        }

    def catch_up_progress(self) -> None:
        """Send the progress messages that the rate limit held back."""
        self._publisher.catch_up()

    def exists(self, upload_id: uuid.UUID) -> bool:
        """Return whether an upload still exists."""
        with self._publisher.transaction() as transaction:
            found = transaction.connection.scalar(select(Upload.id).where(Upload.id == upload_id))
        return found is not None

    def _open_to_start(
        self, transaction: Announcer, upload_id: uuid.UUID, run_id: str
    ) -> SkippedUpload | None:
        """Lock an upload, and reopen it and its batch if they have failed.

        Returns why the upload is skipped, or None if it may start.
        """
        connection = transaction.connection
        row = connection.execute(
            LOCK_REFUSED, {"of_upload": upload_id, "lease": self._lease_seconds}
        ).one_or_none()
        if row is None:
            return SkippedUpload(upload_id, "it was deleted")
        if reason := _reason_to_skip(row, run_id):
            if row.owner_run_id == run_id:
                release_rows(connection, Upload.id == upload_id)
                disown(connection, Upload.id == upload_id)
            return SkippedUpload(upload_id, reason, row.filename)
        if row.batch_status == BatchStatus.FAILED:
            reopen_batch(connection, row.batch_id)
        if row.processing_status == UploadStatus.FAILED:
            release_rows(connection, Upload.id == upload_id, attempts=0, server_deaths=0)
            progress = row.batch_id and count_failed(connection, row.batch_id, -1)
            if progress:
                transaction.announce(progress, progress.user_id)
        if row.paused:
            release_rows(connection, Upload.id == upload_id)
            return SkippedUpload(upload_id, "it is paused", row.filename)
        return None

    def _advance(
        self, claim: Claim, percentage: int, statement: LoneStatement, **parameters: Any
    ) -> None:
        tell = self._publisher.stage_is_due(claim.run_id)

        def messages(row: AnyRow) -> Iterator[Addressed]:
            if tell:
                yield file_progress(row, percentage, "processing"), row.user_id

        names = {**_names(claim), "tell": tell, **parameters}
        if self._publisher.execute(statement, names, messages) is None:
            raise _lost(claim)


def _waiting_of(
    batch_id: uuid.UUID, slice_number: int | None, upload_ids: Sequence[uuid.UUID]
) -> ColumnElement[bool]:
    """Condition: waiting uploads of a batch, limited to a slice and to ids if they are given."""
    of_slice = [] if slice_number is None else [Upload.slice == slice_number]
    of_ids = [one_of(Upload.id, upload_ids)] if upload_ids else []
    return and_(Upload.batch_id == batch_id, WAITING, *of_slice, *of_ids)


def _reopen_named(
    connection: Connection, batch_id: uuid.UUID, upload_ids: Sequence[uuid.UUID]
) -> None:
    """Reopen failed uploads that a person has named, and their batch if it was given up.

    Uploads of a cancelled batch stay as they are. The caller recounts the batch.
    """
    if not upload_ids:
        return
    status = connection.scalar(select(UploadBatch.status).where(UploadBatch.id == batch_id))
    if status != BatchStatus.CANCELLED:
        retry_failed(connection, batch_id, upload_ids)
        reopen_batch(connection, batch_id)


def _release_waiting(
    connection: Connection,
    batch_id: uuid.UUID,
    slice_number: int | None,
    upload_ids: Sequence[uuid.UUID] = (),
    **values: Any,
) -> int:
    """Remove waiting uploads of a batch from their slice; returns how many."""
    waiting = _waiting_of(batch_id, slice_number, upload_ids)
    locked = list(
        connection.scalars(
            select(Upload.id).where(waiting).order_by(Upload.id).with_for_update(skip_locked=True)
        )
    )
    return release_rows(connection, one_of(Upload.id, locked), **values)


def _as_facts(description: Description) -> dict[str, Any]:
    """Return tags and visible text as metadata, for upload APIs that do not know our columns."""
    found = {"tags": list(description.tags), "visible_text": description.visible_text}
    return {name: value for name, value in found.items() if value}


def _begun(row: AnyRow) -> Iterator[Addressed]:
    yield file_progress(row, BEGUN, "processing"), row.user_id


def _counted(row: AnyRow) -> BatchProgress | None:
    """Read the counters that follow the columns `ANNOUNCED`."""
    counters = row[len(ANNOUNCED) : len(ANNOUNCED) + len(PROGRESS)]
    return None if counters[0] is None else BatchProgress(*counters)


def _written(connection: Connection, claim: Claim, statement: Executable) -> AnyRow:
    """Execute a `held_update`; raises `ClaimLostError` if the claim is no longer valid."""
    row = connection.execute(statement, _names(claim)).one_or_none()
    if row is None:
        raise _lost(claim)
    return row


def _ended_before(connection: Connection, claim: Claim) -> BatchProgress | None:
    """Return the batch of an upload that this claim has already completed.

    That happens when the commit succeeded but its reply was lost.

    Raises:
        ClaimLostError: this claim has not completed the upload.
    """
    ended = connection.execute(
        select(*PROGRESS)
        .select_from(Upload)
        .outerjoin(UploadBatch, UploadBatch.id == Upload.batch_id)
        .where(
            Upload.id == claim.upload_id,
            Upload.claim_token == claim.token,
            Upload.processing_status == UploadStatus.COMPLETED,
        )
    ).one_or_none()
    if ended is None:
        raise _lost(claim)
    return None if ended[0] is None else BatchProgress(*ended)


def _lost(claim: Claim) -> ClaimLostError:
    return ClaimLostError(f"upload {claim.upload_id} is no longer held by {claim.run_id}")


def _held(claim: Claim) -> ColumnElement[bool]:
    return held_by(claim.upload_id, claim.run_id, claim.token)


def _names(claim: Claim) -> dict[str, Any]:
    return {"of_upload": claim.upload_id, "of_run": claim.run_id, "token": claim.token}


def _next_retry() -> Any:
    return case(
        *(
            (Upload.retries == number, func.now() + interval(delay))
            for number, delay in enumerate(RETRY_DELAYS)
        ),
        else_=None,
    )


def _reason_to_skip(row: AnyRow, run_id: str) -> str | None:
    if row.batch_status == BatchStatus.CANCELLED:
        return "the batch was cancelled; `batch-pipeline retry` reopens it"
    # A person who re-executes a step asks for an upload that no run has reserved.
    if row.batch_status == BatchStatus.FAILED and row.owner_run_id == run_id:
        return "the batch was given up"
    if row.processing_status == UploadStatus.COMPLETED:
        return "it is completed already"
    if row.processing_status not in set(UploadStatus):
        return f"its status is {row.processing_status}"
    held_by_other = row.owner_run_id not in {None, run_id} and not row.expired
    if held_by_other:
        return f"run {row.owner_run_id} is processing it"
    return None
