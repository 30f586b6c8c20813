"""Rule tables, which map source tensors to our arrays and account for every tensor on both sides.

The table of a family is a function of the configuration of the network and names every tensor in full. The table does
not match tensors by a pattern, the inverse conversion reads the same table from right to left, and no tensor can be
lost without an error.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from ecapa_jax.convert.ops import CONV1D, IDENTITY, LINEAR, RANKS, Op
from ecapa_jax.errors import ConversionError

Tensors = Mapping[str, np.ndarray]

MOST_REPORTED = 12
_ALIGNMENT = 64  # alignment in bytes that XLA needs for a buffer on a CPU


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One source tensor and the leaf of our variables that it fills.

    Attributes:
      source: name in the foreign checkpoint.
      target: path in `variables`, joined with "/".
      op: change of layout.
    """

    source: str
    target: str
    op: Op


def conv(source: str, target: str) -> list[Rule]:
    """Makes the rules of a `torch.nn.Conv1d` with bias."""
    return [
        Rule(source=f"{source}.weight", target=f"params/{target}/kernel", op=CONV1D),
        Rule(source=f"{source}.bias", target=f"params/{target}/bias", op=IDENTITY),
    ]


def linear(source: str, target: str) -> list[Rule]:
    """Makes the rules of a `torch.nn.Linear` with bias, for a convolution of one tap."""
    return [
        Rule(source=f"{source}.weight", target=f"params/{target}/kernel", op=LINEAR),
        Rule(source=f"{source}.bias", target=f"params/{target}/bias", op=IDENTITY),
    ]


def norm(source: str, target: str) -> list[Rule]:
    """Makes the rules of a `torch.nn.BatchNorm1d`; the tables ignore its `num_batches_tracked`."""
    return [
        Rule(source=f"{source}.weight", target=f"params/{target}/scale", op=IDENTITY),
        Rule(source=f"{source}.bias", target=f"params/{target}/bias", op=IDENTITY),
        Rule(source=f"{source}.running_mean", target=f"batch_stats/{target}/mean", op=IDENTITY),
        Rule(source=f"{source}.running_var", target=f"batch_stats/{target}/var", op=IDENTITY),
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested dict to a dict from paths to leaves."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        leaves.update(flatten(value, path) if isinstance(value, Mapping) else {path: value})
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a nested dict from a dict from paths to leaves; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def apply_rules(
    rules: Iterable[Rule], ignored: Iterable[str], tensors: Tensors, abstract: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Fills every leaf of `abstract` from `tensors`, in float32.

    Args:
      rules: table of the family for this network.
      ignored: regular expressions (full match) of source tensors that inference does not use.
      tensors: tensors of the checkpoint, by their names without the prefix.
      abstract: shapes to fill, as `functional.abstract` returns them.

    Returns:
      variables: nested dict of arrays.
      ignored: names of the source tensors that `ignored` matches.

    Raises:
      ConversionError: for the reasons of `check_rules` and `move_tensors`.
    """
    table = list(rules)
    skipped = check_rules(table, ignored, tensors, abstract)
    return move_tensors(table, dict(tensors), abstract), skipped


def check_rules(
    table: Sequence[Rule], ignored: Iterable[str], tensors: Tensors, abstract: Mapping[str, Any]
) -> list[str]:
    """Checks that the table fits and returns the names of ignored source tensors; arguments are as in `apply_rules`.

    Raises:
      ConversionError: a tensor is unused, missing, used twice, has the wrong shape, is not float, is not finite or is a
        negative running variance, or a target is not filled or filled twice. One message names all of them.
    """
    shapes = flatten(abstract)
    names = {rule.source for rule in table}
    left = [name for name in tensors if name not in names]
    skipped = [name for name in left if any(re.fullmatch(pattern, name) for pattern in ignored)]
    problems = [f"unexpected tensor {name} {tensors[name].shape}" for name in left if name not in set(skipped)]
    uses = collections.Counter(rule.source for rule in table)
    problems += [f"tensor {source} used twice" for source, count in uses.items() if count > 1]
    counts = collections.Counter(rule.target for rule in table)
    problems += [f"{target} filled twice" for target, count in counts.items() if count > 1]
    problems += [f"no rule for unknown target {target}" for target in counts if target not in shapes]
    problems += [f"target {target} not filled" for target in shapes if target not in counts]
    for rule in table:
        if rule.source not in tensors:
            problems.append(f"missing tensor {rule.source}")
        elif problem := _find_problem(rule, tensors[rule.source], shapes.get(rule.target)):
            problems.append(problem)
    if problems:
        more = f" (and {len(problems) - MOST_REPORTED} more)" if len(problems) > MOST_REPORTED else ""
        raise ConversionError(f"the checkpoint does not fit: {'; '.join(problems[:MOST_REPORTED])}{more}")
    return skipped


def move_tensors(
    table: Iterable[Rule], tensors: MutableMapping[str, np.ndarray], abstract: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes the nested dict of leaves and proves that each leaf gives back its source tensor bit for bit.

    A tensor is removed from `tensors` when its leaf is made, so that the model is in memory only once. A leaf is
    float32, contiguous, and aligned so that JAX on a CPU can use it without a copy.

    Raises:
      ConversionError: a tensor has values that float32 can't hold; the message names the first.
    """
    filled: dict[str, np.ndarray] = {}
    for rule in table:
        tensor = tensors.pop(rule.source)
        leaf = filled[rule.target] = _copy_aligned(rule.op.forward(tensor))
        if not _has_same_bits(rule.op.inverse(leaf).astype(tensor.dtype, copy=False), tensor):
            raise ConversionError(
                f"{rule.source} ({tensor.dtype}) has values that float32 can't represent; save it as float32"
            )
    return {**{part: {} for part in abstract}, **unflatten(filled)}


def _copy_aligned(values: np.ndarray) -> np.ndarray:
    """Makes a contiguous float32 copy whose address is a multiple of `_ALIGNMENT`."""
    buffer = np.empty(4 * values.size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    copy = buffer[start : start + 4 * values.size].view(np.float32).reshape(values.shape)
    copy[...] = values
    return copy


def _has_same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one dtype hold the same bits: NaN equals itself, and -0.0 does not equal 0.0."""
    bits = f"V{b.dtype.itemsize}"
    return a.shape == b.shape and bool((a.view(bits) == b.view(bits)).all())


def _find_problem(rule: Rule, tensor: np.ndarray, target: Any) -> str:
    """Explains why `tensor` can't fill `target`; returns "" if it can."""
    if target is None:
        return ""
    wanted = rule.op.inverse(np.broadcast_to(np.float32(0), target.shape)).shape
    if tensor.ndim != RANKS[rule.op] or tensor.shape != wanted:
        return f"{rule.source} has shape {tensor.shape}, expected {wanted}"
    if tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
        return f"{rule.source} has dtype {tensor.dtype}, expected a float"
    with np.errstate(over="ignore"):
        finite = np.isfinite(tensor.astype(np.float32, copy=False)).all()
    if not finite:
        return f"{rule.source} holds NaN, infinity or values that float32 can't represent"
    if rule.source.endswith("running_var") and (tensor < 0).any():
        return f"{rule.source} holds a negative variance"
    return ""


def invert_rules(rules: Iterable[Rule], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the source tensors of `variables` in float32, with the names and layouts of the source."""
    leaves = flatten(variables)
    return {rule.source: np.ascontiguousarray(rule.op.inverse(np.asarray(leaves[rule.target]))) for rule in rules}
