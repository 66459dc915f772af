"""The threaded executor: its configuration, and the loop that decides what runs next.

Dagster's state machine (`ActiveExecution`) knows which steps are ready, waiting to be retried,
blocked by a limit, or to be skipped. The loop runs in the run worker's main thread. It starts ready
steps in threads and passes their reports to the state machine. Everything else is as in Dagster's
in-process executor: resources are made once for the run, standard output is captured once for the
run, and the events of a step are the same, in the same order.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import dagster as dg
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterExecutionInterruptedError,
    Executor,
    InitExecutorContext,
)

from batch_pipeline.executor.dagster_internals import (
    GLOBAL_CONCURRENCY_TAG,
    PRIORITY_TAG,
    ActiveExecution,
    EngineEventData,
    ExecuteRunWithPlanIterable,
    ExecutionPlan,
    ExecutionStep,
    InstanceConcurrencyContext,
    KnownExecutionState,
    PlanExecutionContext,
    PlanExecutionContextManager,
    PlanOrchestrationContext,
    RetryMode,
    StepDependencyConfig,
    create_compute_log_file_key,
    dagster_event_sequence_for_step,
    get_retries_config,
    get_step_dependency_config_field,
    get_tag_concurrency_limits_config,
    serializable_error_info_from_exc_info,
    trigger_hooks,
)
from batch_pipeline.executor.step_threads import POLL_SECONDS, StepThreads, StepWork
from batch_pipeline.executor.thread_safety import thread_safe_context
from batch_pipeline.executor.turns import Turns

#: How many steps the loop fetches ahead, as a multiple of those that run at a time. For each fetch
#: the state machine looks at all ready steps and all ended steps. With 1,200 steps and one fetch
#: per step, that took 2 ms per step.
_ROUNDS_AHEAD = 10
_STEP_FAILURE = DagsterEventType.STEP_FAILURE.value
#: A step with this tag runs even if steps before it failed, like a ``finally`` block. It must have
#: no input but ``Nothing``, since a failed step has no output.
ALWAYS_TAG = "threaded_executor/always"
#: Events that change the state machine. It would make seven checks on any other event, too.
_STATE_CHANGES = {
    kind.value
    for kind in (
        DagsterEventType.STEP_OUTPUT,
        DagsterEventType.STEP_SUCCESS,
        DagsterEventType.STEP_FAILURE,
        DagsterEventType.STEP_UP_FOR_RETRY,
        DagsterEventType.RESOURCE_INIT_FAILURE,
    )
}


class StepsCanNeverRunError(dg.DagsterError):
    """Steps are left, but nothing runs or waits: the inputs of these steps will never come.

    Dagster's other executors wait for ever in this case. It happens when a run is re-executed from
    failure after its worker was killed, with ``require_upstream_step_success: false``: the plan
    then lacks steps that had not begun, but has the steps that depend on them. It also happens with
    a tag concurrency limit of 0. Re-execute all steps instead, or also the steps that the message
    names as missing.
    """


def threaded_config(*, max_working: int = 0, return_events: bool = True) -> dg.Field:
    """Return the schema of the executor's config. A run worker may use other default values."""
    return dg.Field(
        {
            "max_concurrent": dg.Field(
                dg.Int,
                default_value=4,
                description="Steps of one run that run at the same time (threads), at least 1.",
            ),
            "max_working": dg.Field(
                dg.Int,
                default_value=max_working,
                description="How many of these steps work at a time, not counting those that "
                "wait in `others_may_work()`; 0: all of them.",
            ),
            "return_events": dg.Field(
                dg.Bool,
                default_value=return_events,
                description="Return the events of all steps to the caller that executes the run, "
                "as `execute_job` does. A run worker reads only those of failed steps, but keeps "
                "all returned events in its memory.",
            ),
            "tag_concurrency_limits": get_tag_concurrency_limits_config(),  # type: ignore[no-untyped-call]
            "retries": get_retries_config(),  # type: ignore[no-untyped-call]
            "step_dependency_config": get_step_dependency_config_field(),  # type: ignore[no-untyped-call]
        },
        description="Run steps in threads of the run worker.",
    )


