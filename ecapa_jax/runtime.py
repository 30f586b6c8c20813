"""What the machine is: the only reader of the environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

if TYPE_CHECKING:
    import jax

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


FAST_BFLOAT16_CPU = ("amx_bf16", "avx512_bf16")
"""Linux's names of the instructions with which bfloat16 products are the faster ones."""

_FAST_BFLOAT16_CUDA = 8.0  # compute capability
_CACHE_BYTES = 1 << 30


def fastest_dtype(device: jax.Device) -> str:
    """What `auto` stands for: the compute dtype that this device is faster in, by what it can do, not by trying."""
    if device.platform == "cpu":
        return "bfloat16" if set(FAST_BFLOAT16_CPU) & cpu_flags() else "float32"
    capability = getattr(device, "compute_capability", None)
    if device.platform == "gpu" and isinstance(capability, str) and capability.replace(".", "").isdigit():
        return "bfloat16" if float(capability) >= _FAST_BFLOAT16_CUDA else "float32"
    return "bfloat16"


def cpu_flags() -> frozenset[str]:
    """What the processor can do, in Linux's words; nothing where they can't be read."""
    return frozenset(_cpu_line("flags", "Features").split())


def _cpu_line(*names: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() in names), "")


def compile_cache_folder() -> Path:
    """Where compiled programs are kept: a folder for each kind of processor, so that a shared home serves them all."""
    processor = " ".join([platform.machine(), _cpu_line("model name"), *sorted(cpu_flags())])
    name = f"{platform.system()}-{hashlib.sha256(processor.encode()).hexdigest()[:12]}".lower()
    return Path(platformdirs.user_cache_dir("ecapa-jax")) / "compiled" / name


def use_compile_cache() -> None:
    """Keeps compiled programs for the next process, in `compile_cache_folder()` or where JAX's own setting says.

    JAX_ENABLE_COMPILATION_CACHE=false turns it off. A folder that can't be written is done without.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        folder = compile_cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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
