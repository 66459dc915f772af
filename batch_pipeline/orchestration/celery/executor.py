"""Runs steps on Celery workers of any host, and ends steps whose worker is gone.

dagster-celery sends steps and waits for their results with no time limit. This module adds what
it lacks: if a worker died or a message was lost, the step ends red with that reason, and its upload
goes to another run. As everywhere, only the lease of the upload shows whether a worker is dead or
slow.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import UUID

import dagster as dg
from celery import Celery, states
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from dagster import DagsterEvent, InitExecutorContext, serialize_value

from batch_pipeline.dagster_internals import (
    IStepContext,
    SerializableErrorInfo,
    StepFailureData,
    UserFailureData,
    normalize_metadata,
)
from batch_pipeline.errors import ConfigurationError, PipelineError, ServiceDownError
from batch_pipeline.executor import keep_steps_that_always_run
from batch_pipeline.executor.dagster_internals import (
    ActiveExecution,
    EngineEventData,
    ExecutionPlan,
    ExecutionStep,
    KnownExecutionState,
    PlanOrchestrationContext,
    RetryMode,
)
from batch_pipeline.orchestration.celery.broker import (
    UNREACHABLE,
    broker_down,
    messages_wait,
    result_backend,
    sending_options,
)
from batch_pipeline.orchestration.celery.dagster_internals import (
    CeleryExecutor,
    core_celery_execution_loop,
    make_app,
    submit_task,
)
from batch_pipeline.orchestration.failures import outage_failure, stopped_failure
from batch_pipeline.orchestration.ops import upload_id_of
from batch_pipeline.orchestration.run_ends import cancel_batch_of_terminated_run
from batch_pipeline.services.pipeline import Pipeline, shared_pipeline
from batch_pipeline.services.upload_processing import OUTAGE_PAUSE_SECONDS
from batch_pipeline.settings import Settings

#: Pause between two queries for the uploads that the run still holds (seconds).
LOOK_SECONDS = 1.0


def celery_executor_for(settings: Settings) -> Callable[[InitExecutorContext], "StepsOnWorkers"]:
    """Return a function that creates the executor. The settings fill what a run's config omits."""

    def create(context: InitExecutorContext) -> StepsOnWorkers:
        config = dict[str, Any](context.executor_config)
        broker = config.get("broker") or settings.celery_broker_url
        if not broker:
            raise ConfigurationError(
                "the run's config chooses the executor `celery` without a `broker`; name one there "
                "or in BATCH_PIPELINE_CELERY_BROKER_URL, such as redis://broker.example:6379/0"
            )
        return StepsOnWorkers(
            settings,
            retries=RetryMode.from_config(config["retries"]),
            broker=broker,
            backend=config.get("backend") or result_backend(broker),
            include=config["include"],
            config_source=sending_options(broker) | config["config_source"],
        )

    return create


class StepsOnWorkers(CeleryExecutor):
    """dagster-celery's executor, but it does not wait for results that will never come."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._settings = settings

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Run the plan. Dagster calls this in the run worker."""
        steps = _Steps(shared_pipeline(self._settings), plan_context, self)
        # Replaced, because the loop of dagster-celery calls it and keeps the result.
        execution_plan.start = _keeping_steps_that_always_run(  # type: ignore[method-assign]
            execution_plan.start
        )
        yield from core_celery_execution_loop(
            plan_context, execution_plan, step_execution_fn=steps.send
        )


def _keeping_steps_that_always_run(
    start: Callable[..., ActiveExecution],
) -> Callable[..., ActiveExecution]:
    def start_and_keep(**options: Any) -> ActiveExecution:
        active = start(**options)
        keep_steps_that_always_run(active)
        return active

    return start_and_keep


