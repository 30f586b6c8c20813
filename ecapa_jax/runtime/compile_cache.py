"""The folders in which compiled programs are kept for the next process, and the settings that programs depend on."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
import platform
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from ecapa_jax.errors import ConfigError
from ecapa_jax.runtime.machine import cpu_flags, cpu_line

_CACHE_BYTES = 1 << 30
_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def compile_cache_folder() -> Path:
    """Returns the folder of compiled programs: one for each kind of processor, because machines may share a home."""
    processor = " ".join([platform.machine(), cpu_line("model name"), *sorted(cpu_flags())])
    name = f"{platform.system()}-{hashlib.sha256(processor.encode()).hexdigest()[:12]}".lower()
    return Path(platformdirs.user_cache_dir("ecapa-jax")) / "compiled" / name


def use_compile_cache(shortest: float = 0.0) -> None:
    """Makes JAX keep compiled programs for the next process, unless the settings of JAX name a folder or forbid it.

    If the folder can't be written, or other users can write to it, programs are not kept.

    Args:
      shortest: programs that compile in fewer seconds are not kept.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        folder = usable_folder(compile_cache_folder())
        if folder is None:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def programs_folder() -> Path | None:
    """Returns the folder of whole programs, inside `compile_cache_folder()` or the folder that JAX is set to use.

    Returns:
      The folder; None if JAX_ENABLE_COMPILATION_CACHE=false, or if there is no folder that only this user can write to.
    """
    import jax

    if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return None
    folder = str(jax.config.jax_compilation_cache_dir or compile_cache_folder())  # type: ignore[attr-defined]
    if "://" in folder or usable_folder(Path(folder)) is None:
        return None
    return usable_folder(Path(folder) / "programs")


@functools.cache
def usable_folder(folder: Path) -> Path | None:
    """Calls `private_folder`, but warns once instead of raising; also returns None if the folder can't be written."""
    try:
        found = private_folder(folder)
    except ConfigError as error:
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=2)
        return None
    return found if found is not None and os.access(found, os.W_OK) else None


def private_folder(folder: Path) -> Path | None:
    """Makes a folder that only this user can write to, because reading its files executes them.

    Returns:
      The folder, which may have existed before; None if it can't be made.

    Raises:
      ConfigError: the folder exists, and another user owns it or can write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    if status.st_uid != os.geteuid():
        raise ConfigError(f"{folder} belongs to another user, whose programs would be executed; choose another folder")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"other users can write to {folder}, and the programs in it would be executed; "
            f"remove the folder, or run 'chmod go-w {folder}' if you trust its content"
        )
    return folder


def forget_unreadable(warning: str) -> bool:
    """Removes a compiled program that JAX warns it can't read, because JAX never replaces an existing file.

    JAX writes its files in place, so that a killed process may leave half a file.

    Returns:
      Whether the warning was about such a file. If so, it has been removed and the warning needs no attention.
    """
    if not (found := _UNREADABLE.match(warning)):
        return False
    import jax

    folder = str(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
    for path in Path(folder).glob(f"{glob.escape(found[1])}-*"):
        with contextlib.suppress(OSError):
            path.unlink()
    return True


_switch_lock = threading.Lock()


@contextlib.contextmanager
def compile_anew() -> Iterator[None]:
    """Disables JAX's cache of compiled programs while a program is compiled: one from the cache can't be serialized."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        yield
        return
    with _switch_lock:
        before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
        try:
            _switch_cache(compilation_cache, on=False)
            yield
        finally:
            _switch_cache(compilation_cache, on=before)


def _switch_cache(compilation_cache: Any, *, on: bool) -> None:
    import jax

    jax.config.update("jax_enable_compilation_cache", on)
    compilation_cache.reset_cache()  # JAX reads the setting only once after a reset


def compiler_settings() -> list[tuple[str, str]]:
    """Returns the environment variables that affect compilation, and the processor for which programs are compiled."""
    names = sorted(name for name in os.environ if name.startswith(("XLA_", "LIBTPU_", "TPU_", "JAX_")))
    names = [name for name in names if "CACHE" not in name]
    return [("processor", compile_cache_folder().name), *((name, os.environ[name]) for name in names)]
