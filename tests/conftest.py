"""Makes `import oracles` work from every test, and one benchmark from another, and small networks quick beside other programs."""

import os
import sys
from pathlib import Path

# before torch is imported: threads that spin at every barrier are ten times slower when another program wants a core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent / "benchmarks"))
