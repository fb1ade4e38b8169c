"""What a Dask scheduler sees of a study: functions on bytes.

A scheduler unpickles every task. It must not import torch for that, which takes longer than clients wait for it, and which need
not be installed where it runs. So this module imports nothing, until a worker calls it.
"""


def compute(job: bytes, block: int, module: bytes | None, after: object = None, *, share: bool) -> tuple[str, str]:
    """Compute a block of a job that `workers` packed; gives what became of it, and why.

    `after` is what it waits for: the model's first block, which trains or fetches the weights for all.
    """
    from eedkit.study import workers

    return workers.compute_packed(job, block, module, share=share)


def unchanged(module: bytes) -> bytes:
    """A module's bytes, as the result of a task: Dask makes it again where the worker that had it is gone."""
    return module
