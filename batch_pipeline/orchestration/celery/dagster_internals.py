"""Undocumented names of dagster-celery that this project uses, each with the reason.

`batch_pipeline.dagster_internals` says what holds for these names too. dagster-celery exports
only ``celery_executor``, which waits for lost workers and messages without a time limit.
"""

# isort: off
from collections.abc import Mapping

# The loop that sends steps and yields their events. It takes our function that sends a step.
from dagster_celery.core_execution_loop import core_celery_execution_loop

# The options of the executor, which the loop reads. And the message of a step, as the task of a
# worker expects it.
from dagster_celery.executor import CeleryExecutor, _submit_task as submit_task

# The application of Celery, with the queue to which the loop sends. Runs and workers need the same.
from dagster_celery.make_app import make_app

# The task that a worker executes, for our application.
from dagster_celery.tasks import create_task

from batch_pipeline.executor.dagster_internals import ExecutionPlan
# isort: on

#: Attributes of these classes that we use although Dagster may change them, each with the reason.
USED_ATTRIBUTES: Mapping[type, Mapping[str, str]] = {
    CeleryExecutor: {
        "app_args": "the application for steps that run in the run worker",
        "broker": "named when it does not answer",
    },
    ExecutionPlan: {"start": "replaced, so that tagged steps run anyway"},
}

__all__ = [
    "CeleryExecutor",
    "core_celery_execution_loop",
    "create_task",
    "make_app",
    "submit_task",
]
