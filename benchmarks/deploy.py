"""Measures an exported model in each runtime, and writes the tables of docs/deploy.md.

    python benchmarks/deploy.py --data DATA [--model BUNDLE] [--only accuracy|speed] [--dry-run]

DATA contains `lists/*.txt` (one `label path path` per line) and the audio that they name. Accuracy is measured with
BUNDLE, by default the packaged model: the EER of each list with this library, with the ONNX file in ONNX Runtime
(float32, float16, and int8 calibrated on the dev list's recordings) and OpenVINO, and with sherpa-onnx. Speed is
measured with 3D-Speaker's network at 1024 channels with random weights, on single recordings of 3 s, in turn; use an
idle machine. With --dry-run, the script prints the tables and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import soundfile

from ecapa_jax import functional
from ecapa_jax.api import default_bundle
from ecapa_jax.bundle.bundle import Bundle, load_bundle
from ecapa_jax.convert.onnx.calibration import calibration_feeds, demo_recordings
from ecapa_jax.convert.onnx.export import export_onnx
from ecapa_jax.convert.onnx.quantize import to_float16, to_int8
from ecapa_jax.convert.onnx.sherpa import export_sherpa
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import ConfigError
from ecapa_jax.evaluation.trials import Trials, read_trials
from ecapa_jax.presets import PRESETS
from ecapa_jax.scoring.metrics import eer

PAGE = Path(__file__).parents[1] / "docs" / "deploy.md"
DEV = "dev_speechocean762_same_gender_age"
LISTS = (DEV, "eval_librispeech_test_other", "eval_speechocean762_same_gender_age")
MARKS = {name: (f"<!-- deploy.py writes this table: {name} -->", f"<!-- end: {name} -->") for name in ("eer", "speed")}
EVERY = 5
"""Every n-th recording of the dev list is used to calibrate int8; it has no speaker of an eval list."""

SECONDS, REPEATS = 3.0, 21

Embed = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Measures, prints the tables, and writes them unless --dry-run is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=default_bundle())
    parser.add_argument("--only", choices=("accuracy", "speed"))
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "speed":
            tables["eer"] = accuracy_table(load_bundle(arguments.model), arguments.data, Path(folder))
        if arguments.only != "accuracy":
            tables["speed"] = speed_table(Path(folder))
    for name, table in tables.items():
        print(table, "\n")
        if not arguments.dry_run:
            _write(name, table)


def accuracy_table(bundle: Bundle, data: Path, folder: Path) -> str:
    """Returns the table of sizes, error rates and score changes."""
    lists = {name: read_trials(data / "lists" / f"{name}.txt") for name in LISTS}
    dev = sorted(set(lists[DEV].names))[::EVERY]
    engines = exported_engines(bundle, [data / name for name in dev], folder)
    rows = ["| runtime | MB | " + " | ".join(f"EER %, {name}" for name in LISTS) + " | largest score change |"]
    rows.append("|---|--:|" + "--:|" * (len(LISTS) + 1))
    names = sorted({name for trials in lists.values() for name in trials.names})
    waveforms = {name: _read(data / name, bundle.config.fbank.sample_rate) for name in names}
    reference: dict[str, np.ndarray] = {}
    for engine, (size, embed) in engines.items():
        vectors = {name: embed(waveform) for name, waveform in waveforms.items()}
        scores = {name: _cosines(trials, vectors) for name, trials in lists.items()}
        reference = reference or scores
        rates = " | ".join(f"{100 * eer(scores[name], lists[name].known_labels):.2f}" for name in LISTS)
        change = max(float(np.abs(scores[name] - reference[name]).max()) for name in LISTS)
        rows.append(f"| {engine} | {size / 1e6:.1f} | {rates} | {change:.4f} |")
        print(rows[-1], flush=True)
    return "\n".join(rows)


def exported_engines(bundle: Bundle, calibration: list[Path], folder: Path) -> dict[str, tuple[int, Embed]]:
    """Returns size in bytes and embedding function of each way to run the model, beginning with this library."""
    encoder = SpeakerEncoder.from_bundle(bundle)
    leaves = jax.tree.leaves(bundle.variables)
    engines: dict[str, tuple[int, Embed]] = {
        "this library, float32": (sum(4 * leaf.size for leaf in leaves), lambda waveform: encoder.embed(waveform)[0])
    }
    exact = export_onnx(bundle)
    feeds = calibration_feeds(bundle.config, bundle.variables, "waveform", calibration)
    models = {"float32": exact, "float16": to_float16(exact), "int8": to_int8(exact, feeds)}
    for precision, model in models.items():
        path = folder / f"{precision}.onnx"
        path.write_bytes(model.SerializeToString())
        engines[f"ONNX Runtime, {precision}"] = path.stat().st_size, onnx_runtime(path)
        if precision != "float16":
            engines[f"OpenVINO, {precision}"] = path.stat().st_size, openvino(path)
    try:
        model = export_sherpa(bundle)
    except ConfigError as error:
        print(f"without sherpa-onnx: {error}")
        return engines
    path = folder / "sherpa.onnx"
    path.write_bytes(model.SerializeToString())
    engines["sherpa-onnx, float32"] = path.stat().st_size, sherpa(path, bundle.config.fbank.sample_rate)
    return engines


def onnx_runtime(path: Path, threads: int | None = None) -> Embed:
    """Returns the embedding function of a model with waveform input in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or _cores()
    # Spinning threads would use the CPU while the next engine runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda waveform: session.run(None, _feed(waveform))[0][0]


