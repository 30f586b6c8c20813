"""Makes a checked manifest, and optionally shards, from a speech collection; every dropped recording is listed."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16

from ecapa_jax.audio.load import is_silent, load_audio
from ecapa_jax.audio.segments import to_flac, to_int16
from ecapa_jax.errors import AudioError, TrainingError, one_line
from ecapa_jax.files.atomic import claimed, replacing_file
from ecapa_jax.files.recordings import why_no_recording
from ecapa_jax.train.data.layouts import Layout, Utterance, find_utterances
from ecapa_jax.train.data.manifest import check_installed, write_manifest
from ecapa_jax.vad.silence import cut_silence

MANIFEST, PROBLEMS = "manifest.parquet", "problems.csv"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Summary of what `prepare` wrote.

    Attributes:
      manifest: the manifest.
      utterances, speakers, hours: size of the manifest.
      problems: number of recordings left out, by reason; each is listed in `problems.csv`.
      lonely: number of speakers with one utterance, who are trained on but never make a pair of the same speaker.
    """

    manifest: Path
    utterances: int
    speakers: int
    hours: float
    problems: dict[str, int]
    lonely: int


@dataclasses.dataclass(frozen=True)
class _Requirements:
    """Requirements for an utterance; the arguments of `prepare` explain the fields."""

    rate: int
    min_seconds: float
    vad: bool


