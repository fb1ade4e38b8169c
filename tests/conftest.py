"""Makes `import oracles` work from every test, and small networks quick beside other programs."""

import os
import sys
from pathlib import Path

# before torch is imported: threads that spin at every barrier are ten times slower when another program wants a core
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.append(str(Path(__file__).parent))
