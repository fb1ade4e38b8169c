"""Makes `import oracles` work from every test."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
