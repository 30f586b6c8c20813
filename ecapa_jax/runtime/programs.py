"""Compiled programs that outlive the process that made them.

JAX's own cache keeps what the compiler makes, but a process must trace and lower the model to know what to ask it for:
half a second for every shape. Here a program is found by what it would be made from.
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
from ecapa_jax.runtime import compile_cache

_KEPT_BYTES = 256 << 20  # of all programs of a folder: some 200 of them
_DIGEST = 32  # bytes at the beginning of a file

Shapes: TypeAlias = tuple[Any, tuple[tuple[Any, ...], ...]]
"""Structure of a pytree; shape, dtype and sharding of its leaves."""

_PACKAGE = Path(__file__).parents[1]
_NO_PART = ("convert", "train")
"""Folders of the package whose code no program is made from: nothing that computes an embedding may import them."""


class Programs:
    """A function compiled for each shape that it meets.

    Attributes:
      compile_count: compilations so far, in this process.
    """

    def __init__(
        self, function: Callable[..., jax.Array], identity: str, folder: Path | None = None, *, announce: bool = False
    ):
        """Nothing is compiled yet.

        Args:
          function: of pytrees of arrays.
          identity: what the function is made from besides this package's code: configuration and options.
          folder: where programs are kept and looked for; None keeps none.
          announce: say on stderr, once and only on a terminal, that compiling takes a while.

        Raises:
          ConfigError: other users can write to the folder.
        """
        self.compile_count = 0
        self.folder = folder if folder is None else compile_cache.private_folder(folder)
        self._identity, self._announce = identity, announce
        self._jitted = jax.jit(function)
        self._ready: dict[tuple[Any, ...], Any] = {}
        self._first: tuple[Any, Any] = ((), _shapes(()))

    def __call__(self, *arguments: Any) -> jax.Array:
        """The function's result, by the program for these shapes: one that is ready, or kept, or a new one."""
        shapes = self._shapes(arguments)
        program = self._ready.get(shapes)
        if program is None and self.folder is not None:
            program = _read(self.folder / _key(self._identity, *shapes))
        if program is None:
            with self._compiling():
                program = self._jitted.lower(*arguments).compile()
            if self.folder is not None:
                _write(self.folder / _key(self._identity, *shapes), program)
        self._ready[shapes] = program
        return program(*arguments)

    def fetch(self, expected: Iterable[tuple[Any, ...]]) -> None:
        """Reads the kept programs of some arguments, or of arguments of their shapes: a core for each at a time."""
        if self.folder is None:
            return
        missing = list({self._shapes(arguments) for arguments in expected} - self._ready.keys())
        paths = [self.folder / _key(self._identity, *shapes) for shapes in missing]
        with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1) or 1) as pool:
            for shapes, program in zip(missing, pool.map(_read, paths), strict=True):
                if program is not None:
                    self._ready[shapes] = program

    def _shapes(self, arguments: tuple[Any, ...]) -> tuple[Shapes, ...]:
        """Of each argument. The first, the weights, is nearly always the one before, and has hundreds of leaves."""
        known, shapes = self._first
        if arguments[0] is not known:
            shapes = _shapes(arguments[0])
            self._first = (arguments[0], shapes)
        return shapes, *map(_shapes, arguments[1:])

    def _compiling(self) -> contextlib.AbstractContextManager[None]:
        """What holds while a program is compiled that is then kept, or not."""
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
    """`functional.abstract`, kept in a folder beside the programs: to make it takes flax, which takes a while."""
    path = folder / f"shapes-{hashlib.sha256(json.dumps([_compiler(), to_dict(config)]).encode()).hexdigest()}"
    content = _content(path)
    if content is None:
        from ecapa_jax.functional import abstract

        content = pickle.dumps(abstract(config))
        _keep(path, content)
    return pickle.loads(content)


def _key(identity: str, *arguments: Shapes) -> str:
    """Digest of all that decides what the compiler makes, and for which devices."""
    parts = [identity]
    for structure, leaves in arguments:
        parts += [str(structure), *(f"{shape} {dtype} {sharding}" for shape, dtype, sharding in leaves)]
    parts += [f"{device.id} {device.device_kind}" for device in jax.devices()]
    return hashlib.sha256(json.dumps([_compiler(), *parts]).encode()).hexdigest()


def _compiler() -> str:
    """This package's code, versions and settings; these may change while a process runs."""
    client = jax.devices()[0].client
    settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    return repr([_code(), client.platform_version, compile_cache.compiler_settings(), sorted(settings.items())])


@functools.cache
def _code() -> list[str]:
    return [_source_digest(_PACKAGE), *(importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax"))]


def _source_digest(package: Path) -> str:
    """Of every source file that a program may be made from: of the whole package but `_NO_PART`."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        if inside.parts[0] not in _NO_PART:
            digest.update(str(inside).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read(path: Path) -> Any:
    """The program in a file; None where there is none that can be used."""
    from jax.experimental import serialize_executable

    content = _content(path)
    if content is None:
        return None
    try:
        return serialize_executable.deserialize_and_load(*pickle.loads(content))
    except Exception:  # jax raises many types for what it can't use; then the program is compiled
        return None


def _write(path: Path, program: Any) -> None:
    from jax.experimental import serialize_executable

    with contextlib.suppress(Exception):  # a backend whose programs can't be written down
        _keep(path, pickle.dumps(serialize_executable.serialize(program)))


def _content(path: Path) -> bytes | None:
    """What `_keep` put into a file; None without one, or where it is damaged."""
    try:
        kept = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    content = kept[_DIGEST:]
    return content if hashlib.sha256(content).digest() == kept[:_DIGEST] else None


def _keep(path: Path, content: bytes) -> None:
    """Writes a file, and forgets those that were used longest ago; what can't be kept is done without."""
    with contextlib.suppress(OSError, EcapaError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, lambda to: to.write_bytes(hashlib.sha256(content).digest() + content))
        _forget(path.parent)


def _forget(folder: Path) -> None:
    left = _KEPT_BYTES
    found = sorted(((file.stat(), file) for file in folder.iterdir()), key=lambda pair: -pair[0].st_mtime)
    for status, file in found:
        left -= status.st_size
        if left < 0:
            file.unlink(missing_ok=True)
