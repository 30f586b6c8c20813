"""Embeds every recording of a list once: finds it, hashes it, looks it up in the cache, and only then computes it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from ecapa_jax.audio.load import is_silent
from ecapa_jax.audio.prefetch import map_ahead
from ecapa_jax.config import Short
from ecapa_jax.encoder import SilenceWarning, SpeakerEncoder
from ecapa_jax.errors import AudioError, Stopped, TrialError
from ecapa_jax.evaluation.cache import CachedEmbedding, EmbeddingCache
from ecapa_jax.files.entries import numbered_lines, read_scp
from ecapa_jax.files.recordings import find_audio

THREADS = 4
"""Number of recordings that are decoded before they are needed."""

Progress = Callable[[str, int, int], None]
"""Called with the kind of work, the number done, and the total."""


@dataclasses.dataclass(frozen=True, eq=False)
class FileEmbeddings:
    """Embeddings of recordings, in the order of the recordings.

    Attributes:
      embeddings: [files, views, embedding].
      seconds: [files], duration of the audio that the model received.
      computed: number of distinct recordings that were not in the cache.
    """

    embeddings: Float32[np.ndarray, "files views embedding"]
    seconds: Float64[np.ndarray, " files"]
    computed: int


def read_places(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads the path of each utterance id from Kaldi's wav.scp.

    Raises:
      TrialError: the file can't be read, a line is not `id path`, or an id has two paths.
    """
    places: dict[str, str] = {}
    try:
        for entry in read_scp(Path(path), TrialError):
            if places.setdefault(str(entry.id), entry.path) != entry.path:
                raise TrialError(f"{entry.where}: {entry.id} has another path on an earlier line")
    except OSError as error:
        raise TrialError(f"{os.fspath(path)} can't be read: {error.strerror or error}") from error
    return places


def locate(names: Sequence[str], root: str | os.PathLike[str], places: Mapping[str, str] | None = None) -> list[Path]:
    """Returns the path of each name: below `root`, or from `places` if given.

    Raises:
      TrialError: `places` lacks some of the names.
    """
    if places is None:
        return [Path(root) / name for name in names]
    if missing := [name for name in names if name not in places]:
        raise TrialError(
            f"{len(missing)} of {len(names)} recordings are not in the wav.scp, such as {missing[0]}; it has ids "
            f"such as {next(iter(places), 'none')}"
        )
    return [Path(root) / places[name] for name in names]


def find_files(
    names: Sequence[str],
    root: str | os.PathLike[str],
    missing_to: Path | None = None,
    places: Mapping[str, str] | None = None,
) -> list[Path]:
    """Finds the path of each name below `root`.

    Args:
      names: names in the trial list; absolute paths are taken as they are.
      root: folder of the audio.
      missing_to: file to which all missing names are written, one per line.
      places: paths of names that are utterance ids.

    Raises:
      TrialError: recordings are missing; the message gives their number and the first.
    """
    if not os.path.isdir(root):
        raise TrialError(
            f"{os.fspath(root)} is not a folder: name the folder to which the paths in the list are relative"
        )
    paths = locate(names, root, places)
    missing = [name for name, path in zip(names, paths, strict=True) if not os.path.isfile(path)]
    if missing and missing_to is not None:
        missing_to.write_text("".join(f"{name}\n" for name in missing), "utf-8")
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        written = f"; all are in {missing_to}" if missing_to else "; --missing FILE writes all of them"
        if not os.path.splitext(missing[0])[1] and places is None:
            written += "; if these are utterance ids, --wav-scp FILE says where they are"
        raise TrialError(f"{len(missing)} of {len(names)} recordings are not in {os.fspath(root)}: {shown}{written}")
    return paths


