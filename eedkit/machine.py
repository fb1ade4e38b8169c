"""The machine that runs this: its processor's name, and Ctrl-C for programs that start others. Knows nothing of eedkit."""

import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path


@cache
def processor_name() -> str:
    """The processor's name; Python's own answer says no more than x86_64 on Linux.

    >>> len(processor_name()) > 0
    True
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


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
