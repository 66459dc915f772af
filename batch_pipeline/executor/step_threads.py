"""The threads that run steps, and their reports. `threaded` decides which step runs when.

How the threads stop: the loop sets the interrupt event. Running steps end by themselves and report.
Then the loop dismisses the idle threads and joins them. Threads are daemons. So a step that never
ends does not keep the process alive after a second interrupt, when the loop stops waiting.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from queue import Empty, Queue, SimpleQueue
from types import TracebackType
from typing import Self

from dagster import DagsterEvent

from batch_pipeline.executor.dagster_internals import pop_captured_interrupt
from batch_pipeline.executor.interrupts import bind_interrupt_event
from batch_pipeline.executor.turns import Turns

#: Longest time until an interrupt is noticed (seconds): Dagster's signal handler only sets a flag.
POLL_SECONDS = 0.1
_IDLE = "idle step thread"

#: Does the work of a step and yields its events.
StepWork = Callable[[], Iterator[DagsterEvent]]


@dataclass(frozen=True)
class StepReport:
    """A thread's report about its step: events in the order in which they happened."""

    step_key: str
    events: Sequence[DagsterEvent]
    ended: bool
    """True: this is the last report of the attempt, and the thread is free."""
    error: BaseException | None = None
    """An exception that escaped the step. It ends the run, as in Dagster's in-process executor."""


class StepThread(threading.Thread):
    """Runs one step after another. The thread has the name of the step that it runs."""

    def __init__(self) -> None:
        super().__init__(name=_IDLE, daemon=True)
        self._tasks: SimpleQueue[tuple[str, Callable[[], None]] | None] = SimpleQueue()
        self._at_end: list[Callable[[], None]] = []

    def assign(self, name: str, task: Callable[[], None]) -> None:
        """Give this idle thread a task."""
        self._tasks.put((name, task))

    def dismiss(self) -> None:
        """Let the thread end when it is idle."""
        self._tasks.put(None)

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` in this thread before the thread ends."""
        self._at_end.append(callback)

    def run(self) -> None:
        """Work until dismissed."""
        while (assignment := self._tasks.get()) is not None:
            self.name, task = assignment
            task()
            self.name = _IDLE
            del assignment, task  # so that an idle thread holds no objects of its last step
        for callback in self._at_end:
            callback()


class StepThreads:
    """A pool of threads that grows with the number of steps in flight; only the loop uses it.

    Leaving the context sets the interrupt event and waits for the steps in flight.
    """

    def __init__(self, interrupt: threading.Event, turns: Turns) -> None:
        self._interrupt = interrupt
        self._turns = turns
        # Not a `SimpleQueue`: it waits for ever if a signal's handler ends after the timeout, which
        # is a bug of CPython. The loop waits in the main thread, which handles the signals.
        self._reports: Queue[StepReport] = Queue()
        self._idle: list[StepThread] = []
        self._busy: dict[str, StepThread] = {}
        self._waits = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._interrupt.set()
        while self._busy and self._waits:
            self.reports(timeout=POLL_SECONDS)
            self._waits = not pop_captured_interrupt()
        for thread in (*self._idle, *self._busy.values()):
            thread.dismiss()
        for thread in self._idle:
            thread.join()

    @property
    def in_flight(self) -> list[str]:
        """Return the keys of the steps that have not ended yet."""
        return list(self._busy)

    def give_up(self) -> None:
        """Stop waiting for steps in flight."""
        self._waits = False

    def start(self, step_key: str, work: StepWork) -> None:
        """Run `work` in a thread, with a copy of the caller's context variables."""
        if self._idle:
            thread = self._idle.pop()
        else:
            thread = StepThread()
            thread.start()
        self._busy[step_key] = thread
        context = copy_context()
        context.run(bind_interrupt_event, self._interrupt)
        thread.assign(step_key, lambda: context.run(self._work, step_key, work))

    def reports(self, timeout: float) -> list[StepReport]:
        """Wait at most `timeout` seconds for a report, then return all reports."""
        reports: list[StepReport] = []
        try:
            reports.append(self._reports.get(timeout=timeout))
            while True:
                reports.append(self._reports.get_nowait())
        except Empty:
            pass
        for report in reports:
            if report.ended:
                self._idle.append(self._busy.pop(report.step_key))
        return reports

    def _work(self, step_key: str, work: StepWork) -> None:
        events: list[DagsterEvent] = []
        error: BaseException | None = None
        try:
            with self._turns.taken():
                for event in work():
                    events.append(event)
                    # Other steps may be waiting for this output. (STEP_OUTPUT is too early: it
                    # comes before the value is stored.) Everything else is reported at the end,
                    # after the hooks: a step must not be started again while its hooks run.
                    if event.is_handled_output:
                        self._reports.put(StepReport(step_key, events, ended=False))
                        events = []
        except BaseException as escaped:  # a thread must always report its end
            error = escaped
        self._reports.put(StepReport(step_key, events, ended=True, error=error))
