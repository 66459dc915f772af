"""A Dagster executor that runs the steps of a run in threads of the run worker.

For jobs whose steps wait (for models, networks, disks) more than they compute. Nothing here knows
of uploads: any Dagster project can use it.

::

    executor_def=threaded_executor.configured({"max_concurrent": 8})

What a step must know: resources and the objects they hold are shared by all threads; standard
output is captured per run, not per step; a run that is terminated tells its steps, it cannot stop
them (`interrupts`).

- `threaded`: configuration, and the loop that decides what runs next
- `step_threads`: the threads, and what they report
- `interrupts`: how a step learns that its run is to end
- `turns`: how many steps work at a time, while others wait for something outside
- `thread_safety`: what of Dagster is not safe under threads, and what stands in for it
- `shared_resources`: what need not be done again for every step
"""

from batch_pipeline.executor.interrupts import interrupt_event, interrupt_requested
from batch_pipeline.executor.threaded import StepsCanNeverRunError, threaded_executor
from batch_pipeline.executor.turns import others_may_work

__all__ = [
    "StepsCanNeverRunError",
    "interrupt_event",
    "interrupt_requested",
    "others_may_work",
    "threaded_executor",
]
