"""Results as JSON (for comparisons and plots) and Markdown (for people), with date and machine."""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
VERSIONS = ("dagster", "sqlalchemy", "psycopg", "pillow", "av", "numpy")


@dataclass(frozen=True)
class Target:
    """An expected value, and the measured one."""

    what: str
    asked: float
    measured: float
    at_least: bool = False
    """Otherwise at most."""
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.measured >= self.asked if self.at_least else self.measured <= self.asked

    @property
    def verdict(self) -> str:
        if self.met:
            return "met"
        return f"missed by {abs(self.measured - self.asked) / abs(self.asked):.0%}"


def machine() -> dict[str, Any]:
    """When and on which machine, and how busy it was."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "load_at_start": round(os.getloadavg()[0], 1),
    }


def add_results_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, help="folder to write the figures to, as JSON and Markdown"
    )


@dataclass(frozen=True)
class Table:
    """A titled table."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[object]]


def report(
    name: str,
    where: dict[str, Any],
    figures: dict[str, Any],
    tables: Iterable[Table],
    *,
    targets: Sequence[Target] = (),
    folder: Path | None = None,
) -> None:
    """Print the tables; if a folder is named, write them and the figures to it."""
    where["load_at_end"] = round(os.getloadavg()[0], 1)
    all_tables = [*tables, *([_judgement(targets)] if targets else [])]
    parts = [f"## {table.title}\n\n{markdown(table)}" for table in all_tables]
    text = "\n\n".join([_head(name, where), *parts]) + "\n"
    print(text)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    judged = [asdict(target) | {"met": target.met} for target in targets]
    document = {"machine": where, **figures, "targets": judged}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)


def markdown(table: Table) -> str:
    """Return the lines of a table; columns of numbers are right-aligned."""
    cells = [[shown(cell) for cell in row] for row in table.rows]
    columns = list(zip(table.headings, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell[:1].isdigit() or not cell for cell in column[1:]) for column in columns]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rules = [
        f"{'-' * (width - flush)}{':' * flush}" for width, flush in zip(widths, right, strict=True)
    ]
    return "\n".join([line(table.headings), line(rules), *map(line, cells)])


def _judgement(targets: Sequence[Target]) -> Table:
    rows = [
        (
            target.what,
            f"{'at least' if target.at_least else 'at most'} {target.asked:g}{target.unit}",
            f"{shown(target.measured)}{target.unit}",
            target.verdict,
        )
        for target in targets
    ]
    return Table("Targets", ("what", "target", "measured", ""), rows)


def shown(cell: object) -> str:
    """Return a number with three significant digits, never in powers of ten."""
    if cell is None:
        return ""
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.0f}" if cell >= 100 else f"{cell:.3g}"


def _head(name: str, where: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in where["versions"].items())
    return (
        f"# {name}\n\n{where['date']}, commit {where['commit']}. {where['cores']} cores "
        f"({where['processor']}), {where['memory_gib']} GiB, {where['system']}, Python "
        f"{where['python']}; {versions}. Load average {where['load_at_start']} at the start, "
        f"{where['load_at_end']} at the end."
    )


def _commit() -> str:
    """Name the commit; results that other benchmarks have just written do not count as changes."""
    git = ["git", "-C", str(ROOT)]
    changes = [*git, "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results"]
    try:
        name = _output([*git, "rev-parse", "--short", "HEAD"])
        return f"{name}-dirty" if _output(changes) else name
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
