"""What a Dask scheduler sees of a study: functions on bytes.

A scheduler unpickles every task. It must not import torch for that, which takes longer than clients wait for it, and which need
not be installed where it runs. So this module imports nothing, until a worker calls it.
"""


def compute(job: bytes, block: int, module: bytes | None, after: object = None, *, share: bool) -> str:
    """Compute a block of a job, with the module that was sent beside it; gives what became of it.

    `after` is what it waits for: the model's first block, which trains or fetches the weights for all.
    """
    import pickle
    from dataclasses import replace

    from eedkit.study import workers

    unpacked = pickle.loads(job)
    if module is not None:
        unpacked = replace(unpacked, model=pickle.loads(module))
    return workers.compute(unpacked, block, share=share)


def unchanged(module: bytes) -> bytes:
    """A module's bytes, as the result of a task: Dask makes it again where the worker that had it is gone."""
    return module
