"""The resources of steps and sensors, and the plain objects that steps and sensors get from them.

`batch_pipeline` lives as long as the process, `batch_pipeline_worker` as long as the run (or the
step, where an executor gives each step a process of its own).
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from pydantic import Field, SecretStr, create_model

from batch_pipeline.errors import ServiceDownError, WorkPausedError
from batch_pipeline.orchestration.dagster_storage.instance_storage import pool_connections
from batch_pipeline.orchestration.progress_meter import ProgressMeter
from batch_pipeline.orchestration.tags import NOT_FAILED, OUTCOME_TAG
from batch_pipeline.services.pipeline import Pipeline, shared_pipeline
from batch_pipeline.services.states.claim_keeper import ClaimKeeper
from batch_pipeline.services.upload_processing import UploadProcessor
from batch_pipeline.settings import Settings, load_settings


@dataclass
class RunWorker:
    """What the steps of one run share."""

    processor: UploadProcessor
    progress_meter: ProgressMeter = field(default_factory=ProgressMeter)
    service_down: ServiceDownError | None = None
    """Set by the first step that finds a service down; then no other step begins."""
    paused: WorkPausedError | None = None
    """Set by a step whose model call may not begin; then no other step begins."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note_outage(self, error: ServiceDownError) -> ServiceDownError:
        """Note that a service is down; return the error of the first step that found it down."""
        with self._lock:
            if self.service_down is None or self.service_down.kind != error.kind:
                self.service_down = error
            return self.service_down


class _PipelineResource(dg.ConfigurableResource[Pipeline]):
    """Database, storage, state machine and analyzer, made from the settings.

    If a field is empty, the setting comes from the environment.
    """

    def create_resource(self, context: dg.InitResourceContext) -> Pipeline:
        """Return the pipeline of this process. After a failure, the next run tries again.

        Raises:
            ConfigurationError: a setting is not valid.
        """
        fields = {name: getattr(self, name) for name in RUN_SETTINGS} | (
            context.resource_config or {}
        )
        return shared_pipeline(
            load_settings(**{name: value for name, value in fields.items() if value is not None})
        )

    def _initialize_and_run(self, context: dg.InitResourceContext) -> Pipeline:
        """Create the resource without the copies of it that Dagster makes for every tick.

        Dagster derives the config schema of all settings for each of three copies. That took 84 %
        of the processor time of a code server that has nothing to do.
        """
        return self.create_resource(context)


def _config_type(of_setting: Any) -> type[bool] | type[int] | type[float] | type[str]:
    """Return the type of a setting in Dagster's config: paths and choices are text."""
    return next((each for each in (bool, int, float) if of_setting is each), str)


#: Settings that a run's config can replace. Secrets are left out: Dagster stores and shows config.
RUN_SETTINGS = {
    name: _config_type(setting.annotation)
    for name, setting in Settings.model_fields.items()
    if setting.annotation is not SecretStr
}

PipelineResource = create_model(
    "PipelineResource",
    __base__=_PipelineResource,
    __module__=__name__,
    __doc__=_PipelineResource.__doc__,
    **{  # type: ignore[call-overload]  # pydantic types the fields one by one
        name: (of_type | None, Field(None, description=Settings.model_fields[name].description))
        for name, of_type in RUN_SETTINGS.items()
    },
)


@dg.resource(
    required_resource_keys={"batch_pipeline"},
    description="Processes uploads for one run, and keeps its claims alive meanwhile.",
)
def worker_resource(context: dg.InitResourceContext) -> Iterator[RunWorker]:
    """Yield the worker of this run; its heartbeat ends with the run.

    This is no `ConfigurableResource`, because it has no settings that Dagster's pages could show.
    """
    pipeline: Pipeline = context.resources.batch_pipeline
    settings = pipeline.settings
    run = context.run
    run_id = run.run_id if run else ""
    if context.instance:
        pool_connections(context.instance)
        if run and OUTCOME_TAG in run.tags and not run.is_finished:  # copied from its parent
            context.instance.add_run_tags(run_id, {OUTCOME_TAG: NOT_FAILED})
    with ClaimKeeper(pipeline.states, run_id, lease_seconds=settings.lease_seconds) as keeper:
        yield RunWorker(UploadProcessor(pipeline, keeper))
