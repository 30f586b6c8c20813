"""Writes operations that depend on the end of an utterance: padding, means and softmax over time.

Values have the shape [batch, channels, time].
"""

from __future__ import annotations

import abc

import numpy as np

from ecapa_jax.convert.onnx.graph import Graph

LOWEST = float(np.finfo(np.float32).min)


class Utterances(abc.ABC):
    """Operations over time of a batch of utterances.

    Attributes:
      graph: graph to which the operations are added.
      count: number of real frames of each utterance, [batch or 1, 1, 1] float32.
    """

    graph: Graph
    count: str

    @abc.abstractmethod
    def pad_by_reflection(self, x: str, width: int) -> str:
        """Pads both ends of each utterance with `width` mirrored frames."""

    @abc.abstractmethod
    def zero_unseen(self, x: str) -> str:
        """Sets the frames that convolutions don't see to zero, as a convolution with zero padding needs them."""

    @abc.abstractmethod
    def mean(self, x: str, name: str = "mean") -> str:
        """Computes the mean over the real frames, [batch, channels, 1]."""

    @abc.abstractmethod
    def keep_real(self, x: str, other: float) -> str:
        """Keeps the real frames of `x` and sets the other frames to `other`."""

    def softmax(self, logits: str) -> str:
        """Computes weights that sum to one over the real frames and are zero at the other frames."""
        return self.graph.op("Softmax", self.keep_real(logits, LOWEST), axis=2)


class WholeUtterances(Utterances):
    """Utterances that are as long as their batch, so that all frames are real."""

    def __init__(self, graph: Graph, frames: str) -> None:
        """Counts the frames of `frames`, [batch, channels, time]."""
        self.graph = graph
        count = graph.op("Cast", graph.size(frames, 2), to=1)
        self.count = graph.op("Reshape", count, graph.constant([1, 1, 1]), name="count")

    def pad_by_reflection(self, x: str, width: int) -> str:
        """Pads both ends of each utterance as `Utterances.pad_by_reflection` does."""
        pads = self.graph.constant([0, 0, width, 0, 0, width])
        return self.graph.op("Pad", x, pads, name="reflect", mode="reflect")

    def zero_unseen(self, x: str) -> str:
        """Returns `x`, because convolutions see all frames."""
        return x

    def mean(self, x: str, name: str = "mean") -> str:
        """Computes the mean over all frames, [batch, channels, 1]."""
        return self.graph.op("ReduceMean", x, name=name, axes=[2], keepdims=1)

    def keep_real(self, x: str, other: float) -> str:
        """Returns `x`, because all frames are real."""
        return x


class PaddedUtterances(Utterances):
    """Utterances of a padded batch. The frames beyond the end of an utterance are finite and don't affect the result.

    Args:
      graph: graph to which the masks are added.
      real: number of real frames of each utterance, which statistics use, [batch, 1] int64.
      seen: number of frames of each utterance that convolutions see, including the blank frames of the front end,
        [batch, 1] int64.
      size: number of frames of the batch, an int64 array of one number.
    """

    def __init__(self, graph: Graph, real: str, seen: str, size: str) -> None:
        self.graph, self._seen, self._same = graph, seen, seen == real
        time = graph.range(size)
        middle = graph.constant([1])
        is_real = graph.op("Less", time, real, name="is_real")  # [batch, time]
        self._is_real = graph.op("Unsqueeze", is_real, middle)
        self._is_seen = self._is_real
        if not self._same:
            self._is_seen = graph.op("Unsqueeze", graph.op("Less", time, seen, name="is_seen"), middle)
        ones = graph.op("Cast", is_real, to=1)
        self._ones = graph.op("Unsqueeze", ones, graph.constant([2]))  # [batch, time, 1]
        count = graph.op("Cast", graph.op("Max", real, graph.constant([1])), to=1)
        self.count = graph.op("Unsqueeze", count, graph.constant([2]), name="count")
        self._tails: dict[int, tuple[str, str]] = {}

    def pad_by_reflection(self, x: str, width: int) -> str:
        """Pads the batch, then writes the mirrored frames of each utterance at its end."""
        graph = self.graph
        rows, places = self._locate_tail(width)
        expanded = graph.op("Concat", graph.size(x, 0), graph.size(x, 1), graph.constant([width]), axis=0)
        tail = graph.op("GatherElements", x, graph.op("Expand", rows, expanded), name="tail", axis=2)
        padded = graph.op("Pad", x, graph.constant([0, 0, width, 0, 0, width]), name="reflect", mode="reflect")
        return graph.op(
            "ScatterElements", padded, graph.op("Expand", places, expanded), tail, name="reflect_at_end", axis=2
        )

    def _locate_tail(self, width: int) -> tuple[str, str]:
        """Returns frames to repeat after each utterance, and their places in the padded batch; [batch, 1, width]."""
        if width not in self._tails:
            graph, steps = self.graph, np.arange(width)
            rows = graph.op("Add", self._seen, graph.constant(-2 - steps))
            rows = graph.op("Max", rows, graph.constant([0]))
            places = graph.op("Add", self._seen, graph.constant(width + steps))
            middle = graph.constant([1])
            self._tails[width] = graph.op("Unsqueeze", rows, middle), graph.op("Unsqueeze", places, middle)
        return self._tails[width]

    def zero_unseen(self, x: str) -> str:
        """Sets the frames that convolutions don't see to zero."""
        return self.graph.op("Where", self._is_seen, x, self.graph.constant(0.0), name="zero_beyond")

    def mean(self, x: str, name: str = "mean") -> str:
        """Computes the mean over the real frames by a product with ones and zeros."""
        total = self.graph.op("MatMul", x, self._ones, name=f"{name}_total")
        return self.graph.op("Div", total, self.count, name=name)

    def keep_real(self, x: str, other: float) -> str:
        """Keeps the real frames of `x` and sets the other frames to `other`."""
        return self.graph.op("Where", self._is_real, x, self.graph.constant(other), name="real")
