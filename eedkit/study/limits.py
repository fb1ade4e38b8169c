"""A time limit for a block: ends a model that hangs, in this process or together with a worker's."""

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any


class OutOfTime(BaseException):
    """A block took longer than its limit. Not an `Exception`, which models and readers of images catch."""


def can_interrupt() -> bool:
    """Whether a hang can be interrupted here: signals reach the main thread only, and Windows has no timer that sends one."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


@contextmanager
def within(seconds: float | None, give_up: Callable[[str], Any]) -> Iterator[None]:
    """End the block after so many seconds.

    Where a signal can interrupt it, `OutOfTime` is raised, once Python runs again: not inside of a call to C that never
    returns. Elsewhere, as in the thread of a Dask worker, the whole process is ended after `give_up` was told the reason;
    a Dask nanny then starts another.

    Parameters
    ----------
    seconds : float, or None
        None for as long as it takes.
    give_up : callable
        Gets the reason before the process is ended.

    Examples
    --------
    >>> with within(0.01, give_up=print):
    ...     while True:
    ...         pass
    Traceback (most recent call last):
    eedkit.study.limits.OutOfTime: not done within the time limit of 0.01 s
    """
    if seconds is None:
        yield
        return
    reason = f"not done within the time limit of {seconds:g} s"
    with ExitStack() as stack:
        if can_interrupt():
            stack.enter_context(_interrupted_after(seconds, reason))
        else:
            watchdog = threading.Timer(seconds, _end_process, [give_up, f"{OutOfTime.__name__}: {reason}"])
            watchdog.daemon = True
            watchdog.start()
            stack.callback(watchdog.cancel)
        yield


@contextmanager
def _interrupted_after(seconds: float, reason: str) -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise OutOfTime(reason)

    # what `measure` imports when it first runs: an import that is interrupted stays half done for as long as the process lives
    importlib.import_module("torch._dynamo")
    handler_before = signal.signal(signal.SIGALRM, interrupt)
    remaining_before, interval_before = signal.setitimer(signal.ITIMER_REAL, seconds)
    start = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler_before)
        if remaining_before:  # somebody else's alarm rings when it would have, or at once
            remaining = max(remaining_before - (time.monotonic() - start), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, remaining, interval_before)


def _end_process(give_up: Callable[[str], Any], reason: str) -> None:
    try:
        give_up(reason)
    finally:
        os._exit(1)
