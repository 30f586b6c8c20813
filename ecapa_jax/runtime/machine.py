"""What the machine is: the only reader of the environment."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Any, TypeAlias

from ecapa_jax.errors import ConfigError
from ecapa_jax.runtime.cluster import LAUNCHED, Cluster, find_cluster

Device: TypeAlias = Any
"""A `jax.Device`, whose type jaxlib does not show to type checkers."""

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

CONNECT_SECONDS, HEARTBEAT_SECONDS, LEAVE_SECONDS = 300, 30, 15
"""How long processes wait for each other: to begin, before one that is silent counts as lost, and to end."""


TPU_ABSENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Keeps libtpu from looking for the machine that it would be on, and from locking out others: it only compiles."""


def token() -> str | None:
    """Returns the token of `ecapa-jax serve`, kept off the command line, which other users of the machine can read.

    A variable that is set but empty gives "", which the service refuses: it is a mistake, not a wish to go without.
    """
    return os.environ.get("ECAPA_JAX_TOKEN")


_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _MADV_HUGEPAGE = -8, -3, -1, 14  # of malloc.h, mman.h
_BLOCK, _LARGE_PAGE = 2**31 - 1, 1 << 21  # mallopt takes no more
_FAST_BFLOAT16_CUDA = 8.0  # compute capability


def fastest_dtype(device: Device) -> str:
    """What `auto` stands for: the compute dtype that this device is faster in, by what it can do, not by trying."""
    if device.platform == "cpu":
        return "bfloat16" if _has_fast_bfloat16(cpu_flags(), cpu_vendor()) else "float32"
    capability = getattr(device, "compute_capability", None)
    if device.platform == "gpu" and isinstance(capability, str) and capability.replace(".", "").isdigit():
        return "bfloat16" if float(capability) >= _FAST_BFLOAT16_CUDA else "float32"
    return "bfloat16"


def _has_fast_bfloat16(flags: frozenset[str], vendor: str) -> bool:
    """`avx512_bf16` alone has twice the speed of float32 on AMD's processors, half of it on Intel's (docs/speed.md)."""
    return "amx_bf16" in flags or ("avx512_bf16" in flags and vendor == "AuthenticAMD")


def cpu_vendor() -> str:
    """Who made the processor, in Linux's words; empty where it can't be read."""
    return cpu_line("vendor_id")


def cpu_flags() -> frozenset[str]:
    """What the processor can do, in Linux's words; nothing where they can't be read."""
    return frozenset(cpu_line("flags", "Features").split())


def cpu_line(*names: str) -> str:
    """The value of the first line of /proc/cpuinfo with one of these names; empty without one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() in names), "")


def _has_processors_only() -> bool:
    """Whether JAX can find no accelerator here; it is not asked, because it would begin."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return True
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def keep_memory() -> bool:
    """Lets this process keep the memory that it frees, where it will compute on a processor with GNU's C library.

    To be called before JAX is used: threads that are there keep their own ways.

    XLA asks for the memory of a step's intermediate results anew in each step, a gigabyte for instance, and malloc gets
    it from the system each time, page by page: a fifth of a training step. Here memory stays, in large pages where the
    system gives them; what is never used is never taken.

    Returns:
      Whether it does.

    Reference: mallopt(3), madvise(2); several arenas would be limited to 64 MB each.
    """
    if not _has_processors_only() or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _BLOCK), (_M_TRIM_THRESHOLD, _BLOCK))
    if not all(libc.mallopt(name, value) for name, value in settings):
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.madvise.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], [ctypes.c_void_p]
    size = _BLOCK - _LARGE_PAGE
    block = libc.malloc(size)
    if block:
        begin = -(-block // _LARGE_PAGE) * _LARGE_PAGE
        libc.madvise(begin, block + size - begin, _MADV_HUGEPAGE)
        libc.free(block)  # not given back: it is below the threshold
    return True


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


def join_cluster(coordinator: str | None = None, n_processes: int | None = None, process: int | None = None) -> None:
    """Connects this process with the others of its run, where it has any; before anything else is done with JAX.

    Args:
      coordinator, n_processes, process: flags, all or none; without them the environment tells.

    Raises:
      ConfigError: as `runtime.cluster.find_cluster`; or they do not find each other in time.
    """
    cluster = find_cluster(os.environ, coordinator, n_processes, process)
    if cluster is not None:
        _join(cluster)


def _join(cluster: Cluster) -> None:
    import jax

    known: dict[str, Any] = {}
    if cluster.coordinator is not None:
        known = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.n_processes,
            "process_id": cluster.process,
            "local_device_ids": cluster.device,
            "cluster_detection_method": "deactivate",
        }
    if os.environ.get(LAUNCHED):
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        where = f"process {cluster.process} of {cluster.n_processes} at {cluster.coordinator}, from {cluster.source}"
        raise ConfigError(
            f"the processes of the run do not find each other ({where}): {str(error).splitlines()[0]}"
        ) from error


def _end_with_parent(parent: int) -> None:
    """Ends this process when the one that launched it is gone: nobody would stop it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def has_tpu_compiler() -> bool:
    """Whether libtpu is installed; tells it not to look for a TPU's machine, and JAX to compute on the CPU."""
    if importlib.util.find_spec("libtpu") is None:
        return False
    for name, value in TPU_ABSENT.items():
        os.environ.setdefault(name, value)
    import jax

    jax.config.update("jax_platforms", "cpu")
    return True


def launched_environment() -> dict[str, str]:
    """The environment for processes that are launched on this machine."""
    return {**os.environ, LAUNCHED: "1"}
