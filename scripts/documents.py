"""Prepares the documents for the site: links that lead out of `docs` become names of files."""

import re
from typing import Any

_OUT_OF_DOCS = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace such links by the name of the file. mkdocs calls this for every page."""
    if "/" in page.file.src_uri:
        return markdown  # a folder of `docs`: its `..` is `docs`
    return _OUT_OF_DOCS.sub(r"\1 (`\2`)", markdown)
