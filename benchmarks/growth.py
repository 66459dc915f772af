"""Measures ticks on a full database: `python benchmarks/growth.py` (about three minutes).

    python benchmarks/growth.py --rows 10000 --batches 50 --pending 1000

Writes completed uploads of ended batches, and open batches with pending uploads, as an upload API
does. Then it evaluates each sensor and the schedule several times, as Dagster's code server does,
and prints how long a tick takes. The first tick of `pending_batches` divides batches into slices,
so it has its own column.
"""

import argparse
import contextlib
import gc
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import dagster as dg
from rich.console import Console
from sqlalchemy import text
from tools.results import Table, Target, add_results_option, machine, report
from tools.stand import Scene, Stand

from batch_pipeline.orchestration.code_location import build_definitions

TICKS = 5
ASKED_MS = 200
UPLOADS_OF_AN_ENDED_BATCH = 500

log = Console(stderr=True, markup=False, highlight=False)

_BATCHES = """
INSERT INTO upload_batches (id, user_id, status, total_uploads, successful_uploads,
                            processed_uploads, created_at, updated_at)
SELECT gen_random_uuid(), ('00000000-0000-0000-0000-' || lpad((n % 50)::text, 12, '0'))::uuid,
       :status, :size, :done, :done, moment, moment
FROM (SELECT n, now() - :age * interval '1 hour' - n * interval '1 second' AS moment
      FROM generate_series(1, :count) AS n) AS moments
"""
_UPLOADS = """
INSERT INTO uploads (id, user_id, batch_id, filename, file_path, file_type, file_size,
                     processing_status, created_at, updated_at)
SELECT gen_random_uuid(), batches.user_id, batches.id, 'picture_' || n || '.jpg',
       batches.id || '/' || n || '.jpg', 'image', 1000, :upload_status,
       batches.created_at, batches.created_at
FROM upload_batches AS batches CROSS JOIN generate_series(1, :size) AS n
WHERE batches.status = :status
ORDER BY batches.created_at  -- the uploads of a batch come together
"""


def fill(scene: Scene, status: str, *, batches: int, size: int, age_hours: int) -> None:
    """Write batches with `size` uploads each; all have the same status."""
    done = size if status == "completed" else 0
    values = {"status": status, "count": batches, "size": size, "done": done, "age": age_hours}
    with scene.pipeline.database.transaction() as connection:
        connection.execute(text(_BATCHES), values)
        connection.execute(text(_UPLOADS), values | {"upload_status": status})
    with scene.pipeline.database.transaction() as connection:
        connection.execute(text("ANALYZE uploads, upload_batches"))


def ticks(scene: Scene, instance: dg.DagsterInstance) -> Mapping[str, list[float]]:
    """Return the milliseconds of some ticks of each sensor and of the schedule."""
    logging.disable(logging.INFO)
    definitions = build_definitions()
    gc.collect()
    gc.freeze()  # as in the code server
    resources = {"batch_pipeline": scene.pipeline}
    found = {}
    for sensor in definitions.sensors or ():
        cursor: str | None = None
        found[sensor.name] = []
        for _ in range(TICKS):
            context = dg.build_sensor_context(
                instance=instance, resources=resources, definitions=definitions, cursor=cursor
            )
            seconds, tick = timed(lambda: sensor.evaluate_tick(context))  # noqa: B023
            cursor = tick.cursor or cursor
            found[sensor.name].append(seconds * 1000)
    [schedule] = definitions.schedules or ()
    context = dg.build_schedule_context(
        instance=instance,
        resources=resources,
        scheduled_execution_time=datetime(2026, 1, 1, 1, 1, tzinfo=UTC),
    )
    found[schedule.name] = [
        timed(lambda: schedule.evaluate_tick(context))[0] * 1000 for _ in range(TICKS)
    ]
    return found


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = what()
    return time.perf_counter() - begun, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="completed uploads")
    parser.add_argument("--batches", type=int, default=5000, help="open batches")
    parser.add_argument("--pending", type=int, default=100_000, help="uploads in open batches")
    add_results_option(parser)
    arguments = parser.parse_args()
    where = machine()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Stand(Path(folder))) as stand,
        stand.scene("growth") as scene,
        dg.DagsterInstance.get() as instance,
    ):
        ended = arguments.rows // UPLOADS_OF_AN_ENDED_BATCH
        fill(scene, "completed", batches=ended, size=UPLOADS_OF_AN_ENDED_BATCH, age_hours=24)
        size = arguments.pending // arguments.batches
        fill(scene, "pending", batches=arguments.batches, size=size, age_hours=1)
        # A sweep has seen them, as it would have within a minute.
        scene.pipeline.backlog.reconcile_batches()
        log.print(f"{arguments.rows + arguments.pending:,} uploads are written")
        found = ticks(scene, instance)
    rows = [
        [name, values[0], median(values[1:]), max(values[1:])] for name, values in found.items()
    ]
    title = f"Ticks with {arguments.batches:,} open batches, {arguments.pending:,} pending uploads"
    table = Table(
        f"{title} and {arguments.rows:,} completed ones (ms)",
        ("sensor or schedule", "first", "median of the others", "longest of the others"),
        rows,
    )
    longest = max(max(values[1:]) for values in found.values())
    targets = [Target("longest tick but the first", ASKED_MS, longest, unit=" ms")]
    report("growth", where, {"ticks_ms": found}, [table], targets=targets, folder=arguments.results)


if __name__ == "__main__":
    main()
