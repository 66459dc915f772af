"""One upload from claim to stored row: decode, thumbnail, describe, audit, embed, store.

The code is in the order in which an upload is processed. A stored result is not made again unless a
person asked to redo its stage. Only `UploadStates` changes statuses and counters.
"""

import hashlib
import io
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import BinaryIO, TypeVar

from batch_pipeline.database.models import Stage
from batch_pipeline.database.session import AnyRow
from batch_pipeline.database.spaces import Space
from batch_pipeline.errors import (
    ClaimLostError,
    ConfigurationError,
    PermanentError,
    PipelineError,
    ServiceDownError,
    TransientError,
    UploadError,
    WorkCancelledError,
    WorkPausedError,
)
from batch_pipeline.media.acceptance import accept
from batch_pipeline.media.content import MediaContent
from batch_pipeline.media.decoding import decode
from batch_pipeline.media.metadata import parse_date
from batch_pipeline.media.sniffing import MediaType, read_head
from batch_pipeline.model_servers.base import (
    Caller,
    CancelledCheck,
    EmbeddingModel,
    never_cancelled,
)
from batch_pipeline.model_servers.picture_size import picture_size
from batch_pipeline.services.deletion.file_ownership import paths_in_use
from batch_pipeline.services.descriptions.audit import PASS_SCORE, AuditResult, audit
from batch_pipeline.services.descriptions.known_results import Described, look_up, vector_of
from batch_pipeline.services.model_costs import Account
from batch_pipeline.services.outages import apart_from_suspects, own_fault, server_died
from batch_pipeline.services.pipeline import Pipeline
from batch_pipeline.services.progress.publishing import BatchProgress
from batch_pipeline.services.reports.previews import Previews
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.states.upload_states import (
    Claim,
    Embedded,
    NewVector,
    SkippedUpload,
    StartedUpload,
)
from batch_pipeline.storage import storage_error
from batch_pipeline.visible_text import visible_line

#: How long uploads wait after an outage before a run tries again (seconds).
OUTAGE_PAUSE_SECONDS = 20.0
#: How long an attempt waits for a database that is down, and the pause between two tries (seconds).
#: The first is longer than a failover takes.
PATIENCE_SECONDS, _TRY_PAUSE_SECONDS = 300.0, 1.0
#: Pause between two checks whether a copy of the same file is described (seconds).
_COPY_PAUSE_SECONDS = 0.5

log = logging.getLogger(__name__)
Stored = TypeVar("Stored")


def outage_pause(error: PipelineError) -> float:
    """Return how long uploads wait after an outage, in seconds.

    It is the time that the service asked for, or `OUTAGE_PAUSE_SECONDS`.
    """
    return getattr(error, "resume_after_seconds", None) or OUTAGE_PAUSE_SECONDS


@dataclass
class UploadReport:
    """What is known about an upload during and after its processing."""

    upload_id: uuid.UUID
    batch_id: uuid.UUID | None
    filename: str
    attempt: int
    thumbnail_path: str | None
    described: Described | None
    """The stored description; None if there is none yet."""
    checksum: str | None
    """SHA-256 of the original, hexadecimal; None while it is not known."""
    account: Account
    """Costs of all model calls of this attempt, including those without a usable answer."""
    embedding_model: str | None = None
    embedding_fingerprint: str | None = None
    """Fingerprint of the vector made in this attempt."""
    media_type: MediaType | None = None
    """The type by the file's content, if the file was read in this attempt."""
    thumbnail: bytes | None = None
    """The preview, if it was made in this attempt."""
    audit: AuditResult | None = None
    """Audit of the description made in this attempt, passed or not."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each stage of this attempt."""
    progress: BatchProgress | None = None
    """Progress of the batch after this upload ended; None until it is counted."""


@dataclass(frozen=True)
class CompletedUpload:
    """The upload is completed, and all its results are stored."""

    report: UploadReport


@dataclass(frozen=True)
class FailedUpload:
    """The attempt ended without a result."""

    report: UploadReport
    error: UploadError
    will_retry: bool
    """True: the run keeps the claim and tries again. False: the upload is ``failed`` and counted.
    """


