#!/usr/bin/env python3
"""Write the tables of docs/formats.md from the code; a test keeps them equal."""

import re
from pathlib import Path

from batch_pipeline.media.acceptance import EXTRAS
from batch_pipeline.media.sniffing import ACCEPTED_TYPES, MediaType
from batch_pipeline.media.stills.formats import DECODERS

DOCUMENT = Path(__file__).parents[1] / "docs" / "formats.md"
BEGIN, END = "<!-- written by scripts/write_formats_reference.py -->", "<!-- end -->"


def reference(text: str) -> str:
    """Render the document: the text around the tables is kept."""
    images = _table("image", "| format | name in settings | MIME type | extra | how |")
    videos = _table("video", "| format | name in settings | MIME type |")
    tables = f"{BEGIN}\n\n{images}\n{videos}\n{END}"
    return re.sub(f"{BEGIN}.*{END}", lambda _: tables, text, flags=re.DOTALL)


def _table(file_type: str, head: str) -> str:
    columns = head.count("|") - 1
    rows = dict.fromkeys(  # one row for kinds of files that differ in their signature alone
        tuple(_row(found)[:columns]) for found in ACCEPTED_TYPES if found.file_type == file_type
    )
    lines = [head, "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _row(found: MediaType) -> list[str]:
    extra = f"`{EXTRAS[found.package]}`" if found.package else ""
    decoder = DECODERS.get(found.format)
    how = (decoder.__doc__ or "").partition("\n")[0] if decoder else ""
    return [found.label, f"`{found.format}`", f"`{found.mime_type}`", extra, how]


if __name__ == "__main__":
    DOCUMENT.write_text(reference(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
