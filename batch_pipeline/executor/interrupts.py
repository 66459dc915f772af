"""How a step learns that its run should end. The code that sets the flag is in `threaded`.

Dagster interrupts a step by raising an exception in the main thread. Raising one in another thread
could break what that thread holds. So a step of the threaded executor checks a flag:

    while not interrupt_event().wait(0.5):
        ...

The step then ends by returning or by raising, for example
`dagster.DagsterExecutionInterruptedError`. The run waits for it.
"""

import threading
from contextvars import ContextVar

_current: ContextVar[threading.Event] = ContextVar("batch_pipeline_executor_interrupt")


def interrupt_event() -> threading.Event:
    """Return the flag of the run whose step is calling. It is set when the run should end.

    Call this in the step's own thread; the flag can then be passed to any other thread. Outside the
    threaded executor this returns an event that is never set.
    """
    return _current.get(None) or threading.Event()


def bind_interrupt_event(event: threading.Event) -> None:
    """Make `event` the flag of the current context. Only the executor calls this."""
    _current.set(event)
