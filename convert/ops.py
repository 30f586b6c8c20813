"""Changes of layout between PyTorch tensors and our arrays, with their inverses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Op:
    """A change of layout that does not change any value.

    Attributes:
      name: name in reports.
      forward: function from a source tensor to our array.
      inverse: function from our array to the source tensor.
    """

    name: str
    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


IDENTITY = Op("identity", lambda a: a, lambda a: a)

CONV1D = Op("conv1d [out, in, k] -> [k, in, out]", lambda a: a.transpose(2, 1, 0), lambda a: a.transpose(2, 1, 0))

LINEAR = Op("linear [out, in] -> [1, in, out]", lambda a: a.T[None], lambda a: a[0].T)

MATRIX = Op("matrix", lambda a: a, lambda a: a)

BATCHED_TRANSPOSE = Op("[1, mels, bins] -> [bins, mels]", lambda a: a[0].T, lambda a: a.T[None])

RANKS = {IDENTITY: 1, CONV1D: 3, LINEAR: 2, MATRIX: 2, BATCHED_TRANSPOSE: 3}
"""Number of axes of the source tensor for each change of layout."""
