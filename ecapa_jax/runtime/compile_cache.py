"""Where compiled programs are kept for the next process, and what they depend on."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import platform
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from ecapa_jax.runtime.machine import cpu_flags, cpu_line

_CACHE_BYTES = 1 << 30
_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def compile_cache_folder() -> Path:
    """Where compiled programs are kept: a folder for each kind of processor, so that a shared home serves them all."""
    processor = " ".join([platform.machine(), cpu_line("model name"), *sorted(cpu_flags())])
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


def compiler_settings() -> list[tuple[str, str]]:
    """The environment variables that change what the compiler makes, and the processor it makes it for."""
    names = sorted(name for name in os.environ if name.startswith(("XLA_", "LIBTPU_", "TPU_", "JAX_")))
    names = [name for name in names if "CACHE" not in name]
    return [("processor", compile_cache_folder().name), *((name, os.environ[name]) for name in names)]
