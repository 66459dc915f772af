"""How well several workers that share the slots of a model server use them, without exceeding them.

    python benchmarks/model_slots.py
    python benchmarks/model_slots.py --workers 4 --threads 16 --slots 16 --latency 0.5 --calls 640
    python benchmarks/model_slots.py --servers 2

Workers are processes that call the vision model in a loop (`batch_pipeline.testing.model_caller`),
through the analyzer and the slots of real run workers. The server is scripted and answers each call
after the latency. Saturation is the time that the calls would take if all slots were always busy,
divided by the time that they took: calls x latency / slots / seconds. The clock starts after the
workers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psycopg

from batch_pipeline.database.session import open_database
from batch_pipeline.settings import ENVIRONMENT_PREFIX, Settings
from batch_pipeline.testing.model_server import ScriptedModelServer


def start_worker(settings: Settings, threads: int, calls: int) -> subprocess.Popen[str]:
    values = settings.model_dump(mode="json", exclude_unset=True)
    environment = {f"{ENVIRONMENT_PREFIX}{name.upper()}": str(v) for name, v in values.items()}
    module = "batch_pipeline.testing.model_caller"
    return subprocess.Popen(
        [sys.executable, "-m", module, "--threads", str(threads), "--calls", str(calls)],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def agreements(url: str) -> int:
    """Return about how many transactions have written to the table: its changed rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables"
            " WHERE relname = 'model_call_slots'"
        ).fetchone()
    return int(row[0]) if row else 0


def measure(arguments: argparse.Namespace, home: Path) -> None:
    servers = [
        ScriptedModelServer(latency_seconds=arguments.latency) for _ in range(arguments.servers)
    ]
    for server in servers:
        server.start()
    settings = Settings(
        _env_file=None,
        home=home,
        analyzer="ollama",
        ollama_host=",".join(server.ollama_url for server in servers),
        max_vision_calls=arguments.slots,
    )
    database = open_database(settings)
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    calls = arguments.calls // arguments.workers
    workers = [start_worker(settings, arguments.threads, calls) for _ in range(arguments.workers)]
    for worker in workers:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    before, begun = agreements(url), time.perf_counter()
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    outcomes: Counter[str] = Counter()
    for worker in workers:
        assert worker.stdout
        outcomes.update(json.loads(worker.stdout.readline()))
    seconds = time.perf_counter() - begun
    for worker in workers:
        worker.communicate()
    time.sleep(1)  # PostgreSQL updates its statistics with a delay
    done = outcomes["described"]
    slots = arguments.slots * arguments.servers
    workload = f"{arguments.workers} workers x {arguments.threads} threads"
    capacity = f"{arguments.servers} x {arguments.slots} slots"
    print(f"{workload}, {capacity}, {arguments.latency:g} s per call")
    print(f"outcomes            {dict(outcomes)}")
    print(f"seconds             {seconds:.2f}")
    print(f"saturation          {done * arguments.latency / slots / seconds:.3f}")
    print(f"most in flight      {[s.most_in_flight['vision'] for s in servers]}")
    print(f"calls per server    {[len(s.calls) for s in servers]}")
    print(f"rows written        {agreements(url) - before}")
    for server in servers:
        server.stop()
    database.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=4, help="processes")
    parser.add_argument("--threads", type=int, default=16, help="of each worker")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--slots", type=int, default=16, help="of each server")
    parser.add_argument("--latency", type=float, default=0.5, help="seconds per call")
    parser.add_argument("--calls", type=int, default=640, help="over all workers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        measure(arguments, Path(home))


if __name__ == "__main__":
    main()