@dg.executor(name="threaded", config_schema=threaded_config())
def threaded_executor(context: InitExecutorContext) -> "ThreadedExecutor":
    """Run the steps of a run in threads of the run worker.

    .. code-block:: yaml

        execution:
          config:
            max_concurrent: 8

    Steps with a higher ``dagster/priority`` tag are started first. When a run is terminated, the
    executor asks the steps in flight to stop (`interrupt_event`) and waits for them. After a second
    interrupt it no longer waits.
    """
    config: Mapping[str, Any] = context.executor_config
    return ThreadedExecutor(
        max_concurrent=config["max_concurrent"],
        max_working=config["max_working"],
        return_events=config["return_events"],
        retries=RetryMode.from_config(config["retries"]) or RetryMode.ENABLED,
        tag_concurrency_limits=config.get("tag_concurrency_limits"),
        step_dependency_config=StepDependencyConfig.from_config(
            config.get("step_dependency_config")
        ),
    )


class ThreadedExecutor(Executor):
    """See `threaded_executor`.

    Raises:
        DagsterInvariantViolationError: `max_concurrent` is less than 1, or `max_working` than 0.
    """

    def __init__(
        self,
        *,
        max_concurrent: int = 4,
        max_working: int = 0,
        return_events: bool = True,
        retries: RetryMode = RetryMode.ENABLED,
        tag_concurrency_limits: list[dict[str, Any]] | None = None,
        step_dependency_config: StepDependencyConfig | None = None,
    ) -> None:
        if max_concurrent < 1:
            raise dg.DagsterInvariantViolationError(
                f"max_concurrent is {max_concurrent}; expected 1 or more"
            )
        if max_working < 0:
            raise dg.DagsterInvariantViolationError(
                f"max_working is {max_working}; expected 1 or more, or 0 for all"
            )
        self._max_concurrent = max_concurrent
        self._max_working = max_working
        self._return_events = return_events
        self._retries = retries
        self._tag_concurrency_limits = tag_concurrency_limits
        self._step_dependency_config = step_dependency_config or StepDependencyConfig.default()

    @property
    def retries(self) -> RetryMode:
        """Whether steps are retried."""
        return self._retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        """Whether a step waits for the success of steps before it, or for their outputs only."""
        return self._step_dependency_config

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Run the plan. Dagster calls this in the main thread of the run worker."""
        yield DagsterEvent.engine_event(
            plan_context,
            f"Executing steps in up to {self._max_concurrent} threads (pid: {os.getpid()})",
            EngineEventData.in_process(os.getpid(), execution_plan.step_keys_to_execute),
        )
        yield from ExecuteRunWithPlanIterable(
            execution_plan=execution_plan,
            iterator=self._run_plan,
            execution_context_manager=PlanExecutionContextManager(
                job=plan_context.job,
                retry_mode=plan_context.retry_mode,
                execution_plan=execution_plan,
                run_config=plan_context.run_config,
                dagster_run=plan_context.dagster_run,
                instance=plan_context.instance,
                raise_on_error=plan_context.raise_on_error,
                output_capture=plan_context.output_capture,
                step_dependency_config=self._step_dependency_config,
            ),
        )
        yield DagsterEvent.engine_event(
            plan_context,
            f"Finished steps in threads (pid: {os.getpid()})",
            EngineEventData.in_process(os.getpid()),
        )

    def _run_plan(
        self, job_context: PlanExecutionContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        with ExitStack() as log_capture:
            yield from _begin_log_capture(job_context, execution_plan, log_capture)
            with (
                thread_safe_context(job_context) as context,
                InstanceConcurrencyContext(context.instance, context.dagster_run) as pools,
                ActiveExecution(
                    execution_plan,
                    retry_mode=self._retries,
                    tag_concurrency_limits=self._tag_concurrency_limits,
                    instance_concurrency_context=pools,
                    step_dependency_config=self._step_dependency_config,
                ) as active,
            ):
                keep_steps_that_always_run(active)
                loop = _Loop(
                    context,
                    pools,
                    active,
                    max_concurrent=self._max_concurrent,
                    ahead=self._steps_ahead(execution_plan),
                    turns=Turns(self._max_working),
                    return_events=self._return_events,
                )
                yield from loop.run()
            yield from _end_log_capture(job_context, log_capture)

    def _steps_ahead(self, plan: ExecutionPlan) -> int:
        """Return how many steps may be fetched before they can be started.

        Returns 0 where fetching ahead would change the result: a fetched step counts against
        limits, and a step of a higher priority can no longer overtake it.
        """
        in_order = {GLOBAL_CONCURRENCY_TAG, PRIORITY_TAG}
        asked_in_order = self._tag_concurrency_limits or any(
            step.pool or in_order & (step.tags or {}).keys() for step in plan.steps
        )
        return 0 if asked_in_order else _ROUNDS_AHEAD * self._max_concurrent


class _Loop:
    """Starts steps and collects reports until nothing is left to do or the run is to stop."""

    def __init__(
        self,
        context: PlanExecutionContext,
        pools: InstanceConcurrencyContext,
        active: ActiveExecution,
        *,
        max_concurrent: int,
        ahead: int,
        turns: Turns,
        return_events: bool,
    ) -> None:
        self._context = context
        self._pools = pools
        self._active = active
        self._max_concurrent = max_concurrent
        self._ahead = ahead
        self._return_events = return_events
        self._ready: deque[tuple[str, StepWork]] = deque()
        self._interrupt = threading.Event()
        self._threads = StepThreads(self._interrupt, turns)
        self._interrupted = False
        self._error: BaseException | None = None

    def run(self) -> Iterator[DagsterEvent]:
        """Yield the events of all steps, those of each step in their order.

        Raises:
            DagsterExecutionInterruptedError: the run was interrupted; steps in flight have ended.
            StepsCanNeverRunError: the plan cannot be completed.
            BaseException: an exception that escaped from a step. It is raised after the other steps
                in flight have ended.
        """
        with self._threads as threads:
            while True:
                yield from self._check_for_interrupts()
                if not self._interrupt.is_set():
                    yield from self._start_steps()
                if not threads.in_flight:
                    if self._interrupt.is_set() or self._active.is_complete:
                        break
                    self._check_that_steps_can_run()
                for report in threads.reports(timeout=self._patience()):
                    for event in report.events:
                        if self._return_events or event.event_type_value == _STEP_FAILURE:
                            yield event
                        if event.event_type_value in _STATE_CHANGES:
                            self._active.handle_event(event)
                    if report.ended:
                        self._active.verify_complete(self._context, report.step_key)
                    if report.error:
                        self._error = self._error or report.error
                        self._interrupt.set()
        if self._interrupted:
            yield DagsterEvent.engine_event(
                self._context, "Interrupted; all steps in flight have ended", EngineEventData()
            )
            raise DagsterExecutionInterruptedError from self._error
        if self._error:
            raise self._error

    def _check_for_interrupts(self) -> Iterator[DagsterEvent]:
        if not self._active.check_for_interrupts():
            return
        if self._interrupted:
            self._threads.give_up()
            raise DagsterExecutionInterruptedError(
                f"interrupted twice; steps still in flight: {self._threads.in_flight}"
            )
        self._interrupted = True
        self._interrupt.set()
        yield DagsterEvent.engine_event(
            self._context,
            "Received a termination signal: told the steps in flight to stop, waiting for them",
            EngineEventData.interrupted(self._threads.in_flight),
        )

    def _start_steps(self) -> Iterator[DagsterEvent]:
        free = self._max_concurrent - len(self._threads.in_flight)
        if free > len(self._ready):
            yield from self._active.plan_events_iterator(self._context)
            wanted = free + self._ahead - len(self._ready)
            if steps := self._active.get_steps_to_execute(limit=wanted):
                known_state = self._active.get_known_state()
                self._ready += [
                    (step.key, partial(_step_events, self._context, step, known_state))
                    for step in steps
                ]
            yield from self._active.concurrency_event_iterator(self._context)
        while free and self._ready:
            self._threads.start(*self._ready.popleft())
            free -= 1

    def _check_that_steps_can_run(self) -> None:
        """Raise an error if no step is in flight and no step ever will be."""
        active = self._active
        if (
            active._pending_skip
            or active._pending_abandon
            or active._waiting_to_retry
            or self._pools.has_pending_claims()
        ):
            return
        reasons = [
            f"{key} needs the output of {', '.join(self._missing_steps(key))}"
            for key in active._pending
        ] + [f"{key} is held back by a tag concurrency limit" for key in active._executable]
        raise StepsCanNeverRunError(
            "The plan of this run cannot be completed, these steps can never run: "
            f"{'; '.join(reasons)}. Re-execute all steps, or these and the missing ones."
        )

    def _missing_steps(self, step_key: str) -> list[str]:
        step = self._active.get_step_by_key(step_key)
        return sorted(
            {
                handle.step_key
                for step_input in step.step_inputs
                for handle in step_input.get_step_output_handle_dependencies()
                if not self._active._has_produced_output(handle)
            }
        )

    def _patience(self) -> float:
        """Return how long to wait for a report (seconds)."""
        # Dagster's answer is never positive while a step waits for a pool, so its own in-process
        # executor spins. A retry that is due before the next poll still starts on time.
        due = self._active.sleep_interval()  # type: ignore[no-untyped-call]
        return due if 0 < due < POLL_SECONDS else POLL_SECONDS


def keep_steps_that_always_run(active: ActiveExecution) -> None:
    """Make tagged steps ready, which Dagster would give up because a step before them failed."""
    give_up = active.get_steps_to_abandon

    def get_steps_to_abandon() -> Sequence[ExecutionStep]:
        active._update()
        for key in list(active._pending_abandon):
            if ALWAYS_TAG in (active.get_step_by_key(key).tags or {}):
                active._pending_abandon.remove(key)
                active._executable.append(key)
        return give_up()

    active.get_steps_to_abandon = get_steps_to_abandon  # type: ignore[method-assign]


def _step_events(
    context: PlanExecutionContext, step: ExecutionStep, known_state: KnownExecutionState
) -> Iterator[DagsterEvent]:
    """Run one attempt of a step and then its hooks, in the thread of the step."""
    step_context = context.for_step(step, known_state)
    events: list[DagsterEvent] = []
    for event in dagster_event_sequence_for_step(step_context):
        events.append(event)
        yield event
    yield from trigger_hooks(step_context, events)


def _begin_log_capture(
    context: PlanExecutionContext, plan: ExecutionPlan, capture: ExitStack
) -> Iterator[DagsterEvent]:
    """Capture standard output and error of the process, once for all steps."""
    manager = context.instance.compute_log_manager
    try:
        file_key = create_compute_log_file_key()  # type: ignore[no-untyped-call]
        log_key = manager.build_log_key_for_run(context.run_id, file_key)
        log_context = capture.enter_context(manager.capture_logs(log_key))
        step_keys = [step.key for step in plan.get_steps_to_execute_in_topo_order()]
        yield DagsterEvent.capture_logs(context, step_keys, log_key, log_context)
    except Exception:  # the run goes on without captured output
        yield _log_capture_failed(context, "setting up")


def _end_log_capture(context: PlanExecutionContext, capture: ExitStack) -> Iterator[DagsterEvent]:
    try:
        capture.close()
    except Exception:
        yield _log_capture_failed(context, "ending")


def _log_capture_failed(context: PlanExecutionContext, doing: str) -> DagsterEvent:
    return DagsterEvent.engine_event(
        context,
        f"Exception while {doing} compute log capture",
        EngineEventData(error=serializable_error_info_from_exc_info(sys.exc_info())),
    )
