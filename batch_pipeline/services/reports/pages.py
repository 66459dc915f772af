"""Self-contained HTML pages: they load no script, font or picture from another place.

A content security policy forbids all of these, so that text from a file name or a model can only be
displayed. The policy allows the page's own script by its digest. Templates, style and scripts are
in the folder of this module.
"""

import base64
import hashlib
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from batch_pipeline.errors import RefusedError
from batch_pipeline.services.reports.previews import Previews
from batch_pipeline.visible_text import visible_line

#: Longest side of a picture (pixels). Pages of up to `_MANY` uploads have large pictures, which are
#: sharp on a high-resolution screen. Larger pages have small ones, so that a page of 1,000 uploads
#: has about 5 MB.
_LARGE, _SMALL, _MANY = 256, 144, 200
#: Number of characters of a description that are shown before it is opened.
_OPENING = 160


def render_page(
    template: str,
    filters: Mapping[str, Callable[..., str]] | None = None,
    *,
    script: str = "",
    **values: Any,
) -> str:
    """Render a template with the common style, and with a script if one is named.

    The template gets both, and the policy that allows only these two.
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
    """Return the day a picture was taken, or else uploaded, as text; empty if neither is known."""
    if taken_at:
        return visible_line(f"taken {taken_at[:10]}")
    return f"uploaded {uploaded_at:%Y-%m-%d}" if uploaded_at else ""


def opening_of(description: str) -> str:
    """Return the beginning of a long description; empty if it is short."""
    if len(description) <= _OPENING:
        return ""
    return description[:_OPENING].rsplit(" ", 1)[0] + " …"


def picture_side(pictures: int) -> int:
    """Return the longest side (pixels) of each picture on a page with this many pictures."""
    return _LARGE if pictures <= _MANY else _SMALL


def data_picture(previews: Previews, path: str | None, side: int) -> str:
    """Return a ``data:`` URI of a thumbnail; empty if there is none that can be shown."""
    small = previews.read(path, side)
    return f"data:image/jpeg;base64,{base64.b64encode(small).decode()}" if small else ""


def write_whole(file: Path, text: str) -> None:
    """Write a file of this machine as a whole; if that fails, the old file stays unchanged.

    A link stays, and what it leads to is written. A pipe or a device is written to, not replaced.

    Raises:
        RefusedError: the file cannot be written; the message says why.
    """
    target = Path(os.path.realpath(file))
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        if file.exists() and not file.is_file():
            file.write_text(text, encoding="utf-8")
            return
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise RefusedError(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # the folder cannot be used; the error above says so
            partial.unlink()
