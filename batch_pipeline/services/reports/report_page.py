"""Report of a batch as one HTML page: failures, timings, an index, and a contact sheet to filter.

The page is self-contained (`pages`). ``report_page.html.jinja`` is its template.
"""

import statistics
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

from sqlalchemy import select

from batch_pipeline.database.models import Upload
from batch_pipeline.database.readings import FACTS, FILENAME, known, word
from batch_pipeline.database.session import AnyRow, Database
from batch_pipeline.services.reports.batch_status import AboutBatch, batch_head
from batch_pipeline.services.reports.pages import (
    data_picture,
    opening_of,
    picture_side,
    render_page,
    shown_date,
)
from batch_pipeline.services.reports.previews import Previews
from batch_pipeline.storage import Storage
from batch_pipeline.visible_text import shown_filename, visible, visible_line

#: Number of uploads in the list of the slowest.
_SLOWEST = 10
#: The stages of an upload, in their order.
_STAGES = ("decode", "thumbnail", "describe", "embed")


@dataclass(frozen=True)
class Card:
    """One upload on the page; its text has no invisible characters and is not escaped yet."""

    number: int
    """Number in the order of submission, from 1; also the anchor on the page."""
    filename: str
    date: str
    """When the picture was taken, or else uploaded."""
    file_type: str
    status: str
    score: int | None
    description: str
    tags: Sequence[str]
    visible_text: str
    error_kind: str
    error_message: str
    attempts: int
    seconds: Mapping[str, float]
    """Duration of each stage."""
    picture: str
    """A ``data:`` URI; empty without a thumbnail."""

    @property
    def total_seconds(self) -> float:
        """Duration of all stages together."""
        return sum(self.seconds.values())

    @property
    def opening(self) -> str:
        """The beginning of a long description; empty if it is short."""
        return opening_of(self.description)


@dataclass(frozen=True)
class StageTiming:
    """Durations of a stage, over the uploads that went through it (seconds)."""

    stage: str
    uploads: int
    total: float
    median: float
    slowest: float
    share: float
    """Share of the time of all stages, 0-1."""


@dataclass(frozen=True)
class BatchReport(AboutBatch):
    """Everything that the page shows."""

    cards: Sequence[Card]
    """Failures first, then in the order of submission."""
    hidden: int
    """Number of uploads that are left out because their owner has hidden them."""
    made_at: datetime

    @property
    def statuses(self) -> Sequence[str]:
        """Statuses of the uploads, each once."""
        return sorted({card.status for card in self.cards})

    @cached_property
    def failures(self) -> Sequence[Card]:
        """Uploads without a result."""
        return [card for card in self.cards if card.status == "failed"]

    @cached_property
    def slowest(self) -> Sequence[Card]:
        """Uploads that took longest, slowest first."""
        timed = [card for card in self.cards if card.seconds]
        return sorted(timed, key=lambda card: card.total_seconds, reverse=True)[:_SLOWEST]

    @cached_property
    def stages(self) -> Sequence[StageTiming]:
        """Durations of each stage, in the order in which uploads go through them."""
        return stage_timings(card.seconds for card in self.cards)


def stage_timings(uploads: Iterable[Mapping[str, float]]) -> Sequence[StageTiming]:
    """Sum up the seconds per stage of uploads, in the order in which uploads go through them."""
    taken: dict[str, list[float]] = {}
    for seconds_of in uploads:
        for stage, seconds in seconds_of.items():
            taken.setdefault(stage, []).append(seconds)
    total = sum(map(sum, taken.values())) or 1.0
    return [
        StageTiming(
            stage=stage,
            uploads=len(seconds),
            total=sum(seconds),
            median=statistics.median(seconds),
            slowest=max(seconds),
            share=sum(seconds) / total,
        )
        for stage, seconds in sorted(taken.items(), key=_place)
    ]


def shown_seconds(stored: object) -> dict[str, float]:
    """Return the stored seconds per stage of an upload, without invalid values; safe to show.

    They are in the order in which uploads go through the stages; PostgreSQL does not keep it.
    """
    return {
        visible_line(stage): float(seconds)
        for stage, seconds in sorted(stored.items() if isinstance(stored, dict) else (), key=_place)
        if isinstance(seconds, int | float)
    }


def _place(item: tuple[str, object]) -> int:
    """Return the place of a stage, the first of a pair, among all stages; others come last."""
    stage, _ = item
    return _STAGES.index(stage) if stage in _STAGES else len(_STAGES)


def read_report(database: Database, storage: Storage, batch_id: uuid.UUID) -> BatchReport:
    """Read everything that the page about a batch shows.

    Raises:
        NotFoundError: there is no such batch.
        ServiceDownError: database or storage cannot be reached.
    """
    head = batch_head(database, batch_id)
    # An upload API may have written both.
    head["name"] = visible_line(head["name"] or "")
    head["error_message"] = visible(head["error_message"] or "")
    with database.transaction() as connection:
        rows = connection.execute(
            select(
                Upload.id,
                FILENAME,
                Upload.file_type,
                word(Upload.processing_status),
                Upload.description,
                Upload.description_audit_score,
                Upload.vision_tags,
                Upload.visible_text,
                Upload.error_kind,
                Upload.error_message,
                Upload.attempts,
                Upload.stage_seconds,
                Upload.thumbnail_path,
                Upload.hidden,
                FACTS["captured_at"].astext.label("taken_at"),
                known(Upload.created_at).label("uploaded_at"),
            )
            .where(Upload.batch_id == batch_id)
            .order_by(Upload.created_at, Upload.id)
        ).all()
    shown = [row for row in rows if not row.hidden]
    side = picture_side(len(shown))
    previews = Previews(storage)
    cards = [
        _card(number, row, data_picture(previews, row.thumbnail_path, side))
        for number, row in enumerate(shown, 1)
    ]
    return BatchReport(
        head=head,
        cards=sorted(cards, key=lambda card: card.status != "failed"),
        hidden=len(rows) - len(shown),
        made_at=datetime.now(UTC),
    )


def render_html(report: BatchReport) -> str:
    """Return the page as HTML."""
    return render_page(
        "report_page.html.jinja",
        {
            "seconds": _seconds,
            "moment": _moment,
        },
        script="report_page.js",
        report=report,
    )


def _card(number: int, row: AnyRow, picture: str) -> Card:
    failed = row.processing_status != "completed"
    return Card(
        number=number,
        date=shown_date(row.taken_at, row.uploaded_at),
        filename=shown_filename(row.filename),
        file_type=visible_line(row.file_type),
        status=visible_line(row.processing_status),
        score=row.description_audit_score,
        description=visible(row.description or "").strip(),
        tags=[visible_line(tag) for tag in row.vision_tags or ()],
        visible_text=visible(row.visible_text or "").strip(),
        error_kind=visible_line(row.error_kind or "") if failed else "",
        error_message=visible(row.error_message or "") if failed else "",
        attempts=row.attempts,
        seconds=shown_seconds(row.stage_seconds),
        picture=picture,
    )


def _seconds(value: float | timedelta | None) -> str:
    if value is None:
        return "-"
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _moment(value: datetime | None) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if value else "-"
