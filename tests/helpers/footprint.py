"""Converts a checkpoint in this process and prints time and memory as JSON.

    python footprint.py SOURCE OUT

Memory is counted above that of the process after all imports and one JAX operation.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def measure_footprint(source: Path, out: Path) -> dict[str, Any]:
    """Runs this file in a new interpreter (Linux only).

    Returns:
      A dict with convert_seconds, save_seconds, base_bytes, peak_bytes (above base_bytes), and torch, which says
      whether torch was imported.
    """
    command = [sys.executable, __file__, str(source), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


def _convert(source: str, out: str) -> dict[str, Any]:
    import jax
    import orbax.checkpoint  # noqa: F401 - the library imports it when it saves
    import safetensors.numpy  # noqa: F401 - likewise

    from ecapa_jax.bundle.bundle import save_bundle
    from ecapa_jax.convert.run import convert

    jax.block_until_ready(jax.numpy.zeros(1) + 1)
    base = _memory("VmRSS")
    started = time.perf_counter()
    bundle = convert(source)
    converted = time.perf_counter()
    save_bundle(bundle, out)
    return {
        "convert_seconds": converted - started,
        "save_seconds": time.perf_counter() - converted,
        "base_bytes": base,
        "peak_bytes": _memory("VmHWM") - base,
        "torch": "torch" in sys.modules,
    }


def _memory(field: str) -> int:
    """Returns a memory field of /proc in bytes; the maximum of getrusage would include the parent process."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(json.dumps(_convert(*sys.argv[1:])))
