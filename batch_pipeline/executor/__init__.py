"""A Dagster executor that runs the steps of a run in threads of the run worker.

It suits jobs whose steps wait (for models, networks, disks) more than they compute. Nothing here
knows about uploads: any Dagster project can use it.

::

    executor_def=threaded_executor.configured({"max_concurrent": 8})

Authors of steps must know three things. All threads share the resources and the objects they hold.
Standard output is captured per run, not per step. A terminated run can only ask its steps to stop,
it cannot force them (`interrupts`).

- `threaded`: configuration, and the loop that decides what runs next
- `step_threads`: the threads, and what they report
- `interrupts`: how a step learns that its run should end
- `turns`: how many steps work at a time, while others wait for something outside
- `thread_safety`: which parts of Dagster are not thread-safe, and what replaces them
- `shared_resources`: work that is done once, not again for every step
"""

from batch_pipeline.executor.interrupts import interrupt_event
from batch_pipeline.executor.threaded import (
    ALWAYS_TAG,
    StepsCanNeverRunError,
    keep_steps_that_always_run,
    threaded_executor,
)
from batch_pipeline.executor.turns import others_may_work

__all__ = [
    "ALWAYS_TAG",
    "StepsCanNeverRunError",
    "interrupt_event",
    "keep_steps_that_always_run",
    "others_may_work",
    "threaded_executor",
]
