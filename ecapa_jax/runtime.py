"""What the machine is: the only reader of the environment."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

PACKAGES = ("ecapa-jax", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy", "soundfile", "soxr")

SETTINGS = (
    "JAX_PLATFORMS",
    "JAX_ENABLE_X64",
    "JAX_COMPILATION_CACHE_DIR",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
)
"""Environment variables that change what JAX does; shown by `ecapa-jax doctor` when set."""


def token() -> str | None:
    """The token of `ecapa-jax serve`, kept off the command line, which other users of the machine can read."""
    return os.environ.get("ECAPA_JAX_TOKEN") or None


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def settings() -> dict[str, str]:
    """The environment variables of `SETTINGS` that are set."""
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}


def machine() -> dict[str, Any]:
    """Operating system, processor cores and JAX's devices."""
    import jax

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [f"{device.id}: {device.device_kind}" for device in jax.local_devices()],
    }
