#!/usr/bin/env python3
"""Runs mutmut, and prints for each module how many mutants were killed; exits with 1 below 80 %.

`[tool.mutmut]` in `pyproject.toml` names the modules and the tests. mutmut starts a test session
for each mutant; all of them use one server.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import psycopg

from batch_pipeline.database.embedded_server import embedded_server_url, stop_server

#: Share of the mutants that tests have to find.
LEAST = 0.80
#: Mutants at a time, per core. Many hang without using a core, and are ended only after 15 times
#: the usual duration of the tests.
CHILDREN = 8
#: Results that count as killed. A mutant that no test reaches counts as survived.
KILLED = ("killed", "timeout")


def main() -> int:
    """Run all mutants, and print the table; returns the exit code."""
    mutmut = Path(sys.executable).parent / "mutmut"
    with tempfile.TemporaryDirectory(prefix="mutation_") as folder:
        url = embedded_server_url(Path(folder))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            # A mutant of a recursive query may never end, not even when its process is killed.
            connection.execute("ALTER SYSTEM SET client_connection_check_interval = '1s'")
            connection.execute("SELECT pg_reload_conf()")
        try:
            subprocess.run(
                [mutmut, "run", "--max-children", str(CHILDREN * (os.cpu_count() or 1))],
                env=os.environ | {"BATCH_PIPELINE_TEST_DATABASE_URL": url},
                check=True,
            )
        finally:
            stop_server(Path(folder), although_used=True)
    said = subprocess.check_output([mutmut, "results", "--all", "true"], text=True)
    results: dict[str, Counter[str]] = defaultdict(Counter)
    for line in said.splitlines():
        name, found, result = line.strip().rpartition(": ")
        if found:
            # `module.x_function__mutmut_1`, or `module.xǁClassǁmethod__mutmut_1`
            results[name.rpartition(".")[0]][result] += 1
    for module, counts in sorted(results.items()):
        print(f"{module:<50} {_score(counts):>4.0%} of {counts.total()} {dict(counts)}")
    total = sum(results.values(), Counter[str]())
    print(f"{'all':<50} {_score(total):>4.0%} of {total.total()} killed; expected {LEAST:.0%}")
    return int(_score(total) < LEAST)


def _score(counts: Counter[str]) -> float:
    return sum(counts[result] for result in KILLED) / max(1, counts.total())


if __name__ == "__main__":
    sys.exit(main())
