"""Makes `import oracles` work from every test, and one benchmark from another, and small networks quick beside other programs."""

import os
import sys
from pathlib import Path

import pytest

# before torch is imported: threads that spin at every barrier are ten times slower when another program wants a core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent / "benchmarks"))


@pytest.fixture
def take_sums(monkeypatch):
    """Says how sums of float32 maps are taken: by the "compiled" loop, by "tensor" operations, or "without" numba."""
    from eedkit.probe import measure, sums

    def take(how):
        monkeypatch.setattr(measure, "is_worth_compiling", lambda numbers: how != "tensor")
        if how == "compiled":
            pytest.importorskip("numba")
        if how == "without":
            sums._loop.cache_clear()
            monkeypatch.setitem(sys.modules, "eedkit.probe.fused", None)

    yield take
    sums._loop.cache_clear()
