"""Pickle machine for weights, which builds plain containers and descriptions of tensors and never imports or runs code.

This module interprets the pickle itself, opcode by opcode, and does not use a subclass of `pickle.Unpickler`. The
standard unpickler reserves as much memory as an opcode asks for, hashes tuples of any depth, and applies BUILD to any
object. This machine knows a few opcodes and a few names, and refuses all others.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ecapa_jax.errors import ConversionError

MAX_PICKLE = 16 << 20
"""Largest allowed pickle in bytes; the pickle of a large training checkpoint has 5 MB."""

_MAX_OPCODES = 250_000  # an opcode of one byte can make an object of 64 bytes; a large training checkpoint has 200 000
_MAX_RANK = 32

_DTYPES: dict[str, np.dtype] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.storage.UntypedStorage": np.dtype("u1"),
}


def show(text: str) -> str:
    """Formats text from a file for an error message, as one printable line of at most 100 characters."""
    short = text if len(text) <= 100 else text[:97] + "..."
    return short if short.isascii() and short.isprintable() else ascii(short)


@dataclasses.dataclass(frozen=True)
class Global:
    """An allowed `module.name`, which is never imported."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """The values of one or more tensors, as the file stores them."""

    key: str
    dtype: np.dtype
    numel: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor as a view of its storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An object that is not a weight, such as a NumPy scalar or a device. Its content is not kept."""

    name: str


def is_not_weight(value: object) -> bool:
    """Whether a value of the tree is not a weight and contains no weights, so that it is left out."""
    return isinstance(value, Skipped) or (isinstance(value, Global) and value.name in _PLAIN_TYPES)


