"""Summary of an ended batch in numbers, small enough for an event log.

A summary stays small however large the batch is: it contains the first failures, the slowest
uploads and one contact sheet. ``report_page.py`` shows every upload of a batch.
"""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from batch_pipeline.database.models import BatchStatus, Upload, UploadStatus
from batch_pipeline.database.readings import FILENAME, known, word
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.media.previews import contact_sheet
from batch_pipeline.services.reports.batch_status import AboutBatch, batch_head
from batch_pipeline.services.reports.batch_verdicts import BatchVerdict, verdict
from batch_pipeline.services.reports.previews import Previews
from batch_pipeline.services.reports.report_page import StageTiming, shown_seconds, stage_timings
from batch_pipeline.services.reports.throughput import throughput_svg
from batch_pipeline.storage import Storage
from batch_pipeline.visible_text import shown_filename, visible_line

MAX_FAILURES, MAX_SLOWEST = 50, 10
#: Longest name and longest reason that are shown (characters).
_MAX_NAME, _MAX_REASON = 120, 500
#: Side of a picture on the contact sheet (pixels), number of columns and of pictures.
_SHEET_SIDE, _SHEET_COLUMNS, _SHEET_PICTURES = 80, 8, 40
MAX_SHEET_BYTES = 32_768


@dataclass(frozen=True)
class Failure:
    """An upload without a result."""

    file: str
    kind: str
    reason: str
    attempts: int


@dataclass(frozen=True)
class SlowUpload:
    """One of the slowest uploads."""

    file: str
    seconds: float
    slowest_stage: str


@dataclass(frozen=True)
class Results:
    """The stored results of a batch."""

    thumbnails: int
    descriptions: int
    lowest_score: int | None
    mean_score: float | None
    vision_models: Sequence[str]
    embeddings: int
    embedding_models: Sequence[str]


@dataclass(frozen=True)
class BatchSummary(AboutBatch):
    """Everything that is reported about a batch when it has ended."""

    results: Results
    failures: Sequence[Failure]
    """The first failures, at most `MAX_FAILURES`."""
    failure_kinds: Mapping[str, int]
    """Number of failures of each kind, most frequent kind first."""
    slowest: Sequence[SlowUpload]
    stages: Sequence[StageTiming]
    contact_sheet: bytes | None
    """A JPEG; None without a thumbnail."""
    throughput: str
    """An SVG; empty if no upload has ended."""
    verdict: BatchVerdict

    @property
    def is_completed(self) -> bool:
        """Whether every upload was processed, successfully or not."""
        return bool(self.head["status"] == BatchStatus.COMPLETED)


def batch_summary(database: Database, storage: Storage, batch_id: uuid.UUID) -> BatchSummary:
    """Summarise a batch. Uploads that their owner has hidden are counted but not shown.

    Raises:
        NotFoundError: there is no such batch.
        ServiceDownError: database or storage cannot be reached.
    """
    head = batch_head(database, batch_id)
    rows = _rows(database, batch_id)
    shown = [row for row in rows if not row.hidden]
    failed = [row for row in rows if row.processing_status == UploadStatus.FAILED]
    kinds = Counter(visible_line(row.error_kind or "unknown") for row in failed)
    return BatchSummary(
        head=head,
        results=_results(rows),
        failures=[_failure(row) for row in failed if not row.hidden][:MAX_FAILURES],
        failure_kinds=dict(kinds.most_common()),
        slowest=_slowest(shown),
        stages=stage_timings(shown_seconds(row.stage_seconds) for row in rows),
        contact_sheet=_contact_sheet(storage, [row.thumbnail_path for row in shown]),
        throughput=_throughput(head, rows),
        verdict=verdict(database, batch_id),
    )


def _rows(database: Database, batch_id: uuid.UUID) -> Sequence[AnyRow]:
    """Read the columns for the summary, without descriptions and vectors, which are large."""
    with database.transaction() as connection:
        return connection.execute(
            select(
                FILENAME,
                word(Upload.processing_status),
                Upload.hidden,
                Upload.attempts,
                Upload.error_kind,
                Upload.error_message,
                Upload.stage_seconds,
                Upload.thumbnail_path,
                known(Upload.updated_at).label("updated_at"),
                Upload.description.is_not(None).label("described"),
                Upload.description_audit_score.label("score"),
                Upload.vision_model,
                Upload.embedding_model.is_not(None).label("embedded"),
                Upload.embedding_model,
            )
            .where(Upload.batch_id == batch_id)
            .order_by(Upload.created_at, Upload.id)
        ).all()


def _results(rows: Sequence[AnyRow]) -> Results:
    scores = [row.score for row in rows if row.described and row.score is not None]
    return Results(
        thumbnails=sum(row.thumbnail_path is not None for row in rows),
        descriptions=sum(row.described for row in rows),
        lowest_score=min(scores, default=None),
        mean_score=round(sum(scores) / len(scores), 1) if scores else None,
        vision_models=sorted({row.vision_model for row in rows if row.vision_model}),
        embeddings=sum(row.embedded for row in rows),
        embedding_models=sorted({row.embedding_model for row in rows if row.embedding_model}),
    )


def _failure(row: AnyRow) -> Failure:
    return Failure(
        file=_name(row),
        kind=visible_line(row.error_kind or ""),
        reason=visible_line(row.error_message or "")[:_MAX_REASON],
        attempts=row.attempts,
    )


def _slowest(rows: Sequence[AnyRow]) -> list[SlowUpload]:
    timed = [(row, seconds) for row in rows if (seconds := shown_seconds(row.stage_seconds))]
    timed.sort(key=lambda pair: sum(pair[1].values()), reverse=True)
    return [
        SlowUpload(
            file=_name(row),
            seconds=round(sum(seconds.values()), 3),
            slowest_stage=max(seconds, key=seconds.__getitem__),
        )
        for row, seconds in timed[:MAX_SLOWEST]
    ]


def _contact_sheet(storage: Storage, paths: Sequence[str | None]) -> bytes | None:
    present = [path for path in paths if path]
    # The pictures are spread over the whole batch, because neighbours are often similar.
    step = max(1, -(-len(present) // _SHEET_PICTURES))
    previews = Previews(storage)
    pictures = [previews.read(path, _SHEET_SIDE) for path in present[::step]]
    found = [picture for picture in pictures if picture]
    if not found:
        return None
    return contact_sheet(found, side=_SHEET_SIDE, columns=_SHEET_COLUMNS, max_bytes=MAX_SHEET_BYTES)


def _throughput(head: Mapping[str, Any], rows: Sequence[AnyRow]) -> str:
    completed, failed = (
        [row.updated_at for row in rows if row.updated_at and row.processing_status == status]
        for status in (UploadStatus.COMPLETED, UploadStatus.FAILED)
    )
    if not completed and not failed:
        return ""
    began = head["started_at"] or min(completed + failed)
    return throughput_svg(began, completed, failed)


def _name(row: AnyRow) -> str:
    return shown_filename(row.filename)[:_MAX_NAME]
