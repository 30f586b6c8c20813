"""Compares the ONNX export of every family with this library, and writes the table of docs/deploy.md.

    python benchmarks/onnx_parity.py --data DATA [--channels 16] [--check]

DATA contains real speech (the script uses its corpus librispeech_test_other); without --data, the demo's synthetic
voices are used. Each family has its published width, or --channels, with random weights from a seed. The exported model
embeds recordings of `SECONDS` one by one, and as one batch padded with NaN. This library's embedding of each recording
is the reference. With --check, the script fails if an error exceeds `BOUND`, and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import soundfile

from ecapa_jax import functional
from ecapa_jax.batching import minimum_samples
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.convert import parity
from ecapa_jax.convert.onnx.export import export_onnx
from ecapa_jax.convert.sources import FAMILIES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "deploy.md"
BEGIN, END = "<!-- onnx_parity.py writes this table -->", "<!-- end of the parity table -->"
SECONDS = (0.1, 0.33, 1.0, 3.0, 9.7, 30.0)
BOUND = 1e-4
RATE = 16000
HEAD = """\
| family | channels | ONNX Runtime alone | in a padded batch | OpenVINO alone | in a padded batch |
|---|--:|--:|--:|--:|--:|"""

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--channels", type=int)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    sounds = recordings(arguments.data)
    rows, worst = [HEAD], 0.0
    for name in FAMILIES:
        config, errors = _errors(name, arguments.channels, sounds)
        worst = max(worst, *errors)
        figures = " | ".join(f"{error:.0e}" for error in errors)
        rows.append(f"| {FAMILIES[name].title} (`{name}`) | {config} | {figures} |")
        print(rows[-1], flush=True)
    if worst > BOUND:
        print(f"an error of {worst:.1e} is above {BOUND:.0e}", file=sys.stderr)
        return 1
    if not arguments.check:
        page = PAGE.read_text("utf-8")
        old = page[page.index(BEGIN) : page.index(END)]
        PAGE.write_text(page.replace(old, "\n".join([BEGIN, "", *rows, "", ""])), "utf-8")
    return 0


def recordings(data: Path | None) -> list[np.ndarray]:
    """Returns one recording of each length, with different voices if there are enough."""
    folder = ROOT / "examples" / "audio" if data is None else data / "librispeech_test_other"
    voices = [sorted(home.glob("*.flac")) for home in sorted(folder.iterdir()) if home.is_dir()] if data else []
    voices = voices or [[path] for path in sorted(folder.glob("*.flac"))]
    sounds = []
    for index, seconds in enumerate(SECONDS):
        parts = [soundfile.read(path, dtype="float32")[0] for path in voices[index % len(voices)]]
        speech = np.concatenate(parts)[RATE // 2 :]
        sounds.append(np.resize(speech, round(seconds * RATE)))
    return sounds


def _errors(name: str, channels: int | None, sounds: list[np.ndarray]) -> tuple[int, list[float]]:
    """Returns the channels and, for each column, the largest error divided by the largest value of an embedding."""
    family = FAMILIES[name]
    config, variables = parity.golden_model(family, None if channels == 16 else parity.preset_of(family))
    sounds = [np.resize(sound, max(len(sound), minimum_samples(config))) for sound in sounds]
    lengths = np.array([len(sound) for sound in sounds], np.int64)
    batch = np.full((len(sounds), max(lengths)), np.nan, np.float32)
    for row, sound in zip(batch, sounds, strict=True):
        row[: len(sound)] = sound
    embed = jax.jit(functional.embed, static_argnums=0)
    ours = np.asarray(embed(config, variables, batch, lengths.astype(np.int32)))
    content = export_onnx(Bundle(config=config, variables=variables)).SerializeToString()
    errors = []
    for run in (onnx_runtime(content), openvino(content)):
        alone = [run(sound[None], np.array([len(sound)], np.int64))[0] for sound in sounds]
        errors += [max(map(_error, found, ours)) for found in (alone, run(batch, lengths))]
    return config.ecapa.channels[0], errors


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def onnx_runtime(content: bytes) -> Run:
    """Returns a function that runs the model in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda waveforms, lengths: session.run(None, {"waveforms": waveforms, "lengths": lengths})[0]


def openvino(content: bytes) -> Run:
    """Returns a function that runs the model in OpenVINO on the CPU, in float32."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(content)
        model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda waveforms, lengths: np.array(model([waveforms, lengths])[0])


if __name__ == "__main__":
    sys.exit(main())