def embed_files(
    encoder: SpeakerEncoder,
    paths: Sequence[Path],
    cache: EmbeddingCache,
    *,
    short: Short = "error",
    vad: bool = False,
    progress: Progress = lambda *_: None,
) -> FileEmbeddings:
    """Embeds recordings, or takes their embeddings from the cache.

    Args:
      encoder: the model, for which the cache must have been opened.
      paths: recordings; files with equal content are embedded once.
      cache: read first, and written after every batch.
      short, vad: as for `SpeakerEncoder.embed`.
      progress: called from time to time.

    Raises:
      AudioError: recordings can't be embedded; the message gives their number and the first. All others are in the
        cache.
      Stopped: the call was interrupted; finished recordings are in the cache.
    """
    done = 0
    try:
        digests = list(_hash_files(paths, progress))
        entries = cache.get(dict.fromkeys(digests))
        wanted = {digest: path for digest, path in zip(digests, paths, strict=True) if digest not in entries}
        for batch in _compute(encoder, wanted, short, vad):
            cache.put(batch)
            entries.update(batch)
            done += len(batch)
            progress("embedding", done, len(wanted))
    except KeyboardInterrupt as error:
        raise Stopped(
            f"stopped; {done} more recordings are in {cache.path}: run the same command again to continue"
        ) from error
    found = [entries[digest] for digest in digests]
    embeddings = np.stack([embedding for embedding, _ in found]).astype(np.float32)
    return FileEmbeddings(embeddings, np.array([seconds for _, seconds in found], np.float64), len(wanted))


def list_recordings(source: str | os.PathLike[str], root: str | os.PathLike[str]) -> list[Path]:
    """Returns the recordings below a folder, or those that a text file names, one on each line.

    Args:
      source: the folder or the file.
      root: folder to which the paths in the file are relative.

    Raises:
      TrialError: there are no recordings, some are missing, or the file can't be read.
    """
    if os.path.isdir(source):
        found = find_audio(Path(source))
    else:
        try:
            names = [line for _, line in numbered_lines(Path(source), TrialError)]
        except OSError as error:
            raise TrialError(f"{os.fspath(source)} can't be read: {error.strerror or error}") from error
        found = find_files(names, root)
    if not found:
        raise TrialError(f"{os.fspath(source)} names no recordings")
    return found


def _hash_files(paths: Sequence[Path], progress: Progress) -> Iterator[bytes]:
    with ThreadPoolExecutor(THREADS) as pool:
        for index, digest in enumerate(pool.map(_sha256, paths), 1):
            if index % 100 == 0 or index == len(paths):
                progress("reading", index, len(paths))
            yield digest


def _sha256(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise AudioError(f"{path} can't be read: {error.strerror or error}") from error


def _compute(
    encoder: SpeakerEncoder, wanted: Mapping[bytes, Path], short: Short, vad: bool
) -> Iterator[dict[bytes, CachedEmbedding]]:
    """Yields batches of embeddings of recordings that are not in the cache; raises an AudioError at the end if some
    could not be read.
    """
    order: list[tuple[bytes, float]] = []
    failed: list[AudioError] = []
    n_views = encoder.scorer.n_views

    def views() -> Iterator[Float32[np.ndarray, " samples"]]:
        for digest, path, waveform in _decode(encoder, wanted, short, vad):
            if isinstance(waveform, AudioError):
                failed.append(waveform)
                continue
            if is_silent(waveform):
                message = f"{path} has no signal (all samples are equal): its embedding means nothing"
                warnings.warn(message, SilenceWarning, stacklevel=2)
            order.append((digest, len(waveform) / encoder.sample_rate))
            yield from encoder.scorer.views(waveform)

    begun: dict[int, dict[int, np.ndarray]] = collections.defaultdict(dict)  # by recording, by view
    for indices, embeddings in encoder.embed_stream(views()):
        for index, row in zip(indices, embeddings, strict=True):
            begun[index // n_views][index % n_views] = row
        whole = [at for at in dict.fromkeys(index // n_views for index in indices) if len(begun[at]) == n_views]
        rows = {at: begun.pop(at) for at in whole}
        yield {
            order[at][0]: (np.stack([row[view] for view in range(n_views)]), order[at][1]) for at, row in rows.items()
        }
    if failed:
        more = f" (and {len(failed) - 1} more recordings can't be embedded)" if len(failed) > 1 else ""
        raise AudioError(f"{failed[0]}{more}")


def _decode(
    encoder: SpeakerEncoder, wanted: Mapping[bytes, Path], short: Short, vad: bool
) -> Iterator[tuple[bytes, Path, Float32[np.ndarray, " samples"] | AudioError]]:
    def read(path: Path) -> Float32[np.ndarray, " samples"] | AudioError:
        try:
            return encoder.read(path, short=short, vad=vad)
        except AudioError as error:
            return error

    with contextlib.closing(map_ahead(read, wanted.values(), THREADS)) as waveforms:
        for (digest, path), waveform in zip(wanted.items(), waveforms, strict=True):
            yield digest, path, waveform
