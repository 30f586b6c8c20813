"""Where compiled programs are kept for the next process, and what they depend on."""

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
    """Where compiled programs are kept: a folder for each kind of processor, so that a shared home serves them all."""
    processor = " ".join([platform.machine(), cpu_line("model name"), *sorted(cpu_flags())])
    name = f"{platform.system()}-{hashlib.sha256(processor.encode()).hexdigest()[:12]}".lower()
    return Path(platformdirs.user_cache_dir("ecapa-jax")) / "compiled" / name


def use_compile_cache(shortest: float = 0.0) -> None:
    """Makes JAX keep compiled programs for the next process, unless its own settings name a folder or say no.

    A folder that can't be written, or that others can write to, is done without.

    Args:
      shortest: seconds of compilation below which a program is not kept.
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
    """Where whole programs are kept: in `compile_cache_folder()`, or where JAX's own setting says.

    Returns:
      None where JAX_ENABLE_COMPILATION_CACHE=false says so, and where there is no folder for this user alone.
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
    """`private_folder`, with a warning instead of an error, once a process; None too where nothing can be written."""
    try:
        found = private_folder(folder)
    except ConfigError as error:
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=2)
        return None
    return found if found is not None and os.access(found, os.W_OK) else None


def private_folder(folder: Path) -> Path | None:
    """A folder that only this user can write to, for files that are run when they are read; it is made if need be.

    Returns:
      The folder; None where it can't be made.

    Raises:
      ConfigError: it is there, and another user owns it or can write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    if status.st_uid != os.geteuid():
        raise ConfigError(f"{folder} belongs to another user, whose programs would be run; choose another folder")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"other users can write to {folder}, and the programs in it are run; "
            f"remove it, or run 'chmod go-w {folder}' if you trust what is in it"
        )
    return folder


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

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        yield
        return
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
