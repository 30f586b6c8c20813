"""Writes the front end as ONNX nodes, which compute the features of `ecapa_jax.features` from waveforms and lengths.

The spectrum is a product with a matrix of cosines and sines, because the STFT operator of ONNX does not support a
window shorter than the FFT, and OpenVINO and ONNX Runtime support different parts of this operator. Letters in shapes:
B batch, S samples, T frames, M mel bands.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float64

from ecapa_jax.config import FbankConfig
from ecapa_jax.convert.onnx.graph import Graph
from ecapa_jax.convert.onnx.utterances import LOWEST, PaddedUtterances, Utterances
from ecapa_jax.features.constants import mel_matrix, window
from ecapa_jax.features.fbank import STD_EPSILON, dynamic_range


@dataclasses.dataclass(frozen=True)
class Sound:
    """Names of the values in the graph that describe a batch of waveforms.

    Attributes:
      samples: waveforms, [B, S] float32.
      lengths: lengths of the waveforms, [B, 1] int64, at most S.
      is_real: whether each sample is not padding, [B, S] bool.
    """

    samples: str
    lengths: str
    is_real: str


def write_front_end(
    graph: Graph, config: FbankConfig, constants: dict[str, Any], waveforms: str, lengths: str, minimum: int
) -> tuple[str, Utterances]:
    """Writes the front end.

    Args:
      graph: graph to which the nodes are added.
      config: configuration of the front end.
      constants: window and mel matrix, if the checkpoint stores them.
      waveforms, lengths: names of the inputs, [B, S] float32 and [B] int64; the padding may contain any values.
      minimum: smallest number of samples that the model accepts; shorter batches are padded to it.

    Returns:
      Features [B, M, T], which are zero beyond the real frames, and their utterances.
    """
    with graph.scope("front_end"):
        sound = _prepare_waveforms(graph, config, waveforms, lengths, minimum)
        real = _count_frames(graph, config, sound.lengths)
        size = _count_frames(graph, config, graph.size(sound.samples, 1))
        frames = _cut_frames(graph, config, sound, size)
        x = _compute_log_mels(graph, config, constants, frames)
        alone = PaddedUtterances(graph, real, real, size)
        x = alone.keep_real(normalize(graph, config, alone, x), 0.0)
        return _append_blank_frames(graph, config, x, real, size, alone)


def append_blank_frames(graph: Graph, config: FbankConfig, x: str) -> tuple[str, Utterances]:
    """Appends the blank frames of the front end to features [B, M, T] of utterances that are as long as their batch."""
    with graph.scope("front_end"):
        size = graph.size(x, 2)
        real = graph.op("Reshape", size, graph.constant([1, 1]))
        return _append_blank_frames(graph, config, x, real, size, PaddedUtterances(graph, real, real, size))


def has_blank_frames(config: FbankConfig) -> bool:
    """Whether the front end appends frames that convolutions see and statistics ignore."""
    return config.pad_to > 1 or config.framing == "center_zeros_floor"


def _append_blank_frames(
    graph: Graph, config: FbankConfig, x: str, real: str, size: str, alone: Utterances
) -> tuple[str, Utterances]:
    if not has_blank_frames(config):
        return x, alone
    padded = _count_seen_frames(graph, config, size)
    blank = graph.op("Sub", padded, size)
    x = graph.op("Pad", x, graph.op("Concat", graph.constant([0, 0, 0, 0, 0]), blank, axis=0), name="blank_frames")
    return x, PaddedUtterances(graph, real, _count_seen_frames(graph, config, real), padded)


def _count_seen_frames(graph: Graph, config: FbankConfig, frames: str) -> str:
    if config.framing == "center_zeros_floor":
        frames = graph.op("Add", frames, graph.constant([1]))
    step = graph.constant([config.pad_to])
    groups = graph.op("Div", graph.op("Add", frames, graph.constant([config.pad_to - 1])), step)
    return graph.op("Mul", groups, step, name="seen_frames")


def _count_frames(graph: Graph, config: FbankConfig, samples: str) -> str:
    shift = config.frame_shift
    more = {"snip_edges": shift - config.frame_length, "kaldi_reflect": shift // 2, "center_zeros_floor": 0}
    start = graph.op("Add", samples, graph.constant([more.get(config.framing, shift)]))
    start = graph.op("Max", start, graph.constant([0]))
    return graph.op("Div", start, graph.constant([shift]), name="n_frames")


def _prepare_waveforms(graph: Graph, config: FbankConfig, waveforms: str, lengths: str, minimum: int) -> Sound:
    """Sets the padding to zero, pads to at least `minimum` samples, and applies pre-emphasis to the whole signal."""
    missing = graph.op("Sub", graph.constant([minimum]), graph.size(waveforms, 1))
    missing = graph.op("Max", missing, graph.constant([0]))
    ends = graph.op("Min", lengths, graph.size(waveforms, 1))
    ends = graph.op("Unsqueeze", ends, graph.constant([1]), name="lengths")
    x = graph.op("Pad", waveforms, graph.op("Concat", graph.constant([0, 0, 0]), missing, axis=0), name="at_least")
    is_real = graph.op("Less", graph.range(graph.size(x, 1)), ends, name="is_real_sample")
    zero = graph.constant(0.0)
    x = graph.op("Where", is_real, x, zero, name="clean")
    if config.preemphasis and config.preemphasis_mode != "frame":
        first = graph.op("Slice", x, graph.constant([1]), graph.constant([2]), graph.constant([1]))
        if config.preemphasis_mode == "signal_zero":
            first = graph.op("Mul", first, zero)
        rest = graph.op("Slice", x, graph.constant([0]), graph.constant([-1]), graph.constant([1]))
        before = graph.op("Concat", first, rest, axis=1)
        emphasized = graph.op("Sub", x, graph.op("Mul", before, graph.constant(config.preemphasis)))
        x = graph.op("Where", is_real, emphasized, zero, name="preemphasis")
    if config.waveform_scale != 1:
        x = graph.op("Mul", x, graph.constant(config.waveform_scale), name="scale")
    return Sound(x, ends, is_real)


def _cut_frames(graph: Graph, config: FbankConfig, sound: Sound, size: str) -> str:
    """Cuts overlapping frames [B, T, frame_size] by slices of whole hops."""
    shift, centred = config.frame_shift, config.framing.startswith("center")
    width = config.fft_size if centred else config.frame_length
    left = {"snip_edges": 0, "kaldi_reflect": config.frame_length // 2 - shift // 2}.get(
        config.framing, config.fft_size // 2
    )
    hops = -(-width // shift)
    right = max((hops + 1) * shift - left, width)
    x = graph.op("Pad", sound.samples, graph.constant([0, left, 0, right]), name="ends")
    if config.framing.endswith("reflect"):
        x = _mirror_ends(graph, config, sound, x, left, right)
    n_rows = graph.op("Add", size, graph.constant([hops - 1]))
    x = graph.slice(x, graph.constant([0]), graph.op("Mul", n_rows, graph.constant([shift])), 1)
    rows = graph.op("Reshape", x, graph.constant([0, -1, shift]), name="hops")
    parts = []
    for hop in range(hops):
        part = graph.slice(rows, graph.constant([hop]), graph.op("Add", size, graph.constant([hop])), 1)
        if (rest := width - hop * shift) < shift:
            part = graph.slice(part, graph.constant([0]), graph.constant([rest]), 2)
        parts.append(part)
    return graph.op("Concat", *parts, name="frames", axis=2)


def _mirror_ends(graph: Graph, config: FbankConfig, sound: Sound, x: str, left: int, right: int) -> str:
    """Writes the mirrored samples before the first sample and after the last sample of each utterance."""
    repeats = config.framing == "kaldi_reflect"
    once, one = graph.constant([0 if repeats else 2]), graph.constant([1])
    period = graph.op("Sub", graph.op("Mul", sound.lengths, graph.constant([2])), once)
    period = graph.op("Max", period, one)

    def mirror(at: str) -> str:
        at = graph.op("Mod", at, period)
        back = graph.op("Sub", graph.op("Sub", period, at), graph.constant([int(repeats)]))
        back = graph.op("Max", back, graph.constant([0]))
        return graph.op("GatherElements", sound.samples, graph.op("Min", at, back), axis=1)

    behind = graph.op("Add", sound.lengths, graph.constant(np.arange(right)))
    ahead = graph.op("Add", graph.op("Mul", sound.lengths, graph.constant([0])), graph.constant(np.arange(-left, 0)))
    at_end = graph.op("Add", behind, graph.constant([left]))
    at_begin = graph.op("Add", ahead, graph.constant([left]))
    x = graph.op("ScatterElements", x, at_end, mirror(behind), name="mirrored_end", axis=1)
    return graph.op("ScatterElements", x, at_begin, mirror(ahead), name="mirrored_begin", axis=1)


def _compute_log_mels(graph: Graph, config: FbankConfig, constants: dict[str, Any], frames: str) -> str:
    """Computes the log energies [B, M, T] of the mel bands."""
    if config.remove_dc:
        mean = graph.op("ReduceMean", frames, name="dc", axes=[2], keepdims=1)
        frames = graph.op("Sub", frames, mean, name="without_dc")
    if config.preemphasis and config.preemphasis_mode == "frame":
        axis = graph.constant([2])
        first = graph.op("Slice", frames, graph.constant([0]), graph.constant([1]), axis)
        rest = graph.op("Slice", frames, graph.constant([0]), graph.constant([-1]), axis)
        before = graph.op("Mul", graph.op("Concat", first, rest, axis=2), graph.constant(config.preemphasis))
        frames = graph.op("Sub", frames, before, name="preemphasis")
    spectrum = graph.op("MatMul", frames, graph.weight("dft", make_dft_matrix(config, constants)), name="spectrum")
    mel = np.asarray(constants["mel_matrix"] if config.mel_source == "constants" else mel_matrix(config), np.float64)
    # The squares of the cosine parts and of the sine parts lie side by side. One product adds both up in each band.
    power = graph.op("Mul", spectrum, spectrum, name="power")
    energy = graph.op("MatMul", power, graph.weight("mel", np.concatenate([mel, mel])), name="energy")
    floor = graph.constant(config.floor)
    energy = graph.op("Add" if config.floor_mode == "add" else "Max", energy, floor, name="floor")
    x = graph.op("Log", energy)
    if config.log == "db":
        x = graph.op("Mul", x, graph.constant(10 / math.log(10)), name="db")
    return graph.op("Transpose", x, perm=[0, 2, 1])


def make_dft_matrix(config: FbankConfig, constants: dict[str, Any]) -> Float64[np.ndarray, "frame_size bins"]:
    """Makes one matrix of window and DFT, with the real parts of all FFT bins before the imaginary parts."""
    shape = np.asarray(constants["window"] if config.mel_source == "constants" else window(config), np.float64)
    if config.framing.startswith("center"):
        left = (config.fft_size - config.frame_length) // 2
        shape = np.pad(shape, (left, config.fft_size - config.frame_length - left))
    turns = np.outer(np.arange(len(shape)), np.arange(config.fft_size // 2 + 1)) % config.fft_size
    phase = 2 * np.pi * turns / config.fft_size
    return shape[:, None] * np.concatenate([np.cos(phase), np.sin(phase)], axis=1)


def normalize(graph: Graph, config: FbankConfig, utterances: Utterances, x: str) -> str:
    """Limits the dynamic range of features [B, M, T] and normalises them."""
    if config.top_db is not None:
        peak = graph.op("ReduceMax", utterances.keep_real(x, LOWEST), name="peak", axes=[1, 2], keepdims=1)
        x = graph.op("Max", x, graph.op("Sub", peak, graph.constant(dynamic_range(config))), name="dynamic_range")
    if config.normalization == "none":
        return x
    x = graph.op("Sub", x, utterances.mean(x), name="normalized")
    if config.normalization == "mean":
        return x
    # Subtract the mean again: the rounding error that is left of a constant band is divided by little more than 1e-5.
    x = graph.op("Sub", x, utterances.mean(x), name="centred")
    variance = utterances.mean(graph.op("Mul", x, x), "variance")
    epsilon = graph.constant(STD_EPSILON)
    if config.normalization == "instance":
        deviation = graph.op("Sqrt", graph.op("Add", variance, epsilon), name="deviation")
    else:
        less = graph.op("Max", graph.op("Sub", utterances.count, graph.constant(1.0)), graph.constant(1.0))
        variance = graph.op("Div", graph.op("Mul", variance, utterances.count), less)
        deviation = graph.op("Add", graph.op("Sqrt", variance), epsilon, name="deviation")
    return graph.op("Div", x, deviation, name="scaled")
