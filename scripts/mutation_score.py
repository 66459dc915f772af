#!/usr/bin/env python3
"""Prints for each module how many mutants of `mutmut run` were killed; exits with 1 below 80 %."""

import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

LEAST = 0.80
#: Results that count as killed. A mutant that no test reaches counts as survived.
KILLED = ("killed", "timeout")


def main() -> int:
    """Print the table; returns the exit code."""
    mutmut = Path(sys.executable).parent / "mutmut"
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