#: Makes a context that surrounds a wait.
WhileWaiting = Callable[[], AbstractContextManager[None]]
Outcome = CompletedUpload | FailedUpload | SkippedUpload


@dataclass(frozen=True)
class _Patience:
    """Waits for a database that is down, until the upload is no longer wanted.

    Without it, an answer of a model would be lost, and the outage would count as an attempt or as
    a death of the worker.
    """

    filename: str
    while_waiting: WhileWaiting
    unwanted: CancelledCheck

    def stored(self, store: Callable[[], Stored]) -> Stored:
        """Call `store` until the database answers, for at most `PATIENCE_SECONDS`."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        failures = 0
        while True:
            try:
                return store()
            except ServiceDownError as error:
                if time.monotonic() > give_up_at:
                    raise
                log.warning("a result of %r waits to be stored: %s", self.filename, error)
            # If only the reply was lost, everything is stored and the claim has ended.
            if failures:
                _raise_if(self.unwanted)
            failures += 1
            with self.while_waiting():
                time.sleep(_TRY_PAUSE_SECONDS)


@dataclass(frozen=True)
class _Attempt:
    """One attempt at an upload, with what its stages need."""

    claim: Claim
    row: AnyRow
    """Columns `STARTED`, as they were at the start of the attempt."""
    report: UploadReport
    caller: Caller
    while_waiting: WhileWaiting


class UploadProcessor:
    """Processes one upload at a time in each thread; any number of threads may share it."""

    def __init__(self, pipeline: Pipeline, keeper: ClaimKeeper) -> None:
        self._pipeline = pipeline
        self._states = pipeline.states
        self._keeper = keeper

    def process(
        self,
        upload_id: uuid.UUID,
        run_id: str,
        *,
        retries_left: int,
        interrupted: CancelledCheck = never_cancelled,
        while_waiting: WhileWaiting = nullcontext,
    ) -> Outcome:
        """Process one upload for a run.

        Args:
            upload_id: the upload.
            run_id: the run that has reserved the upload, or takes it now.
            retries_left: how many times the caller will try again after a transient error.
            interrupted: checked during model calls; true stops the work like a cancel.
            while_waiting: entered while the thread waits for another process or server.

        Raises:
            ServiceDownError: a service is down. The upload is ``pending`` again, and the attempt
                does not count.
            WorkPausedError: a person has paused the work or the model server of a call. The upload
                is ``pending`` again, and the attempt does not count.
        """
        started = self._states.start(upload_id, run_id)
        if isinstance(started, SkippedUpload):
            return started
        claim, row = started.claim, started.row
        report = UploadReport(
            upload_id=row.id,
            batch_id=row.batch_id,
            filename=row.filename,
            attempt=row.attempts,
            thumbnail_path=row.thumbnail_path,
            described=Described.of(row),
            checksum=row.checksum,
            account=Account(self._pipeline.database, row),
            embedding_model=row.embedding_model,
        )
        patience = _Patience(row.filename, while_waiting, interrupted)
        try:
            with self._keeper.hold(claim) as held, report.account:
                caller = Caller(
                    cancelled=lambda: held.lost() or interrupted(),
                    paused=self._pipeline.pauses.of(row.batch_id),
                )
                self._work(_Attempt(claim, row, report, caller, while_waiting))
                return CompletedUpload(report)
        except (ClaimLostError, WorkCancelledError):
            return self._let_go(started, report)
        except WorkPausedError:
            self._release_if_possible(claim, patience)
            raise
        except UploadError as error:
            return self._end_attempt(claim, report, error, retries_left, patience)
        except (ServiceDownError, ConfigurationError) as error:
            if fault := own_fault(self._pipeline, error, row):
                # The upload has made the server die too often, so it is not retried.
                left = 0 if server_died(error) else retries_left
                return self._end_attempt(claim, report, fault, left, patience)
            self._release_if_possible(claim, patience, error, outage_pause(error))
            raise
        except Exception as error:
            log.exception("upload %s: unexpected error", upload_id)
            reason = TransientError("internal_error", f"{type(error).__name__}: {error}")
            return self._end_attempt(claim, report, reason, retries_left, patience)
        except BaseException:  # interrupted by Dagster, by a signal or at exit
            self._release_if_possible(claim)
            raise

    def shown_thumbnail(self, report: UploadReport, side: int) -> bytes | None:
        """Return the thumbnail to show after an attempt; None if there is none.

        A thumbnail that an earlier attempt has stored is read, with at most `side` pixels.
        """
        if report.thumbnail is not None:
            return report.thumbnail
        try:
            return Previews(self._pipeline.storage).read(report.thumbnail_path, side)
        except ServiceDownError as error:  # an outage of the storage; the attempt has ended anyway
            log.warning("the thumbnail of %r is not shown: %s", report.filename, error)
            return None

    def _work(self, attempt: _Attempt) -> None:
        row, report = attempt.row, attempt.report
        content = cache(partial(self._decode, attempt))  # decoded when it is first needed

        # A redo of another stage does not retry a thumbnail that failed before.
        if Stage.THUMBNAIL in row.redo or (row.thumbnail_path is None and not row.redo):
            self._make_thumbnail(attempt, content())
        _raise_if(attempt.caller.cancelled)

        # A redo of another stage does not replace a description that an upload API has stored
        # without a score.
        described_well = report.described and (row.redo or report.described.score >= PASS_SCORE)
        describes = not described_well or Stage.DESCRIPTION in row.redo
        if describes:
            self._describe(attempt, content())
        _raise_if(attempt.caller.cancelled)

        embedded: Embedded | None = None
        if describes or not row.has_vector or Stage.EMBEDDING in row.redo:
            embedded = self._embed(attempt, is_new=describes or not row.has_answering_vector)
        complete = partial(
            self._states.complete, attempt.claim, embedded=embedded, seconds=report.seconds
        )
        report.progress = self._keep_trying(attempt, complete)

    def _keep_trying(self, attempt: _Attempt, store: Callable[[], Stored]) -> Stored:
        """Store the answer of a model; wait for the database.

        If another run has taken over the upload in the meantime, nothing is written.
        """

        def store_calls_and_result() -> Stored:
            attempt.report.account.store_waiting()
            return store()

        patience = _Patience(attempt.row.filename, attempt.while_waiting, attempt.caller.cancelled)
        return patience.stored(store_calls_and_result)

    def _decode(self, attempt: _Attempt) -> MediaContent:
        with _timed(attempt.report, "decode"), self._open(attempt) as file:
            settings = self._pipeline.settings
            try:
                media_type = accept(read_head(file), settings.accepted_format_names)
                attempt.report.media_type = media_type
                file.seek(0)
                if _may_be_another_file(attempt.row, media_type, file):
                    attempt.report.checksum = _sha256(file)
                return decode(
                    file,
                    media_type,
                    filename=attempt.row.filename,
                    sidecar_date=parse_date(attempt.row.sidecar_date or ""),
                    max_bytes=settings.max_decode_mib * 1024**2,
                    max_file_bytes=settings.max_file_bytes,
                    patch=picture_size(settings).patch,
                )
            except PermanentError as error:
                if error.preview is not None and attempt.row.thumbnail_path is None:
                    self._store_thumbnail(attempt, error.preview)
                raise
            except OSError as error:  # an error of the storage; errors of the file have a kind
                raise storage_error(error, attempt.row.file_path) from error

    def _open(self, attempt: _Attempt) -> BinaryIO:
        storage = self._pipeline.storage
        if not attempt.row.file_path:
            raise PermanentError("source_missing", "the row of the upload names no file")
        with nullcontext() if storage.is_local else attempt.while_waiting():
            return storage.open(attempt.row.file_path)

    def _make_thumbnail(self, attempt: _Attempt, picture: MediaContent) -> None:
        """Store the thumbnail. If it cannot be made, log a warning and go on."""
        row, report = attempt.row, attempt.report
        try:
            with _timed(report, "thumbnail"):
                thumbnail = picture.make_thumbnail()
        except Exception as error:
            log.warning("no thumbnail of %r: %s", row.filename, visible_line(error))
            return
        self._store_thumbnail(attempt, thumbnail)

    def _store_thumbnail(self, attempt: _Attempt, thumbnail: bytes) -> None:
        row, report = attempt.row, attempt.report
        path = self._pipeline.storage.thumbnail_path(row.user_id, row.id)
        with _timed(report, "thumbnail"):
            self._pipeline.storage.write(path, thumbnail)
        report.thumbnail, report.thumbnail_path = thumbnail, path
        self._states.store_thumbnail(attempt.claim, path, report.seconds)

    def _describe(self, attempt: _Attempt, content: MediaContent) -> None:
        report = attempt.report
        described = self._known(attempt) or self._ask(attempt, content)
        report.described = described
        store = partial(
            self._states.store_description,
            attempt.claim,
            described=described,
            facts=content.facts.as_stored(),
            checksum=report.checksum,
            media_type=report.media_type,
            video_codec=content.facts.codec if content.facts.file_type == "video" else None,
            # An upload API may have removed a description, but vectors of it are still stored.
            regenerated=attempt.row.description is not None or attempt.row.has_vector,
            seconds=report.seconds,
        )
        self._keep_trying(attempt, store)

    def _known(self, attempt: _Attempt) -> Described | None:
        """Return the description of another upload with the same bytes and the same fingerprint.

        While another attempt makes it, this waits. None means that this attempt has to make it. A
        redo of a description that already has this fingerprint asks the model again.
        """
        row, report = attempt.row, attempt.report
        fingerprint = self._pipeline.analyzer.vision.fingerprint()
        if not report.checksum or row.vision_fingerprint == fingerprint:
            return None
        while True:
            found = look_up(
                self._pipeline.database,
                attempt.claim,
                row,
                report.checksum,
                fingerprint,
                of_all_users=self._pipeline.settings.share_results,
                lease_seconds=self._pipeline.settings.lease_seconds,
            )
            if found.described or found.is_ours_to_make:
                return found.described
            with attempt.while_waiting():
                time.sleep(_COPY_PAUSE_SECONDS)
            _raise_if(attempt.caller.cancelled)

    def _ask(self, attempt: _Attempt, content: MediaContent) -> Described:
        vision, report = self._pipeline.analyzer.vision, attempt.report
        with (
            _timed(report, "describe"),
            attempt.while_waiting(),
            apart_from_suspects(self._pipeline, attempt.row, vision, attempt.caller),
        ):
            description = vision.describe(
                content.facts,
                content.frames,
                attempt=report.attempt,
                caller=replace(attempt.caller, spent=report.account.of("vision", vision.name)),
            )
        report.audit = audit(description.text, self._pipeline.settings.language)
        if not report.audit.passed:
            raise TransientError(
                "model_output_invalid",
                f"the description by {vision.name} scores {report.audit.score} of 100, "
                f"{PASS_SCORE} are needed: {report.audit.reasons}",
            )
        return Described(description, report.audit.score, vision.name, vision.fingerprint())

    def _embed(self, attempt: _Attempt, *, is_new: bool) -> Embedded:
        """Embed the description for the current space.

        If the space that answers the user has no current vector of this upload, the description is
        embedded for that space, too. Search uses only that space until a newer one is complete.
        """
        spaces, report = self._pipeline.spaces, attempt.report
        embedding, space = self._pipeline.analyzer.embedding, spaces.current()
        # Everything is read from the database before the model is called, so that an outage of the
        # database cannot cost the model's answer.
        fits_local = spaces.fits_local(space.key.width)
        answering = attempt.row.answering_space
        other = spaces.get(answering) if is_new and answering not in {None, space.id} else None
        report.embedding_model = embedding.name
        report.embedding_fingerprint = made_with = embedding.fingerprint()
        described = report.described
        numbers = (
            vector_of(self._pipeline.database, described, space.id, made_with)
            if described and described.copied_from
            else None
        )
        if numbers is None:
            numbers = self._numbers(attempt, embedding)
        return Embedded(
            vector=NewVector(space.id, numbers),
            model=embedding.name,
            fingerprint=made_with,
            fits_local=fits_local,
            answering=self._in_space(attempt, other) if other else None,
        )

    def _numbers(self, attempt: _Attempt, embedding: EmbeddingModel) -> list[float]:
        report = attempt.report
        with (
            _timed(report, "embed"),
            attempt.while_waiting(),
            apart_from_suspects(self._pipeline, attempt.row, embedding, attempt.caller),
        ):
            [vector] = embedding.embed(
                [report.described.description.text if report.described else ""],
                caller=replace(
                    attempt.caller, spent=report.account.of("embedding", embedding.name)
                ),
            )
        return vector

    def _in_space(self, attempt: _Attempt, space: Space) -> NewVector | None:
        """Embed for the space of an older model; None if that model cannot be called any more.

        A vector of an older description is then deleted.
        """
        try:
            model = self._pipeline.spaces.model_of(space)
            return NewVector(space.id, self._numbers(attempt, model))
        except WorkCancelledError:
            raise
        except PipelineError as error:
            # If only the servers of the old model are paused, nothing else has to wait for them.
            if isinstance(error, WorkPausedError) and self._pipeline.why_paused(
                attempt.row.batch_id
            ):
                raise
            if isinstance(error, ServiceDownError) and error.kind == "database_down":
                raise
            if attempt.row.has_answering_vector:
                forget = partial(self._states.forget_vector, attempt.claim, space.id)
                self._keep_trying(attempt, forget)
            log.warning(
                "%r is found by its words only until the new embedding space answers: %s",
                attempt.row.filename,
                error,
            )
            return None

    def _end_attempt(
        self,
        claim: Claim,
        report: UploadReport,
        error: UploadError,
        retries_left: int,
        patience: _Patience,
    ) -> Outcome:
        attempts_left = self._pipeline.settings.max_attempts - report.attempt
        will_retry = isinstance(error, TransientError) and retries_left > 0 and attempts_left > 0
        try:
            if will_retry:
                patience.stored(partial(self._states.note_error, claim, error))
            else:
                report.progress = patience.stored(partial(self._states.fail, claim, error))
        except (ClaimLostError, WorkCancelledError):
            reason = "it was cancelled or taken over meanwhile"
            return SkippedUpload(claim.upload_id, reason, report.filename)
        return FailedUpload(report, error, will_retry)

    def _let_go(self, started: StartedUpload, report: UploadReport) -> SkippedUpload:
        """Release an upload that is no longer wanted.

        If it was deleted, remove the thumbnail that we made.
        """
        row = started.row
        self._states.release(started.claim)
        if self._states.exists(row.id):
            return SkippedUpload(row.id, "it was cancelled or taken over meanwhile", row.filename)
        # The original stays. It belongs to the application that deleted the row.
        if report.thumbnail or self._pipeline.ownership.made_thumbnail(row.id):
            storage = self._pipeline.storage
            path = storage.thumbnail_path(row.user_id, row.id)
            # An upload API may have copied the row. The tidy removes the file after the copy.
            if not paths_in_use(self._pipeline.database, [path]):
                storage.remove(path)
                self._pipeline.ownership.forget_thumbnails([row.id])
        if row.batch_id:
            self._pipeline.batches.recount_batch(row.batch_id)
        return SkippedUpload(row.id, "it was deleted meanwhile", row.filename)

    def _release_if_possible(
        self,
        claim: Claim,
        patience: _Patience | None = None,
        reason: PipelineError | None = None,
        resume_after_seconds: float = 0,
    ) -> None:
        release = partial(
            self._states.release,
            claim,
            reason,
            resume_after_seconds=resume_after_seconds,
            server_died=server_died(reason),
        )
        try:
            patience.stored(release) if patience else release()
        except (ServiceDownError, WorkCancelledError) as error:  # the lease will expire instead
            log.warning("upload %s could not be released: %s", claim.upload_id, error)


def _may_be_another_file(row: AnyRow, media_type: MediaType, file: BinaryIO) -> bool:
    """Return whether the row may have no SHA-256 of this file.

    Upload APIs store none or another hash, and a file may be replaced. Reading a whole video would
    take long, so for a video with a SHA-256 the size decides.
    """
    if row.checksum is None or media_type.file_type == "image":
        return True
    return bool(_size(file) != row.file_size)


def _size(file: BinaryIO) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()


@contextmanager
def _timed(report: UploadReport, stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - begin
        report.seconds[stage] = round(report.seconds.get(stage, 0.0) + seconds, 3)


def _raise_if(cancelled: CancelledCheck) -> None:
    if cancelled():
        raise WorkCancelledError("the work is no longer wanted")
