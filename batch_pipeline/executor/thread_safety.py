"""Which parts of Dagster are not thread-safe, and what replaces them.

Found by reading and trying Dagster 1.13:

=====================================  ===========================================================
``ActiveExecution``, concurrency pool  Plain dicts and sets; only the executor's loop touches them.
``ExecutionPlan.resolve``              Adds mapped steps to dicts that steps look up by key. Only
                                       the loop iterates over them; a look-up is safe.
``KnownExecutionState``                Shares its set of ready outputs with the loop. Steps only
                                       test for membership, which is safe.
Python log capture                     Not safe: each step adds its handler to the shared loggers.
                                       So the first step in flight gets the lines of all steps. And
                                       while a handler is removed, other steps miss lines.
                                       `_RunLogCapture` replaces it.
Event loop of the plan context         Not safe: the run has one loop, and two async steps cannot
                                       use it at the same time. `_LoopPerThread` replaces it.
``warnings.catch_warnings``            Not safe, and used around asset events: filters are left
                                       over when two overlap. The executor restores them at the end
                                       of the run.
Event writes                           Safe, one at a time: each step writes its events in its own
                                       thread, and all go through the one logging handler of the
                                       instance, which has a lock.
Resources, IO managers                 Made once per run in the main thread, shared by all threads;
                                       Dagster's own in-memory and file IO managers are safe.
Storage (SQLite, PostgreSQL)           Safe: it uses a lock, or a connection per write.
=====================================  ===========================================================

An async resource uses the loop of the run; an async step uses the loop of its thread. So an object
that is bound to a loop (such as an HTTP session) must be made in the step.
"""

import asyncio
import logging
import threading
import warnings
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, cast

from batch_pipeline.executor.dagster_internals import (
    DagsterLogHandler,
    DagsterLogManager,
    PlanExecutionContext,
    StepOutputHandle,
)
from batch_pipeline.executor.shared_resources import SharedResourcesBuilder
from batch_pipeline.executor.step_threads import StepThread

T = TypeVar("T")


@contextmanager
def thread_safe_context(context: PlanExecutionContext) -> Iterator[PlanExecutionContext]:
    """Yield a copy of `context` in which the parts that are not thread-safe are replaced."""
    handler = context.log._dagster_handler
    with warnings.catch_warnings(), _RunLogCapture(handler).attached(context.log._managed_loggers):
        yield PlanExecutionContext(
            plan_data=context.plan_data,
            execution_data=context._execution_data._replace(
                scoped_resources_builder=SharedResourcesBuilder.of(context.scoped_resources_builder)
            ),
            log_manager=_StepLogManager(handler, context.log.level),
            output_capture=cast("dict[StepOutputHandle, object] | None", context.output_capture),
            event_loop=cast(AbstractEventLoop, _LoopPerThread()),
        )


class _LoopPerThread:
    """Runs async steps, each on the event loop of its thread. A loop is made when first needed."""

    _runners = threading.local()

    def run_until_complete(self, awaitable: Awaitable[T]) -> T:
        """Run on the calling thread's loop. Dagster calls no other method of the loop."""
        runner = getattr(self._runners, "runner", None)
        if runner is None:
            runner = self._runners.runner = asyncio.Runner()
            cast(StepThread, threading.current_thread()).at_end(runner.close)
        result: T = runner.get_loop().run_until_complete(awaitable)
        return result


#: Log handlers of the running step (and its hook, type check and so on), the innermost last.
_capturing: ContextVar[tuple[DagsterLogHandler, ...]] = ContextVar("_capturing", default=())


class _RunLogCapture(logging.Handler):
    """Passes lines of Python loggers to the step that wrote them.

    Lines of other threads (such as a thread pool of the user) are logged for the run.
    """

    def __init__(self, run_handler: DagsterLogHandler) -> None:
        super().__init__()
        self._run_handler = run_handler
        self._loop_thread = threading.current_thread()

    @contextmanager
    def attached(self, loggers: Sequence[logging.Logger]) -> Iterator[None]:
        """Listen to `loggers`, from the first step to the last."""
        for logger in loggers:
            logger.addHandler(self)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(self)

    def handle(self, record: logging.LogRecord) -> bool:
        """Pass `record` on. This needs no lock: each target handler has its own."""
        handlers = _capturing.get()
        if handlers:
            return bool(handlers[0].handle(record))
        thread = threading.current_thread()
        if thread is self._loop_thread or isinstance(thread, StepThread):
            return False  # as in Dagster, nothing is captured between steps
        return bool(self._run_handler.handle(record))


class _StepLogManager(DagsterLogManager):
    """A log manager that captures Python loggers only for its own thread."""

    def begin_python_log_capture(self) -> None:
        _capturing.set((*_capturing.get(), self._dagster_handler))

    def end_python_log_capture(self) -> None:
        _capturing.set(_capturing.get()[:-1])

    def with_tags(self, **new_tags: str) -> "_StepLogManager":
        return _StepLogManager(self._dagster_handler.with_tags(**new_tags), self.level)
