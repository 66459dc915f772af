"""Calls libraries that may hang: nothing waits for these threads, not even the loop's end."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(call: Callable[[], Result]) -> "Future[Result]":
    """Call in a new thread. asyncio has few threads for all calls, and waits for each of them."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()  # a running future is not cancelled when a wait ends

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