def openvino(path: Path) -> Embed:
    """Returns the embedding function in OpenVINO, in float32 unless the file is int8."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": _cores(), "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda waveform: np.array(request.infer(_feed(waveform))[0][0])


def sherpa(path: Path, rate: int) -> Embed:
    """Returns the embedding function of sherpa-onnx's extractor."""
    import sherpa_onnx

    config = sherpa_onnx.SpeakerEmbeddingExtractorConfig(str(path), num_threads=_cores())
    extractor = sherpa_onnx.SpeakerEmbeddingExtractor(config)

    def embed(waveform: np.ndarray) -> np.ndarray:
        stream = extractor.create_stream()
        stream.accept_waveform(rate, waveform)
        stream.input_finished()
        return np.array(extractor.compute(stream), np.float32)

    return embed


def speed_table(folder: Path) -> str:
    """Returns the table of sizes and times at the published width; the text below it names the processor."""
    config = PRESETS["3dspeaker"]
    variables = jax.tree.map(np.asarray, functional.init(config, jax.random.key(0)))
    bundle = Bundle(config=config, variables=variables)
    engines = exported_engines(bundle, demo_recordings(), folder)
    waveform = _read(demo_recordings()[0], config.fbank.sample_rate)
    waveform = np.resize(waveform, int(SECONDS * config.fbank.sample_rate))
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(REPEATS + 2):
        for name, (_, embed) in engines.items():
            start = time.perf_counter()
            embed(waveform)
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    exact = medians["ONNX Runtime, float32"]
    rows = [f"| runtime | MB | ms for {SECONDS:g} s | times ONNX Runtime float32 |", "|---|--:|--:|--:|"]
    for name, median in medians.items():
        rows.append(f"| {name} | {engines[name][0] / 1e6:.1f} | {1000 * median:.1f} | {exact / median:.2f} |")
    return "\n".join(rows)


def _feed(waveform: np.ndarray) -> dict[str, np.ndarray]:
    return {"waveforms": waveform[None], "lengths": np.array([len(waveform)], np.int64)}


def _read(path: Path, rate: int) -> np.ndarray:
    samples, found = soundfile.read(path, dtype="float32", always_2d=True)
    assert found == rate, f"{path} is at {found} Hz"
    return np.ascontiguousarray(samples[:, 0])


def _cosines(trials: Trials, vectors: dict[str, np.ndarray]) -> np.ndarray:
    rows = np.stack([vectors[name] / np.linalg.norm(vectors[name]) for name in trials.names])
    return np.einsum("td,td->t", rows[trials.enrol], rows[trials.test])


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _write(name: str, table: str) -> None:
    begin, end = MARKS[name]
    page = PAGE.read_text("utf-8")
    old = page[page.index(begin) : page.index(end)]
    PAGE.write_text(page.replace(old, f"{begin}\n\n{table}\n\n"), "utf-8")


if __name__ == "__main__":
    main()
