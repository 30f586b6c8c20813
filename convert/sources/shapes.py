"""Infers the sizes of a network from the shapes of its tensors.

Several tensors show each size and vote on it, so that a missing, superfluous or wrong tensor does not decide.
`apply_rules` reports such a tensor later.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable

import numpy as np

from ecapa_jax.convert.rules import Tensors
from ecapa_jax.errors import ConversionError

Layer = tuple[str, str | None]
"""Names of a convolution (or linear layer) and of the batch norm after it, if there is one."""


def check_dilations(n_blocks: int, dilations: tuple[int, ...]) -> None:
    """Checks that the number of blocks is the number of known dilations.

    Raises:
      ConversionError: the numbers differ; the message explains how to pass the dilations.
    """
    if n_blocks != len(dilations):
        raise ConversionError(
            f"the checkpoint has {n_blocks} SE-Res2 blocks, but {len(dilations)} dilations are known "
            f"({_join_numbers(dilations)}): tensors don't show dilations, so pass {n_blocks} of them, such as "
            f"--dilations {_join_numbers(range(2, 2 + n_blocks))}"
        )


def _join_numbers(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def choose_majority(votes: Iterable[int], default: int) -> int:
    """Returns the most frequent vote, the first of several equally frequent ones, or `default` without votes."""
    return next((value for value, _ in collections.Counter(votes).most_common(1)), default)


def infer_width(tensors: Tensors, layers: Iterable[Layer], default: int) -> int:
    """Infers the number of output channels that layers share, from their convolutions and batch norms."""
    votes = []
    for conv_name, norm_name in layers:
        names = [f"{conv_name}.bias"]
        names += [f"{norm_name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")] * bool(norm_name)
        weights = (_get_tensor(tensors, f"{conv_name}.weight", rank) for rank in (3, 2))
        votes += [len(weight) for weight in weights if weight is not None]
        votes += [len(tensor) for name in names if (tensor := _get_tensor(tensors, name, 1)) is not None]
    return choose_majority(votes, default)


def _get_tensor(tensors: Tensors, name: str, rank: int) -> np.ndarray | None:
    tensor = tensors.get(name)
    return tensor if tensor is not None and tensor.ndim == rank and tensor.size else None


def find_shape(tensors: Tensors, name: str, width: int) -> tuple[int, ...] | None:
    """Returns the shape of the weight of a convolution, or None if it does not have `width` outputs."""
    weight = _get_tensor(tensors, f"{name}.weight", 3)
    return weight.shape if weight is not None and len(weight) == width else None


def infer_kernel(tensors: Tensors, name: str, width: int, inputs: int) -> int | None:
    """Returns the kernel size of a convolution, or None if it does not have `width` outputs and `inputs` inputs."""
    found = find_shape(tensors, name, width)
    return found[2] if found is not None and found[1] == inputs else None
