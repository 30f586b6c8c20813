"""Describes the machine and sets up the process; the only module that reads the environment."""

from __future__ import annotations

import ctypes
import functools
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
"""Environment variables that change what JAX does; `ecapa-jax doctor` shows those that are set."""

CONNECT_SECONDS, HEARTBEAT_SECONDS, LEAVE_SECONDS = 300, 30, 15
"""How long processes wait for each other at the start, until a silent process counts as lost, and at the end."""


TPU_ABSENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Environment variables with which libtpu only compiles: it neither looks for a TPU machine nor locks out others."""


def token() -> str | None:
    """Returns the token of `ecapa-jax serve`, kept off the command line, which other users of the machine can read.

    A variable that is set but empty gives "", which the service refuses, because it is probably a mistake.
    """
    return os.environ.get("ECAPA_JAX_TOKEN")


_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _MADV_HUGEPAGE = -8, -3, -1, 14  # of malloc.h, mman.h
_BLOCK, _LARGE_PAGE = 2**31 - 1, 1 << 21  # the largest value that mallopt accepts; 2 MiB
_FAST_BFLOAT16_CUDA = 8.0  # compute capability


def fastest_dtype(device: Device) -> str:
    """Returns the dtype for `auto`, in which this device is faster, judged by its capabilities, without measuring."""
    if device.platform == "cpu":
        return "bfloat16" if _has_fast_bfloat16(cpu_flags(), cpu_vendor()) else "float32"
    capability = getattr(device, "compute_capability", None)
    if device.platform == "gpu" and isinstance(capability, str) and capability.replace(".", "").isdigit():
        return "bfloat16" if float(capability) >= _FAST_BFLOAT16_CUDA else "float32"
    return "bfloat16"


def _has_fast_bfloat16(flags: frozenset[str], vendor: str) -> bool:
    """Whether bfloat16 is fast: `avx512_bf16` alone doubles the speed on AMD and halves it on Intel (docs/speed.md)."""
    return "amx_bf16" in flags or ("avx512_bf16" in flags and vendor == "AuthenticAMD")


def cpu_vendor() -> str:
    """Returns the vendor of the processor as Linux names it; empty if it can't be read."""
    return cpu_line("vendor_id")


def cpu_flags() -> frozenset[str]:
    """Returns the capabilities of the processor as Linux names them; empty if they can't be read."""
    return frozenset(cpu_line("flags", "Features").split())


def cpu_line(*names: str) -> str:
    """Returns the value of the first line of /proc/cpuinfo with one of these names; empty if there is none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() in names), "")


def _has_only_cpus() -> bool:
    """Whether JAX will find no accelerator here. JAX itself is not asked, because asking initialises it."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return True
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


def keep_memory() -> bool:
    """Makes this process keep the memory that it frees, if it computes on a CPU and uses GNU's C library.

    Call this before JAX is used, because the settings don't apply to threads that already exist.

    In each training step, XLA allocates the memory for intermediate results again, for example a gigabyte. By default,
    malloc gets this memory from the system page by page every time, which takes a fifth of the step. With these
    settings the memory stays with the process, in large pages if the system has them. Memory that is never used is
    never taken.

    Returns:
      Whether the settings were applied.

    Reference: mallopt(3), madvise(2); several arenas would be limited to 64 MB each.
    """
    if not _has_only_cpus() or platform.libc_ver()[0] != "glibc":
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
        libc.free(block)  # the process keeps the block, which is below the threshold
    return True


def versions() -> dict[str, str]:
    """Returns the installed versions of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def settings() -> dict[str, str]:
    """Returns the environment variables of `SETTINGS` that are set."""
    return {name: os.environ[name] for name in SETTINGS if name in os.environ}


_forks: list[str] = []
"""Not empty in a process that was forked from a process that had used JAX; the threads of JAX are missing in it."""


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _forks.append("forked"))


def check_not_forked() -> None:
    """Refuses to compute in a process that was forked from one in which an encoder was made: JAX would wait for ever.

    Raises:
      RuntimeError: this is such a process; the message says what to do.
    """
    if _forks:
        raise RuntimeError(
            "this process was forked from one that had used JAX, which does not work in it: start workers by "
            "multiprocessing.get_context('spawn'), or fork before a model is loaded and load it in the worker"
        )
    _watch_forks()


def find_devices() -> list[Device]:
    """Returns the devices of this process. The first call starts JAX's backend.

    Raises:
      ConfigError: JAX can't start a backend; the message has the cause and the remedy.
    """
    import jax

    try:
        return list(jax.local_devices())
    except Exception as error:  # an AssertionError without words, a RuntimeError, or what a plug-in raises
        raise ConfigError(_explain_no_backend(error)) from error


def explain_backend_failure() -> str | None:
    """Explains why JAX has no devices, if it was imported and has none."""
    if "jax" not in sys.modules:
        return None
    try:
        find_devices()
    except ConfigError as error:
        return str(error)
    return None


def _explain_no_backend(error: Exception) -> str:
    cause = " ".join(str(error).split()) or f"{type(error).__name__} without a message"
    wanted = os.environ.get("JAX_PLATFORMS")
    if not wanted:
        return f"JAX can't start on this machine: {cause[:300]}; set JAX_PLATFORMS=cpu to compute on the processor"
    extra = {"cuda": "cuda13", "gpu": "cuda13", "tpu": "tpu", "rocm": "rocm"}.get(wanted.split(",")[0].strip().lower())
    install = f", or install JAX for it: pip install 'jax[{extra}]'" if extra else ", or name one that is there: cpu"
    return (
        f"JAX_PLATFORMS={wanted}, but JAX finds no such device here, or is installed without support for it "
        f"({cause[:300]}): unset JAX_PLATFORMS{install}"
    )


def machine() -> dict[str, Any]:
    """Returns the operating system, the number of processor cores, and the devices of JAX."""
    import jax

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [f"{device.id}: {device.device_kind}" for device in jax.local_devices()],
    }


def join_cluster(coordinator: str | None = None, n_processes: int | None = None, process: int | None = None) -> None:
    """Connects this process with the other processes of its run, if there are any. Call it before JAX is used.

    Args:
      coordinator, n_processes, process: flags; give all of them or none. Without them the environment decides.

    Raises:
      ConfigError: as `runtime.cluster.find_cluster`, or the processes do not find each other in time.
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
    """Ends this process when the process that launched it is gone, because nobody else would stop it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def has_tpu_compiler() -> bool:
    """Whether libtpu is installed; if so, stops it from looking for a TPU, and makes JAX compute on the CPU."""
    if importlib.util.find_spec("libtpu") is None:
        return False
    for name, value in TPU_ABSENT.items():
        os.environ.setdefault(name, value)
    import jax

    jax.config.update("jax_platforms", "cpu")
    return True


def launched_environment() -> dict[str, str]:
    """Returns the environment for processes that are launched on this machine."""
    return {**os.environ, LAUNCHED: "1"}
