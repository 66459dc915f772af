"""The code location that ``workspace.yaml`` names: logging, warm run workers, and all definitions.

Only Dagster imports this module: importing it reads the settings and sets up the process.
"""

import gc

from batch_pipeline.logs import use_format
from batch_pipeline.media.memory import use_huge_pages
from batch_pipeline.orchestration.code_location import build_definitions
from batch_pipeline.orchestration.run_logs import write_ticks_as_json
from batch_pipeline.orchestration.warm_workers import (
    keep_reporting_ended_workers,
    start_run_workers_warm,
)
from batch_pipeline.settings import load_settings

use_format(load_settings())
write_ticks_as_json(load_settings())
use_huge_pages()  # in run workers, which this process starts
start_run_workers_warm(load_settings())
keep_reporting_ended_workers()
defs = build_definitions()
# Otherwise each full garbage collection visits all objects of Dagster and of the definitions. That
# adds 170 ms to every third tick of a busy sensor (`benchmarks/growth.py`).
gc.collect()
gc.freeze()
