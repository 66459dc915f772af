"""How a step learns that its run is to end; who sets the flag stands in `threaded`.

Dagster interrupts a step by raising an exception in the main thread. Nothing can be raised in
another thread without the risk of breaking what it holds, so a step of the threaded executor asks:

    while not interrupt_event().wait(0.5):
        ...

and leaves by returning or by raising, `dagster.DagsterExecutionInterruptedError` for instance.
The run waits for it.
"""

import threading
from contextvars import ContextVar

_current: ContextVar[threading.Event] = ContextVar("batch_pipeline_executor_interrupt")


def interrupt_event() -> threading.Event:
    """Return the flag of the run whose step is calling; set once the run is to end.

    Take it in the step's own thread; then it may be handed to any other. Outside the threaded
    executor it is an event that nobody sets.
    """
    return _current.get(None) or threading.Event()


def interrupt_requested() -> bool:
    """Tell whether the run of the calling step is to end: terminated, or ended by an error."""
    return interrupt_event().is_set()


def bind_interrupt_event(event: threading.Event) -> None:
    """Make `event` the flag of the current context; for the executor."""
    _current.set(event)