class _Steps:
    """The steps of one run that the broker or the workers have."""

    def __init__(
        self, pipeline: Pipeline, context: PlanOrchestrationContext, executor: CeleryExecutor
    ) -> None:
        self._pipeline = pipeline
        self._context = context
        self._broker: str = executor.broker
        self._here = make_app(executor.app_args())
        self._here.conf.task_always_eager = True
        self._lease = pipeline.settings.lease_seconds
        self._app: Celery = self._here
        self._outage: ServiceDownError | None = None
        self._held: Mapping[UUID, bool] = {}
        self._unbegun: set[UUID] = set()
        self._next_look = self._next_renewal = 0.0
        self.stopped = False
        #: Time for a worker to load before its work, and to report after it (seconds).
        self.grace = self._lease

    def send(  # noqa: PLR0917 - as dagster-celery calls it
        self,
        app: Celery,
        context: PlanOrchestrationContext,
        step: ExecutionStep,
        queue: str,
        priority: int,
        known_state: KnownExecutionState,
    ) -> Any:
        """Send a step to the workers. Steps without an upload take milliseconds and run here."""
        where = step, queue, priority, known_state
        key, step_context = step.get_mapping_key(), context.for_step(step)
        if key is None:
            # In the main thread, Dagster would pass a signal that arrives now only to the step, and
            # the run would go on.
            with ThreadPoolExecutor(1) as thread:
                result = thread.submit(_submit, self._here, context, *where).result()
            return _Here(self, step_context, result)
        upload_id = upload_id_of(key)
        if self._outage:
            return _Ended(self, step_context, stopped_failure(self._outage))
        try:
            result = _submit(app, context, *where)
        except UNREACHABLE as error:
            self._outage = broker_down(self._broker, error)
            released = self._pipeline.states.release_run(
                context.run_id, self._outage, resume_after_seconds=OUTAGE_PAUSE_SECONDS
            )
            return _Ended(self, step_context, outage_failure(self._outage, released=released))
        self._app = app
        self._unbegun.add(upload_id)
        self.look()
        return _Sent(self, step_context, upload_id, result)

    def note(self, upload_id: UUID, *, begun: bool) -> None:
        """Note whether a worker has begun the step of an upload."""
        (self._unbegun.discard if begun else self._unbegun.add)(upload_id)

    def are_held(self, upload_id: UUID, *, begun: bool) -> bool:
        """Return whether, by its lease, a worker processes the upload now or will do so."""
        self.look()
        return self._held.get(upload_id, False) or (not begun and upload_id in self._held)

    def look(self) -> None:
        """Read which uploads the run holds; renew the leases of those that wait in the broker."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        try:
            if now >= self._next_renewal and self._may_wait():
                self._pipeline.states.heartbeat(self._context.run_id, [])
                self._next_renewal = now + self._lease / 4
            self._held = self._pipeline.states.holds(self._context.run_id)
        except PipelineError as error:  # the database is down: the last answer is used
            self._context.log.warning("the leases could not be read: %s", error)

    def _may_wait(self) -> bool:
        """Return whether a worker may still begin the steps that none has begun."""
        if not self._unbegun:
            return True
        try:
            return messages_wait(self._app)
        except UNREACHABLE as error:
            self._context.log.warning("%s", broker_down(self._broker, error))
            return False

    def stop(self) -> None:
        """Give up steps that no worker has begun; if a person ended the run, the begun ones too."""
        if self.stopped:
            return
        self.stopped = True
        run_id = self._context.run_id
        cancel_batch_of_terminated_run(self._context.instance, self._pipeline, run_id)
        self._pipeline.states.release_run(run_id)


class _Step:
    """A step that dagster-celery has started. It uses this object as the result of a task.

    Only `ready` may raise an error. After an error of `get`, dagster-celery would wait for ever for
    the steps that always run, and never start them.
    """

    def __init__(self, steps: _Steps, context: IStepContext) -> None:
        self._steps = steps
        self._context = context
        self._events: list[str] | None = None

    def ready(self) -> bool:
        """Return whether the step has ended; then `get` returns its events."""
        raise NotImplementedError

    def get(self) -> list[str]:
        """Return the events of the step."""
        if self._events is None:
            raise TaskRevokedError
        return self._events

    def revoke(self) -> None:
        """Stop. dagster-celery calls this for each step when the run is terminated."""
        self._steps.stop()

    def _failed(self, failure: dg.Failure) -> list[str]:
        """Write a failure to the event log, as a worker would have."""
        description = failure.description or ""
        data = StepFailureData(  # type: ignore[no-untyped-call]
            error=SerializableErrorInfo(description, [], dg.Failure.__name__),
            user_failure_data=UserFailureData(  # type: ignore[no-untyped-call]
                "intentional-failure", description, normalize_metadata(failure.metadata)
            ),
        )
        return [serialize_value(DagsterEvent.step_failure_event(self._context, data))]


class _Here(_Step):
    """A step that this process has run."""

    def __init__(self, steps: _Steps, context: IStepContext, result: AsyncResult) -> None:
        super().__init__(steps, context)
        self._result = result

    def ready(self) -> bool:
        self._events = list(self._result.get())
        return True


class _Ended(_Step):
    """A step that failed without a worker."""

    def __init__(self, steps: _Steps, context: IStepContext, failure: dg.Failure) -> None:
        super().__init__(steps, context)
        self._failure = failure

    def ready(self) -> bool:
        self._events = self._failed(self._failure)
        return True


class _Sent(_Step):
    """A step that was sent to the workers."""

    def __init__(
        self, steps: _Steps, context: IStepContext, upload_id: UUID, result: AsyncResult
    ) -> None:
        super().__init__(steps, context)
        self._upload_id = upload_id
        self._result = result
        self._missed_since: float | None = None
        self._was_said = False
        self._worker = ""

    def ready(self) -> bool:
        """Return whether the step has ended, or will never end."""
        about: Any = None
        answers = True
        try:
            state = self._result.state
            if state == states.STARTED and not self._worker:
                about = self._result.info
        except UNREACHABLE:
            answers = False
            state = states.STARTED if self._worker else states.PENDING
        if state in states.READY_STATES:
            self._steps.note(self._upload_id, begun=True)
            self._events = self._reported()
            return True
        begun = state == states.STARTED
        if begun and not self._worker:
            # If the step has ended since its state was read, this is its result.
            known = about if isinstance(about, dict) else {}
            self._worker = str(known.get("hostname", "unknown"))
        self._steps.note(self._upload_id, begun=begun)
        if self._steps.are_held(self._upload_id, begun=begun):
            self._missed_since = None
            return False
        if self._missed_since is None:
            self._missed_since, self._was_said = time.monotonic(), False
        missed = time.monotonic() - self._missed_since
        if missed >= (0 if self._steps.stopped and not begun else self._steps.grace):
            self._give_up(may_be_received=answers)
            return True
        if missed >= self._steps.grace / 4 and not self._was_said:
            self._was_said = True
            left = self._steps.grace - missed
            self._say(f"No sign of life of {self._worker or 'this step'}; given up in {left:.0f} s")
        return False

    def revoke(self) -> None:
        super().revoke()
        self._revoke()

    def _reported(self) -> list[str] | None:
        """Return the events that the worker reports, or a failure of the step; None if revoked."""
        try:
            return list(self._result.get())
        except TaskRevokedError:
            return None
        except Exception as error:  # the worker's process was killed, or could not begin the step
            return self._failed(_unreported(self._worker, error))

    def _give_up(self, *, may_be_received: bool) -> None:
        self._steps.note(self._upload_id, begun=True)
        if may_be_received:
            self._revoke()  # a worker that still receives the message skips it
        if not self._steps.stopped:
            self._events = self._failed(_lost(self._worker))

    def _revoke(self) -> None:
        with suppress(*UNREACHABLE):
            self._result.revoke()

    def _say(self, what: str) -> None:
        DagsterEvent.engine_event(self._context, what, EngineEventData())


def _submit(app: Celery, *arguments: Any) -> AsyncResult:
    with warnings.catch_warnings():
        # dagster-celery defines its task again for every step, and Celery warns each time.
        warnings.filterwarnings("ignore", message="Task name 'execute_plan' is already registered")
        return submit_task(app, *arguments)


def _lost(worker: str) -> dg.Failure:
    if worker:
        kind = "lost_worker"
        reason = (
            f"the Celery worker {worker} began this step and has shown no sign of life for longer "
            "than the lease"
        )
    else:
        kind = "lost_message"
        reason = (
            "no Celery worker has begun this step, its message is no longer in the broker, and "
            "this run no longer holds the upload"
        )
    return _failure(kind, reason)


def _unreported(worker: str, error: Exception) -> dg.Failure:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    where = f"the Celery worker {worker}" if worker else "a Celery worker"
    return _failure("lost_worker", f"{where} did not report how this step ended ({said})")


def _failure(kind: str, reason: str) -> dg.Failure:
    return dg.Failure(
        description=f"{kind}: {reason}; the upload goes to another run",
        metadata={"kind": kind, "reason": reason, "next": "nothing to do: no upload is lost"},
        allow_retries=False,
    )
