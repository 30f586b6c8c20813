"""What the shapes of tensors tell about a network.

Each size is told by several tensors and goes by their vote, so that one that is missing, superfluous or of the wrong
shape is left for `apply_rules` to name.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

import numpy as np

from ecapa_jax.convert.rules import Tensors
from ecapa_jax.errors import ConversionError

Layer = tuple[str, str | None]
"""Names of a convolution (or linear layer) and of the batch norm after it, if there is one."""


def require_dilations(n_blocks: int, dilations: tuple[int, ...]) -> None:
    """Refuses a network of other than as many blocks as dilations are known.

    Raises:
      ConversionError: saying how to give them.
    """
    if n_blocks != len(dilations):
        raise ConversionError(
            f"the checkpoint has {n_blocks} SE-Res2 blocks and {len(dilations)} dilations are known "
            f"({_comma(dilations)}): tensors can't tell them, so give {n_blocks}, such as "
            f"--dilations {_comma(range(2, 2 + n_blocks))}"
        )


def _comma(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def most(votes: Iterable[int], default: int) -> int:
    """The most frequent vote, the first of equals."""
    return next((value for value, _ in collections.Counter(votes).most_common(1)), default)


def width(tensors: Tensors, layers: Iterable[Layer], default: int) -> int:
    """Output channels that layers share, each with the norm that follows it."""
    votes = []
    for conv_name, norm_name in layers:
        names = [f"{conv_name}.bias"]
        names += [f"{norm_name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")] * bool(norm_name)
        weights = (_tensor(tensors, f"{conv_name}.weight", rank) for rank in (3, 2))
        votes += [len(weight) for weight in weights if weight is not None]
        votes += [len(tensor) for name in names if (tensor := _tensor(tensors, name, 1)) is not None]
    return most(votes, default)


def _tensor(tensors: Tensors, name: str, rank: int) -> np.ndarray | None:
    tensor = tensors.get(name)
    return tensor if tensor is not None and tensor.ndim == rank and tensor.size else None


def shape(tensors: Tensors, name: str, width: int) -> tuple[int, ...] | None:
    """Shape of a convolution's weight, if its outputs are as many as they should be."""
    weight = _tensor(tensors, f"{name}.weight", 3)
    return weight.shape if weight is not None and len(weight) == width else None


def kernel(tensors: Tensors, name: str, width: int, inputs: int) -> int | None:
    """Kernel of a convolution, if its outputs and inputs are as many as they should be."""
    found = shape(tensors, name, width)
    return found[2] if found is not None and found[1] == inputs else None
