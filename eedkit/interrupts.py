"""Ctrl-C for programs that start others. Knows nothing; costs nothing."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started within the block leave Ctrl-C to this one, which ends them in order.

    >>> with deaf_to_interrupts():
    ...     signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    True
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
