"""Which process runs a block, as a note in the ledger, and whether it still lives. Knows this machine alone; costs nothing."""

import os
import socket


def me() -> str:
    """This process, as a note on the blocks that it runs."""
    import psutil

    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.2f}"


def alive(note: str) -> bool:
    """Whether the process that left the note may still run; one of another machine may."""
    import psutil

    host, pid, born = note.split()
    if host != socket.gethostname():
        return True
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(born)) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
