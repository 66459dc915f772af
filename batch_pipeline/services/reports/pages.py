"""HTML pages that stand alone: no script, no font, no picture from elsewhere.

A content security policy forbids all of them, so that nothing a file name or a model says can do
more than be read. The templates stand beside this module.
"""

import base64
import hashlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from batch_pipeline.errors import RefusedError
from batch_pipeline.services.reports.previews import Previews

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
    style = (Path(__file__).parent / "report_page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(template).render(style=style, style_digest=digest, **values)


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
