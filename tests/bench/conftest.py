"""Makes `benchmarks` importable, at the end of sys.path because the repository's folders have common names."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