def prepare(
    source: Path,
    output: Path,
    *,
    layout: Layout = "auto",
    rate: int = 16000,
    min_seconds: float = 0.5,
    shard_utterances: int = 0,
    vad: bool = False,
    threads: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Decodes and checks every recording and writes the manifest.

    A recording is left out, and listed with the reason, if it can't be decoded (`broken`), has no signal (`silent`), is
    shorter than `min_seconds` (`short`), or has the same samples as an earlier recording (`duplicate`).

    Args:
      source: see `layouts.find_utterances`.
      output: folder to make.
      layout: layout of the source.
      rate: sample rate of the manifest in Hz, which must be that of the model.
      min_seconds: length of the shortest utterance to keep.
      shard_utterances: number of utterances in each ArrayRecord file, to which the audio is written as 16-bit FLAC at
        `rate`; 0 writes no such files.
      vad: whether to cut silence away in the ArrayRecord files; a recording in which nobody is heard is left out
        (`no speech`).
      threads: number of decoding threads.
      progress: called with the number of recordings done and their total.

    Raises:
      TrainingError: the source is malformed, the output exists, no utterance is left, or `vad` is used without
        `shard_utterances`.
    """
    if vad and not shard_utterances:
        raise TrainingError("--vad cuts silence away in the shards: pass --shards N too")
    check_installed("pyarrow", *(["array_record"] if shard_utterances else []))
    recordings = find_utterances(source, layout, rate=rate)
    _check_free(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{output} can't be made: {error.strerror or error}") from error
    with claimed(output, TrainingError):
        _check_free(output)
        rows, problems = _write_audio(
            recordings, output, _Requirements(rate, min_seconds, vad), shard_utterances, threads, progress
        )
        if not rows:
            raise TrainingError(
                f"none of the {len(recordings)} recordings of {source} can be used: see {output / PROBLEMS}"
            )
        with replacing_file(output / MANIFEST, error=TrainingError) as temporary:
            write_manifest(temporary, rows, rate)
    return _summarise(output / MANIFEST, rows, problems)


def _check_free(output: Path) -> None:
    if (output / MANIFEST).exists():
        raise TrainingError(f"{output / MANIFEST} exists: choose another output, or remove it")


def _write_audio(
    recordings: list[Utterance],
    output: Path,
    requirements: _Requirements,
    shard_utterances: int,
    threads: int,
    progress: Callable[[int, int], None],
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Writes shards and the list of problems; returns the rows of the manifest and the problems."""
    shards = Shards(output, shard_utterances, requirements.rate) if shard_utterances else None
    rows: list[dict[str, Any]] = []
    problems: list[dict[str, str]] = []
    seen: dict[str, str] = {}
    for done, (recording, samples, problem) in enumerate(_check_recordings(recordings, requirements, threads), 1):
        digest = hashlib.sha256(samples.tobytes()).hexdigest()
        if not problem and digest in seen:
            problem = f"duplicate: the samples of {seen[digest]}"
        if problem:
            problems.append({"id": recording.id, "path": str(recording.path), "problem": problem})
        else:
            seen[digest] = recording.id
            rows.append(_make_row(recording, samples, digest, output, requirements.rate, shards))
        progress(done, len(recordings))
    if shards is not None:
        shards.close()
    _write_problems(output / PROBLEMS, problems)
    return rows, problems


def _check_recordings(
    recordings: list[Utterance], requirements: _Requirements, threads: int
) -> Iterator[tuple[Utterance, Int16[np.ndarray, " samples"], str]]:
    """Yields each recording in order with its samples and its problem; memory holds only a few recordings."""
    with ThreadPoolExecutor(threads) as pool:
        ahead = 4 * threads
        waiting = [pool.submit(_read, recording, requirements) for recording in recordings[:ahead]]
        for index, recording in enumerate(recordings):
            samples, problem = waiting[index].result()
            waiting[index] = None  # type: ignore[call-overload]
            if index + ahead < len(recordings):
                waiting.append(pool.submit(_read, recordings[index + ahead], requirements))
            yield recording, samples, problem


def _read(recording: Utterance, requirements: _Requirements) -> tuple[Int16[np.ndarray, " samples"], str]:
    nothing, rate = np.zeros(0, np.int16), requirements.rate
    if why := why_no_recording(recording.path):
        return nothing, f"broken: {why}"
    try:
        waveform = load_audio(recording.path, sample_rate=None, target_rate=rate, channel="first")
    except AudioError as error:
        return nothing, f"broken: {error}"
    except Exception as error:  # a decoder may raise anything for a damaged file, which must not end a long run
        return nothing, f"broken: {recording.path}: {type(error).__name__}: {one_line(error)}"
    start = round((recording.start or 0) * rate)
    stop = len(waveform) if recording.stop is None else round(recording.stop * rate)
    samples = to_int16(waveform[start:stop])
    if is_silent(samples.astype(np.float32)):
        return samples, "silent: all samples are equal" if samples.size else "short: the part is outside the file"
    if requirements.vad:
        speech = cut_silence(waveform[start:stop], rate)
        if not isinstance(speech, np.ndarray):
            return samples, "no speech: nobody is heard to speak"
        samples = to_int16(speech)
    if len(samples) < requirements.min_seconds * rate:
        return samples, f"short: {len(samples) / rate:.2f} s"
    return samples, ""


def _make_row(
    recording: Utterance,
    samples: Int16[np.ndarray, " samples"],
    digest: str,
    output: Path,
    rate: int,
    shards: Shards | None,
) -> dict[str, Any]:
    path = recording.path.absolute()
    if path.is_relative_to(output.absolute()):
        path = path.relative_to(output.absolute())
    row = {
        "id": recording.id,
        "path": os.fspath(path),
        "start": round((recording.start or 0) * rate),
        "samples": len(samples),
        "speaker": recording.speaker,
        "seconds": len(samples) / rate,
        "rate": rate,
        "sha256": digest,
    }
    if shards is not None:
        shard, index = shards.add(samples)
        row |= {"shard": shard, "index": index, "start": 0}
    return row


class Shards:
    """Writes ArrayRecord files of FLAC, with one record per utterance."""

    def __init__(self, folder: Path, per_shard: int, rate: int):
        self._folder, self._per_shard, self._rate = folder, per_shard, rate
        self._writer: Any = None
        self._count = 0

    def add(self, samples: Int16[np.ndarray, " samples"]) -> tuple[str, int]:
        """Writes an utterance; returns the name of the file and the position in it."""
        from array_record.python.array_record_module import ArrayRecordWriter

        number, index = divmod(self._count, self._per_shard)
        name = f"audio-{number:05d}.array_record"
        if index == 0:
            self.close()
            # One record per chunk, because training reads records in random order; FLAC can't be compressed further.
            self._writer = ArrayRecordWriter(str(self._folder / name), "group_size:1,uncompressed")
        self._writer.write(to_flac(samples, self._rate))
        self._count += 1
        return name, index

    def close(self) -> None:
        """Finishes the open file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _write_problems(path: Path, problems: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "path", "problem"])
        writer.writeheader()
        writer.writerows(problems)


def _summarise(manifest: Path, rows: list[dict[str, Any]], problems: list[dict[str, str]]) -> Prepared:
    reasons: dict[str, int] = {}
    for problem in problems:
        reason = problem["problem"].partition(":")[0]
        reasons[reason] = reasons.get(reason, 0) + 1
    speakers, counts = np.unique([row["speaker"] for row in rows], return_counts=True)
    hours = sum(row["seconds"] for row in rows) / 3600
    return Prepared(manifest, len(rows), len(speakers), hours, reasons, int((counts == 1).sum()))
