"""Runs every benchmark once, writes results and plots: `make benchmarks` (about 75 minutes).

    python benchmarks/run_all.py [--results FOLDER] [--only NAME …]

The machine should do nothing else; each result says how busy it was. If a benchmark fails, the
others still run, and the exit code is 1.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
#: In this order: benchmarks that a warm machine affects most come first.
BENCHMARKS = ("stack", "growth", "orchestration", "capacity", "media", "search", "search_quality")


def run(*words: str) -> bool:
    begun = time.monotonic()
    print(f"--- {' '.join(words)}", flush=True)
    command = [sys.executable, "-W", "ignore", str(HERE / words[0]), *words[1:]]
    code = subprocess.run(command, check=False).returncode
    print(f"--- {time.monotonic() - begun:.0f} s, exit code {code}", flush=True)
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    arguments = parser.parse_args()
    results = ("--results", str(arguments.results))
    succeeded = [run(f"{name}.py", *results) for name in BENCHMARKS if name in arguments.only]
    succeeded.append(run("plots.py", str(arguments.results)))
    sys.exit(not all(succeeded))


if __name__ == "__main__":
    main()
