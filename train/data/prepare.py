"""Speech collections to a checked manifest, and on request to shards: nothing is dropped without being listed."""

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
from ecapa_jax.train.data.layouts import Layout, Utterance, find_recordings
from ecapa_jax.train.data.manifest import check_installed, write_manifest
from ecapa_jax.vad.silence import cut_silence

MANIFEST, PROBLEMS = "manifest.parquet", "problems.csv"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` found.

    Attributes:
      manifest: the file.
      utterances, speakers, hours: that are in it.
      problems: how many recordings are not, by reason; each is listed in `problems.csv`.
      lonely: speakers with one utterance: they train, but give no pair of the same speaker.
    """

    manifest: Path
    utterances: int
    speakers: int
    hours: float
    problems: dict[str, int]
    lonely: int


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What an utterance must be like: `prepare` explains the fields."""

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
    shorter than `min_seconds` (`short`), or has the same samples as one before it (`duplicate`).

    Args:
      source: see `layouts.find_recordings`.
      output: folder to make.
      layout: of the source.
      rate: of the manifest, Hz: what the model wants.
      min_seconds: shortest utterance kept.
      shard_utterances: also write the audio to ArrayRecord files of so many utterances, 16-bit FLAC at `rate`; 0 for
        none.
      vad: cut silence away, in the ArrayRecord files; a recording in which nobody is heard is left out (`no speech`).
      threads: decoding at a time.
      progress: called with recordings done and their number.

    Raises:
      TrainingError: the source is malformed, the output exists, nothing is left, or `vad` is asked for without files to
        write.
    """
    if vad and not shard_utterances:
        raise TrainingError("silence is cut away in the files that are written: pass --shards N with --vad")
    check_installed("pyarrow", *(["array_record"] if shard_utterances else []))
    recordings = find_recordings(source, layout, rate=rate)
    _check_free(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{output} can't be made: {error.strerror or error}") from error
    with claimed(output, TrainingError):
        _check_free(output)
        rows, problems = _written(
            recordings, output, _Wanted(rate, min_seconds, vad), shard_utterances, threads, progress
        )
        if not rows:
            raise TrainingError(
                f"none of the {len(recordings)} recordings of {source} can be used: see {output / PROBLEMS}"
            )
        with replacing_file(output / MANIFEST, error=TrainingError) as temporary:
            write_manifest(temporary, rows, rate)
    return _summary(output / MANIFEST, rows, problems)


def _check_free(output: Path) -> None:
    if (output / MANIFEST).exists():
        raise TrainingError(f"{output / MANIFEST} exists: choose another output, or remove it")


def _written(
    recordings: list[Utterance],
    output: Path,
    wanted: _Wanted,
    shard_utterances: int,
    threads: int,
    progress: Callable[[int, int], None],
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The manifest's rows and the problems, once shards and the list of problems are written."""
    shards = Shards(output, shard_utterances, wanted.rate) if shard_utterances else None
    rows: list[dict[str, Any]] = []
    problems: list[dict[str, str]] = []
    seen: dict[str, str] = {}
    for done, (recording, samples, problem) in enumerate(_checked(recordings, wanted, threads), 1):
        digest = hashlib.sha256(samples.tobytes()).hexdigest()
        if not problem and digest in seen:
            problem = f"duplicate: the samples of {seen[digest]}"
        if problem:
            problems.append({"id": recording.id, "path": str(recording.path), "problem": problem})
        else:
            seen[digest] = recording.id
            rows.append(_row(recording, samples, digest, output, wanted.rate, shards))
        progress(done, len(recordings))
    if shards is not None:
        shards.close()
    _write_problems(output / PROBLEMS, problems)
    return rows, problems


def _checked(
    recordings: list[Utterance], wanted: _Wanted, threads: int
) -> Iterator[tuple[Utterance, Int16[np.ndarray, " samples"], str]]:
    """Each recording with its samples and what is wrong with it, in order; few are held at a time."""
    with ThreadPoolExecutor(threads) as pool:
        ahead = 4 * threads
        waiting = [pool.submit(_read, recording, wanted) for recording in recordings[:ahead]]
        for index, recording in enumerate(recordings):
            samples, problem = waiting[index].result()
            waiting[index] = None  # type: ignore[call-overload]
            if index + ahead < len(recordings):
                waiting.append(pool.submit(_read, recordings[index + ahead], wanted))
            yield recording, samples, problem


def _read(recording: Utterance, wanted: _Wanted) -> tuple[Int16[np.ndarray, " samples"], str]:
    nothing, rate = np.zeros(0, np.int16), wanted.rate
    if why := why_no_recording(recording.path):
        return nothing, f"broken: {why}"
    try:
        waveform = load_audio(recording.path, sample_rate=None, target_rate=rate, channel="first")
    except AudioError as error:
        return nothing, f"broken: {error}"
    except Exception as error:  # whatever a decoder makes of a damaged file, it must not end a run of a million
        return nothing, f"broken: {recording.path}: {type(error).__name__}: {one_line(error)}"
    start = round((recording.start or 0) * rate)
    stop = len(waveform) if recording.stop is None else round(recording.stop * rate)
    samples = to_int16(waveform[start:stop])
    if is_silent(samples.astype(np.float32)):
        return samples, "silent: all samples are equal" if samples.size else "short: the part is outside the file"
    if wanted.vad:
        speech = cut_silence(waveform[start:stop], rate)
        if not isinstance(speech, np.ndarray):
            return samples, "no speech: nobody is heard to speak"
        samples = to_int16(speech)
    if len(samples) < wanted.min_seconds * rate:
        return samples, f"short: {len(samples) / rate:.2f} s"
    return samples, ""


def _row(
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
    """ArrayRecord files of FLAC, one record an utterance."""

    def __init__(self, folder: Path, per_shard: int, rate: int):
        self._folder, self._per_shard, self._rate = folder, per_shard, rate
        self._writer: Any = None
        self._count = 0

    def add(self, samples: Int16[np.ndarray, " samples"]) -> tuple[str, int]:
        """Writes an utterance; gives the file's name and the place in it."""
        from array_record.python.array_record_module import ArrayRecordWriter

        number, index = divmod(self._count, self._per_shard)
        name = f"audio-{number:05d}.array_record"
        if index == 0:
            self.close()
            # One record a chunk: training reads them in random order. FLAC does not get smaller.
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


def _summary(manifest: Path, rows: list[dict[str, Any]], problems: list[dict[str, str]]) -> Prepared:
    reasons: dict[str, int] = {}
    for problem in problems:
        reason = problem["problem"].partition(":")[0]
        reasons[reason] = reasons.get(reason, 0) + 1
    speakers, counts = np.unique([row["speaker"] for row in rows], return_counts=True)
    hours = sum(row["seconds"] for row in rows) / 3600
    return Prepared(manifest, len(rows), len(speakers), hours, reasons, int((counts == 1).sum()))
