"""A call on a thread of its own, for code that may block as long as it likes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def on_own_thread(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Its outcome to be. The thread does not keep the program alive."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