def _qualify(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


_PLAIN_TYPES = (
    _qualify("numpy.core.multiarray", "scalar _reconstruct")
    | _qualify("numpy._core.multiarray", "scalar _reconstruct")
    | _qualify("numpy", "dtype ndarray bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64")
    | _qualify("torch", "device Generator float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 bool complex64")
    | _qualify("collections", "defaultdict Counter deque")
    | _qualify("builtins", "set frozenset complex bytearray range slice object int float str bool list dict tuple")
    | _qualify(
        "__builtin__", "set frozenset complex bytearray xrange slice object int float str unicode bool list dict"
    )
    | _qualify("pathlib", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath")
    | _qualify("pathlib._local", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath")
    | _qualify("datetime", "datetime date time timedelta timezone")
    | _qualify("omegaconf.dictconfig", "DictConfig")
    | _qualify("omegaconf.listconfig", "ListConfig")
    | _qualify("omegaconf.base", "ContainerMetadata Metadata")
    | _qualify("omegaconf.nodes", "AnyNode StringNode IntegerNode FloatNode BooleanNode")
    | _qualify("pyannote.audio.core.task", "Specifications Problem Resolution")
    | {"torch.torch_version.TorchVersion", "lightning_fabric.utilities.data.AttributeDict"}
    | {"pytorch_lightning.utilities.parsing.AttributeDict", "lightning.fabric.utilities.data.AttributeDict"}
    | {"_codecs.encode", "argparse.Namespace", "types.SimpleNamespace", "typing.Any", "decimal.Decimal", "uuid.UUID"}
)
"""Types and constructors of plain data that training programs save beside weights. The machine knows only their names,
and calling them does nothing. It refuses everything that can name code."""


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _rebuild_tensor(args: tuple[object, ...]) -> object:
    storage, offset, shape, strides, _grad, _hooks, *rest = args
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ConversionError("the description of a tensor is wrong; the file is damaged")
    if not all(map(_is_count, (offset, *shape, *strides))) or len(shape) != len(strides) or len(shape) > _MAX_RANK:
        raise ConversionError(
            "a tensor's offset, shape or strides are negative or otherwise invalid; the file is damaged"
        )
    if any(rest):
        raise ConversionError("a tensor is a lazy negative or conjugate; save it again after .resolve_neg()")
    return View(storage, offset, shape, strides)  # type: ignore[arg-type]


def _rebuild_old_tensor(args: tuple[object, ...]) -> object:
    storage, offset, shape, strides = args  # PyTorch before 0.4 writes four arguments
    return _rebuild_tensor((storage, offset, shape, strides, False, None))


def _rebuild_parameter(args: tuple[object, ...]) -> object:
    data, _grad, _hooks = args
    if not isinstance(data, View):
        raise ConversionError("the description of a parameter is wrong; the file is damaged")
    return data


def _build_size(args: tuple[object, ...]) -> object:
    (dims,) = args
    if not isinstance(dims, tuple) or not all(map(_is_count, dims)):
        raise ConversionError("the description of a torch.Size is wrong; the file is damaged")
    return dims


def _check_layout(args: tuple[object, ...]) -> object:
    (name,) = args
    if name != "torch.strided":
        raise ConversionError("a tensor is not strided (sparse or mkldnn); save it again after .to_dense()")
    return name


def _build_ordered_dict(args: tuple[object, ...]) -> object:
    if args:
        raise ConversionError("the description of an OrderedDict is wrong; the file is damaged")
    return OrderedDict()


_FUNCTIONS: dict[str, Callable[[tuple[object, ...]], object]] = {
    "collections.OrderedDict": _build_ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor": _rebuild_old_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": _build_size,
    "torch.serialization._get_layout": _check_layout,
}

_PUSH_ARGUMENT = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
SCALARS = (str, int, float, bool, bytes, type(None))


class PickleMachine:
    """Interpreter of one pickle."""

    def __init__(self) -> None:
        self._stack: list[object] = []
        self._outer: list[list[object]] = []  # the stack below each open mark
        self._memo: dict[int, object] = {}

    def run(self, data: bytes | io.BytesIO) -> object:
        """Returns the pickled object as containers, scalars, and a `View` for each tensor.

        A file is read up to the end of the pickle.

        A damaged pickle may also raise ValueError, IndexError or KeyError.

        Raises:
          ConversionError: the pickle asks for anything that plain weights don't need.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name == "STOP":
                return self._stack.pop()
            if count >= _MAX_OPCODES:
                raise ConversionError("it holds too many objects for weights; save only the state dict")
            if opcode.name in _PUSH_ARGUMENT:
                self._stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            else:
                self._step(opcode.name, argument)
        raise ConversionError("its pickle has no end; the file is damaged")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._outer.append(stack)
                self._stack = []
            case "EMPTY_SET":
                stack.append(Skipped("set"))
            case "ADDITEMS":
                self._pop_to_mark()
            case "NEWOBJ" | "NEWOBJ_EX":
                del stack[-1 if name == "NEWOBJ" else -2 :]
                stack.append(_make_skipped(stack.pop()))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                items = tuple(self._pop_to_mark())
                self._stack.append(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([stack.pop() for _ in range(int(name[-1]))])))
            case "APPEND":
                self._append_items([stack.pop()])
            case "APPENDS":
                self._append_items(self._pop_to_mark())
            case "SETITEM":
                value = stack.pop()
                self._set_items([stack.pop(), value])
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_make_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute = stack.pop()
                stack.append(_make_global(stack.pop(), attribute))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                _check_state(stack[-1], state)
            case "BINPERSID":
                stack.append(_parse_storage(stack.pop()))
            case _:
                if name == "INST":
                    _make_global(*argument.split(" ", 1))  # an error about the name says more
                raise ConversionError(
                    f"its pickle uses the opcode {name}, which plain weights don't need, and none of it was run; "
                    "save only the state dict"
                )

    def _pop_to_mark(self) -> list[object]:
        items = self._stack
        self._stack = self._outer.pop()
        return items

    def _append_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, Skipped):
            return
        if not isinstance(target, list):
            raise ConversionError("its pickle appends to an object that is not a list; the file is damaged")
        target.extend(items)

    def _set_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, Skipped):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise ConversionError("its pickle sets items of an object that is not a dict; the file is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, Skipped):
                continue
            if not isinstance(key, SCALARS):
                raise ConversionError(f"a dict has a {type(key).__name__} as key; save only the state dict")
            target[key] = value


def _make_global(module: object, attribute: object) -> Global:
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise ConversionError("its pickle names a type by a value that is not text; the file is damaged")
    name = f"{module}.{attribute}"
    if name not in _FUNCTIONS and name not in _DTYPES and name not in _PLAIN_TYPES:
        raise ConversionError(
            f"its pickle names {show(name)}, which plain weights don't need, and none of it was run; "
            "save only the state dict: torch.save(model.state_dict(), f)"
        )
    return Global(name)


def _call(function: object, arguments: object) -> object:
    if isinstance(function, Global) and function.name in _PLAIN_TYPES and isinstance(arguments, tuple):
        return {} if function.name == "collections.defaultdict" else Skipped(function.name)
    if not isinstance(function, Global) or function.name not in _FUNCTIONS or not isinstance(arguments, tuple):
        raise ConversionError("its pickle calls an object that is not a function; none of it was run")
    return _FUNCTIONS[function.name](arguments)


def _make_skipped(kind: object) -> Skipped:
    if not isinstance(kind, Global) or kind.name not in _PLAIN_TYPES:
        name = show(kind.name) if isinstance(kind, Global) else "value"
        raise ConversionError(f"its pickle creates a {name}, which plain weights don't need, and none of it was run")
    return Skipped(kind.name)


def _check_state(target: object, state: object) -> None:
    if isinstance(target, Skipped):
        return
    # state_dict() attaches its version numbers to the OrderedDict as `_metadata`, which contains no weights.
    if not isinstance(target, OrderedDict) or not isinstance(state, dict) or set(state) - {"_metadata"}:
        raise ConversionError(f"its pickle sets attributes of a {type(target).__name__}; save only the state dict")


def _parse_storage(identifier: object) -> Storage:
    if isinstance(identifier, tuple) and len(identifier) == 6 and identifier[5] is None:
        identifier = identifier[:5]  # PyTorch before 1.6 adds a sixth part for a storage inside another storage
    match identifier:
        case ("storage", Global(name=name), str() as key, str(), int() as numel) if name in _DTYPES and _is_count(
            numel
        ):
            return Storage(key, _DTYPES[name], numel)
    raise ConversionError("the description of a storage is wrong; the file is damaged")
