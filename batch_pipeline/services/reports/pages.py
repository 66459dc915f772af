"""HTML pages that stand alone: no script, no font, no picture from elsewhere.

A content security policy forbids all of them, so that nothing a file name or a model says can do
more than be read. A script of the page's own is named in the policy by its digest. Templates,
style and scripts stand beside this module.
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
    template: str,
    filters: Mapping[str, Callable[..., str]] | None = None,
    *,
    script: str = "",
    **values: Any,
) -> str:
    """Make a page of a template with the style that all pages have, and a script if one is named.

    The template gets both, and the policy that allows them and nothing else.
    """
    environment = Environment(
        loader=PackageLoader("batch_pipeline", "services/reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    style, code = _beside("report_page.css"), _beside(script) if script else ""
    policy = [
        "default-src 'none'",
        "img-src data:",
        f"style-src '{_digest(style)}'",
        *([f"script-src '{_digest(code)}'"] if code else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return environment.get_template(template).render(
        style=style, script=code, policy="; ".join(policy), **values
    )


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def shown_date(taken_at: str | None, uploaded_at: datetime | None) -> str:
    """Say when a picture was taken, or else uploaded; empty if nobody knows."""
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
