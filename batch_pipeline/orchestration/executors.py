"""Executors: steps run in threads, unless the settings or the run's config choose another way.

::

    execution:
      config:
        threaded: {max_concurrent: 8}     # or: multiprocess: {…}, in_process: {…}, celery: {…}
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import dagster as dg
from dagster import Executor, InitExecutorContext

from batch_pipeline.dagster_internals import (
    IN_PROC_CONFIG,
    MULTI_PROC_CONFIG,
    check_cross_process_constraints,
)
from batch_pipeline.errors import ConfigurationError
from batch_pipeline.executor import threaded_executor
from batch_pipeline.executor.dagster_internals import get_retries_config
from batch_pipeline.executor.threaded import threaded_config
from batch_pipeline.media.memory import AT_ONCE
from batch_pipeline.orchestration.re_execution import reserving
from batch_pipeline.settings import Settings
from batch_pipeline.wording import how_to_install

#: The schema of dagster-celery. It is written here so that other users do not import Celery, which
#: takes 0.3 s.
CELERY_CONFIG = dg.Field(
    {
        "broker": dg.Field(
            dg.StringSource,
            is_required=False,
            description="URL of the broker; empty: BATCH_PIPELINE_CELERY_BROKER_URL.",
        ),
        "backend": dg.Field(
            dg.StringSource,
            is_required=False,
            description="URL of the result backend; empty: the broker, if that is Redis.",
        ),
        "include": dg.Field([str], default_value=[], description="Additional modules to import."),
        "config_source": dg.Field(
            dg.Permissive(),  # type: ignore[no-untyped-call]
            default_value={},
            description="More settings of Celery.",
        ),
        "retries": get_retries_config(),  # type: ignore[no-untyped-call]
    },
    description="Send steps to Celery workers (extra `celery`): docs/several_hosts.md.",
)

#: How many uploads one process works on at a time: its cores plus two. More would only slow each
#: other down. Uploads that wait for a model server or for remote storage are not counted.
MAX_WORKING = AT_ONCE + 2
_IN_DAGSTER = {
    "threaded": threaded_executor,
    "multiprocess": dg.multiprocess_executor,
    "in_process": dg.in_process_executor,
}


def build_executor(settings: Settings) -> dg.ExecutorDefinition:
    """Return a choice of four executors; the default is Celery if there is a broker, else threads.

    Raises:
        ConfigurationError: there is a broker, but Celery is not installed.
    """
    if settings.celery_broker_url:
        _check_that_celery_is_installed("BATCH_PIPELINE_CELERY_BROKER_URL is set")
    offered = {
        "threaded": threaded_config(max_working=MAX_WORKING, return_events=False),
        "multiprocess": MULTI_PROC_CONFIG,
        "in_process": IN_PROC_CONFIG,
        "celery": CELERY_CONFIG,
    }
    default: dict[str, Any] = (
        {"celery": {}}
        if settings.celery_broker_url
        else {"threaded": {"max_concurrent": settings.max_concurrent_uploads}}
    )

    @dg.executor(
        name="chosen_by_settings_or_run",
        config_schema=dg.Field(
            dg.Selector(offered),  # type: ignore[no-untyped-call]
            default_value=default,
            description="How the steps of a run are executed; threads share one process.",
        ),
    )
    def choose(context: InitExecutorContext) -> Executor:
        [(name, config)] = dict[str, Any](context.executor_config).items()
        if name == "multiprocess":
            check_cross_process_constraints(context)
        executor = _creator(name, settings)(context._replace(executor_config=config))
        return reserving(executor, settings)

    return choose


def _creator(name: str, settings: Settings) -> Callable[[InitExecutorContext], Executor]:
    if name == "celery":
        _check_that_celery_is_installed("the run's config chooses the executor `celery`")
        from batch_pipeline.orchestration.celery.executor import (  # noqa: PLC0415 - 0.3 s
            celery_executor_for,
        )

        return celery_executor_for(settings)
    create = _IN_DAGSTER[name].executor_creation_fn
    if create is None:
        raise dg.DagsterInvariantViolationError(f"the executor {name} cannot be created")
    return create


def _check_that_celery_is_installed(reason: str) -> None:
    if find_spec("dagster_celery") is None:
        raise ConfigurationError(
            f"{reason}, but Celery is not installed here: "
            f"{how_to_install('celery')}, or choose `threaded`"
        )
