"""Makes `benchmarks` importable; last, since the repository's own folders have everyday names."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
