"""HTML pages that stand alone: no script, no font, no picture from elsewhere.

A content security policy forbids all but our own style and script, which it names by their digests.
So nothing that a file name or a model says can do more than be read. The templates stand beside
this module.
"""

import base64
import hashlib
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from batch_pipeline.errors import RefusedError
from batch_pipeline.services.reports.previews import Previews
from batch_pipeline.visible_text import visible_line

#: Longest side of a picture (pixels): sharp on a dense screen up to this many uploads, and smaller
#: beyond, so that a page of 1,000 uploads stays near 5 MB.
_LARGE, _SMALL, _MANY = 256, 144, 200


def render_page(
    template: str, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any
) -> str:
    """Make a page of a template with the style that all pages have."""
    environment = Environment(
        loader=PackageLoader("batch_pipeline", "services/reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    style, script = (_beside(f"report_page.{kind}") for kind in ("css", "js"))
    return environment.get_template(template).render(
        style=style,
        style_digest=_digest(style),
        script=script,
        script_digest=_digest(script),
        **values,
    )


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def shown_date(taken_at: str | None, uploaded_at: datetime | None) -> str:
    """Say when a picture was taken, else when it was uploaded; empty if nobody knows."""
    if taken_at:
        return visible_line(f"taken {taken_at[:10]}")
    return f"uploaded {uploaded_at:%Y-%m-%d}" if uploaded_at else ""


def picture_side(pictures: int) -> int:
    """Longest side (pixels) of each of so many pictures on a page."""
    return _LARGE if pictures <= _MANY else _SMALL


def data_picture(previews: Previews, path: str | None, side: int) -> str:
    """Make a ``data:`` URI of a thumbnail; empty if there is none that can be shown."""
    small = previews.read(path, side)
    return f"data:image/jpeg;base64,{base64.b64encode(small).decode()}" if small else ""


def write_whole(file: Path, text: str) -> None:
    """Write a file of this machine so that it is there whole, or as it was before.

    Raises:
        RefusedError: it cannot be written; the message says why.
    """
    partial = file.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise RefusedError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
