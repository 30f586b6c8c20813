"""Compiled programs that outlive the process that made them.

JAX has its own cache of compiled programs, but a process must trace and lower the model to look up a program there,
which takes half a second for every shape. Here the key of a program is a digest of its inputs: the source code, the
configuration, the shapes and the devices.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import jax

from ecapa_jax.config import ModelConfig, Variables, to_dict
from ecapa_jax.errors import EcapaError
from ecapa_jax.files.atomic import write_whole
from ecapa_jax.modes import in_library_modes, library_modes
from ecapa_jax.runtime import compile_cache

_KEPT_BYTES = 256 << 20  # limit for all programs of a folder; enough for some 200 programs
_DIGEST = 32  # length of the digest at the beginning of each file

Shapes: TypeAlias = tuple[Any, tuple[tuple[Any, ...], ...]]
"""The structure of a pytree, and the shape, dtype and sharding of each leaf."""

_PACKAGE = Path(__file__).parents[1]
_UNUSED_FOLDERS = ("convert", "train")
"""Folders of the package that programs don't depend on: no module that computes embeddings may import them."""


class Programs:
    """A function that is compiled once for each shape of its arguments.

    Attributes:
      compile_count: number of compilations in this process so far.
    """

    def __init__(
        self, function: Callable[..., jax.Array], identity: str, folder: Path | None = None, *, announce: bool = False
    ):
        """Wraps a function; nothing is compiled yet.

        Args:
          function: function of pytrees of arrays.
          identity: text that identifies the function besides the code of this package: configuration and options.
          folder: folder where programs are kept and looked up; None keeps no programs.
          announce: whether to say on stderr, once and only on a terminal, that compiling takes a while.

        Raises:
          ConfigError: other users can write to the folder.
        """
        self.compile_count = 0
        self.folder = folder if folder is None else compile_cache.private_folder(folder)
        self._identity, self._announce = identity, announce
        self._jitted = jax.jit(function)
        self._ready: dict[tuple[Any, ...], Any] = {}
        self._first: tuple[Any, Any] = ((), _shapes(()))

    @in_library_modes
    def __call__(self, *arguments: Any) -> jax.Array:
        """Calls the function by a program for these shapes: one in memory, one from the folder, or a new one."""
        shapes = self._shapes(arguments)
        program = self._ready.get(shapes)
        if program is None and self.folder is not None:
            program = _read(self.folder / _make_key(self._identity, *shapes))
        if program is None:
            with self._prepare_compilation():
                program = self._jitted.lower(*arguments).compile()
            if self.folder is not None:
                _write(self.folder / _make_key(self._identity, *shapes), program)
        self._ready[shapes] = program
        return program(*arguments)

    def fetch(self, expected: Iterable[tuple[Any, ...]]) -> None:
        """Reads the kept programs for the shapes of these arguments, several programs in parallel."""
        if self.folder is None:
            return
        missing = list({self._shapes(arguments) for arguments in expected} - self._ready.keys())
        paths = [self.folder / _make_key(self._identity, *shapes) for shapes in missing]
        with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1) or 1) as pool:
            for shapes, program in zip(missing, pool.map(_read, paths), strict=True):
                if program is not None:
                    self._ready[shapes] = program

    def _shapes(self, arguments: tuple[Any, ...]) -> tuple[Shapes, ...]:
        """Returns the shapes of each argument. Those of the first are cached: the weights have hundreds of leaves."""
        known, shapes = self._first
        if arguments[0] is not known:
            shapes = _shapes(arguments[0])
            self._first = (arguments[0], shapes)
        return shapes, *map(_shapes, arguments[1:])

    def _prepare_compilation(self) -> contextlib.AbstractContextManager[None]:
        """Counts and announces a compilation, and returns the context in which to compile."""
        self.compile_count += 1
        if self._announce and sys.stderr is not None and sys.stderr.isatty():
            once = "" if self.folder is None else " once for this machine"
            print(f"compiling{once} (about 10 s)", file=sys.stderr)
        self._announce = False
        return contextlib.nullcontext() if self.folder is None else compile_cache.compile_anew()


def _shapes(argument: Any) -> Shapes:
    leaves, structure = jax.tree.flatten(argument)
    return structure, tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)


def kept_shapes(folder: Path, config: ModelConfig) -> Variables:
    """Returns `functional.abstract` from a file beside the programs; computing it would import Flax, which is slow."""
    path = folder / f"shapes-{hashlib.sha256(json.dumps([_describe_compiler(), to_dict(config)]).encode()).hexdigest()}"
    content = _read_kept(path)
    if content is None:
        from ecapa_jax.functional import abstract

        content = pickle.dumps(abstract(config))
        _keep(path, content)
    return pickle.loads(content)


def _make_key(identity: str, *arguments: Shapes) -> str:
    """Returns a digest of everything that affects the compiled program."""
    parts = [identity]
    for structure, leaves in arguments:
        parts += [str(structure), *(f"{shape} {dtype} {sharding}" for shape, dtype, sharding in leaves)]
    parts += [f"{device.id} {device.device_kind}" for device in jax.devices()]
    return hashlib.sha256(json.dumps([_describe_compiler(), *parts]).encode()).hexdigest()


def _describe_compiler() -> str:
    """Describes the code of this package, versions and settings; the settings may change while a process runs."""
    client = jax.devices()[0].client
    with library_modes():  # those in which programs are made and run
        settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    return repr(
        [_describe_code(), client.platform_version, compile_cache.compiler_settings(), sorted(settings.items())]
    )


@functools.cache
def _describe_code() -> list[str]:
    return [_source_digest(_PACKAGE), *(importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax"))]


def _source_digest(package: Path) -> str:
    """Returns a digest of every source file that a program may depend on: the package without `_UNUSED_FOLDERS`."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        if inside.parts[0] not in _UNUSED_FOLDERS:
            digest.update(str(inside).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read(path: Path) -> Any:
    """Reads the program in a file; None if there is no usable program."""
    from jax.experimental import serialize_executable

    content = _read_kept(path)
    if content is None:
        return None
    try:
        return serialize_executable.deserialize_and_load(*pickle.loads(content))
    except Exception:  # JAX raises many types for programs that it can't use; the program is compiled again then
        return None


def _write(path: Path, program: Any) -> None:
    from jax.experimental import serialize_executable

    with contextlib.suppress(Exception):  # some backends can't serialize programs
        _keep(path, pickle.dumps(serialize_executable.serialize(program)))


def _read_kept(path: Path) -> bytes | None:
    """Reads what `_keep` wrote; None if there is no file, or if it is damaged."""
    try:
        kept = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    content = kept[_DIGEST:]
    return content if hashlib.sha256(content).digest() == kept[:_DIGEST] else None


def _keep(path: Path, content: bytes) -> None:
    """Writes a file and removes those that were used longest ago. A failure is ignored: nothing is kept then."""
    with contextlib.suppress(OSError, EcapaError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, lambda to: to.write_bytes(hashlib.sha256(content).digest() + content))
        _remove_oldest(path.parent)


def _remove_oldest(folder: Path) -> None:
    left = _KEPT_BYTES
    found = sorted(((file.stat(), file) for file in folder.iterdir()), key=lambda pair: -pair[0].st_mtime)
    for status, file in found:
        left -= status.st_size
        if left < 0:
            file.unlink(missing_ok=True)
