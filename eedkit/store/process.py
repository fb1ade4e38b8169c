"""Which process is at a block, as a short text, and whether it still lives. Knows only this machine."""

import os
import socket


def here() -> str:
    """This process, as a text: host, number, and when it was born, since numbers come again."""
    import psutil

    return f"{socket.gethostname()}~{os.getpid()}~{psutil.Process().create_time():.2f}"


def alive(text: str) -> bool:
    """Whether the process may still run; one of another machine may."""
    import psutil

    host, number, born = text.split("~")
    if host != socket.gethostname():
        return True
    try:
        process = psutil.Process(int(number))
        return abs(process.create_time() - float(born)) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
