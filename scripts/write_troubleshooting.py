#!/usr/bin/env python3
"""Write the tables of docs/troubleshooting.md from the code; a test keeps them equal."""

from pathlib import Path

from batch_pipeline.services.error_kinds import ERROR_KINDS, Ending

DOCUMENT = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
HEAD = "| kind | means | what to do |\n|---|---|---|\n"


def reference(text: str) -> str:
    """Render the document: the text around the tables is kept."""
    for ending in Ending:
        begin = f"<!-- {ending}: written by scripts/write_troubleshooting.py -->"
        before, found, rest = text.partition(begin)
        if not found:
            raise SystemExit(f"the document has no place for {begin}")
        _, end, after = rest.partition("<!-- end -->")
        rows = [
            f"| `{kind.name}` | {_cell(kind.means)} | {_cell(kind.advice)} |\n"
            for kind in ERROR_KINDS
            if kind.ending is ending
        ]
        text = f"{before}{begin}\n\n{HEAD}{''.join(rows)}\n{end}{after}"
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    DOCUMENT.write_text(reference(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
