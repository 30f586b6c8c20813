"""What the machine is: the only reader of the environment."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from ecapa_jax.cluster import LAUNCHED, Cluster, find_cluster
from ecapa_jax.errors import ConfigError

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
    """The token of `ecapa-jax serve`, kept off the command line, which other users of the machine can read."""
    return os.environ.get("ECAPA_JAX_TOKEN") or None


_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _MADV_HUGEPAGE = -8, -3, -1, 14  # of malloc.h, mman.h
_BLOCK, _LARGE_PAGE = 2**31 - 1, 1 << 21  # mallopt takes no more
_FAST_BFLOAT16_CUDA = 8.0  # compute capability
_CACHE_BYTES = 1 << 30
_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def fastest_dtype(device: jax.Device) -> str:
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
    return _cpu_line("vendor_id")


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


def use_compile_cache(shortest: float = 0.0) -> Path | None:
    """Keeps compiled programs for the next process, in `compile_cache_folder()` or where JAX's own setting says.

    JAX_ENABLE_COMPILATION_CACHE=false turns it off. A folder that can't be written is done without.

    Args:
      shortest: seconds of compilation below which a program is not kept.

    Returns:
      The folder in it for whole programs; None where none are kept, or not in files of this machine.
    """
    import jax

    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not folder:
        folder = compile_cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        if not os.access(folder, os.W_OK):
            return None
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    on = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    return Path(folder) / "programs" if on and "://" not in str(folder) else None


def forget_unreadable(warning: str) -> bool:
    """Removes the compiled programs that JAX warns it can't read: it never writes one again whose file is there.

    JAX writes its files in place, so that a process that is killed may leave half of one.

    Returns:
      Whether the warning was of that kind; nothing is then wrong any more.
    """
    if not (found := _UNREADABLE.match(warning)):
        return False
    import jax

    folder = str(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
    for path in Path(folder).glob(f"{glob.escape(found[1])}-*"):
        with contextlib.suppress(OSError):
            path.unlink()
    return True


_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def compile_anew() -> Iterator[None]:
    """Compiles without JAX's cache of compiled programs: what comes from it can't be written down a second time."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    with _one_at_a_time:
        before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
        try:
            _switch_cache(compilation_cache, on=False)
            yield
        finally:
            _switch_cache(compilation_cache, on=before)


def _switch_cache(compilation_cache: Any, *, on: bool) -> None:
    import jax

    jax.config.update("jax_enable_compilation_cache", on)
    compilation_cache.reset_cache()  # which asks once, and remembers


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


def compiler_settings() -> list[tuple[str, str]]:
    """The environment variables that change what the compiler makes, and the processor it makes it for."""
    names = sorted(name for name in os.environ if name.startswith(("XLA_", "LIBTPU_", "TPU_", "JAX_")))
    names = [name for name in names if "CACHE" not in name]
    return [("processor", compile_cache_folder().name), *((name, os.environ[name]) for name in names)]


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
      ConfigError: as `cluster.find_cluster`; or they do not find each other in time.
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
