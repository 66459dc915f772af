"""Results of a search as one HTML page with pictures.

The page is self-contained (`pages`). ``search_page.html.jinja`` is its template.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from batch_pipeline.database.names import BATCH_TAG
from batch_pipeline.services.reports.pages import (
    data_picture,
    opening_of,
    picture_side,
    render_page,
    shown_date,
)
from batch_pipeline.services.reports.previews import Previews
from batch_pipeline.services.search.queries import Copy, SearchResult
from batch_pipeline.services.short_ids import batch_label
from batch_pipeline.storage import Storage
from batch_pipeline.visible_text import shown_filename, visible, visible_line

#: Number of copies of a file that are named: a file may have been uploaded thousands of times.
_MOST_COPIES = 20
_REASONS = {
    "filename": "its name matches",
    "phrase": "quoted words match",
    "words": "all words match",
}


@dataclass(frozen=True)
class FoundCard:
    """One result on the page; its text has no invisible characters and is not escaped yet."""

    filename: str
    description: str
    tags: Sequence[str]
    visible_text: str
    link: str
    """Link to the original; empty if a browser cannot open it."""
    picture: str
    """A ``data:`` URI; empty without a thumbnail."""
    likeness: str
    """Similarity, and the reason if it was not found by meaning."""
    weak: bool
    date: str
    batch: str
    """Name of the batch and its short id; empty without a batch."""
    runs: str
    """Link to the runs of the batch in the Dagster UI; empty if its address is unknown."""
    copies: Sequence[tuple[str, str]]
    """File name and batch of other uploads with the same bytes; at most `_MOST_COPIES`."""
    times: int
    """How often these bytes were uploaded."""

    @property
    def opening(self) -> str:
        """The beginning of a long description; empty if it is short."""
        return opening_of(self.description)


def search_page(
    storage: Storage, asked: str, found: Sequence[SearchResult], *, dagster_ui_url: str = ""
) -> str:
    """Return the page as HTML.

    Args:
        storage: where the thumbnails are.
        asked: what was searched for.
        found: the results, best first.
        dagster_ui_url: address of the Dagster UI; empty: the page does not link to runs.

    Raises:
        ServiceDownError: the storage cannot be reached.
    """
    side, previews = picture_side(len(found)), Previews(storage)
    return render_page(
        "search_page.html.jinja",
        asked=visible_line(asked),
        side=side,
        cards=[_card(previews, hit, side, dagster_ui_url) for hit in found],
    )


def _card(previews: Previews, hit: SearchResult, side: int, dagster_ui_url: str) -> FoundCard:
    similarity = "" if hit.similarity is None else f"{hit.similarity:.2f}"
    reason = _REASONS.get(hit.found_by, "")
    return FoundCard(
        filename=shown_filename(hit.filename),
        description=visible(hit.description).strip(),
        tags=[visible_line(tag) for tag in hit.tags],
        visible_text=visible(hit.visible_text).strip(),
        link=_link(hit.original),
        picture=data_picture(previews, hit.thumbnail_path, side),
        likeness=", ".join(filter(None, [similarity, reason])),
        weak=hit.weak,
        date=shown_date(hit.taken_at, hit.uploaded_at),
        batch=batch_label(hit.batch_id, hit.batch_name) if hit.batch_id else "",
        runs=_runs(dagster_ui_url, hit.batch_id),
        copies=[_copy(copy) for copy in hit.copies[:_MOST_COPIES]],
        times=len(hit.copies) + 1,
    )


def _runs(dagster_ui_url: str, batch_id: uuid.UUID | None) -> str:
    if not dagster_ui_url or batch_id is None:
        return ""
    return f"{dagster_ui_url}/runs?" + urlencode({"q[]": f"tag:{BATCH_TAG}={batch_id}"})


def _link(original: str) -> str:
    if original.startswith(("http://", "https://")):
        return original
    path = original.removeprefix("file://")
    return Path(path).as_uri() if path.startswith("/") else ""


def _copy(copy: Copy) -> tuple[str, str]:
    label = copy.batch_id and batch_label(copy.batch_id, copy.batch_name)
    return shown_filename(copy.filename), f"batch {label}" if label else "no batch"
