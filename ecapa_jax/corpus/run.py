"""A whole corpus: manifest in, directory of shards out, again and again until all are there."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from ecapa_jax.config import Short
from ecapa_jax.corpus.manifest import Manifest, RecordingPart, shard_bounds
from ecapa_jax.corpus.output import Description, ShardSummary, open_output
from ecapa_jax.corpus.shard import embed_recordings
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import CorpusError, EcapaError, Stopped
from ecapa_jax.files.entries import join_root

SHARD_SIZE = 2000
"""Rows of a shard: what a killed run loses at most."""

Progress = Callable[[int, float, bool], None]
"""Told how many recordings and seconds of speech more are done, and whether an earlier run had done them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """What is in the output directory now.

    Attributes:
      rows: recordings, all of the manifest.
      errors: those without an embedding.
      skipped: those that an earlier run had done.
      shards: files.
      speech_seconds: speech of the embedded recordings.
      wall_seconds: time of this run, without loading the model.
      hours_per_second: hours of speech that this run embedded in a second.
    """

    rows: int
    errors: int
    skipped: int
    shards: int
    speech_seconds: float
    wall_seconds: float
    hours_per_second: float


def embed_corpus(
    encoder: SpeakerEncoder,
    manifest: Manifest,
    output: str | os.PathLike[str],
    *,
    audio_root: str | os.PathLike[str] = "",
    shard_size: int = SHARD_SIZE,
    short: Short = "error",
    vad: bool = False,
    workers: int | None = None,
    retry_errors: bool = False,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> CorpusSummary:
    """Embeds every recording of a manifest; run again after any end, it goes on with the first shard that is missing.

    Args:
      encoder: the model.
      manifest: the recordings.
      output: directory to make or continue.
      audio_root: what relative paths are relative to; the working directory unless given.
      shard_size: rows of a shard.
      short, vad, workers: as for `embed_recordings`.
      retry_errors: make shards with errors again.
      progress: told of every step.
      stop: ends the run; the shard in work is dropped.

    Raises:
      CorpusError: the directory can't be written, is in use, or belongs to another manifest or model.
      Stopped: `stop` was set; all finished shards are kept.
    """
    if shard_size < 1:
        raise CorpusError(f"a shard of {shard_size} rows is empty; give 1 or more")
    told = progress or (lambda files, seconds, before: None)
    start = time.monotonic()
    done: list[ShardSummary] = []
    skipped, earlier = 0, 0.0
    with open_output(output, _description(encoder, manifest, shard_size, short, vad)) as folder:
        for index, (first, last) in enumerate(shard_bounds(len(manifest), shard_size)):
            found = folder.finished(index, last - first)
            if found is not None and not (retry_errors and found.errors):
                done.append(found)
                skipped, earlier = skipped + found.rows, earlier + found.seconds
                told(found.rows, found.seconds, True)
                continue
            ids, _ = manifest.rows(first, last)
            try:
                embedded = embed_recordings(
                    encoder,
                    [_placed(audio_root, source) for source in manifest.sources(first, last)],
                    short=short,
                    vad=vad,
                    workers=workers,
                    advance=lambda files, seconds: told(files, seconds, False),
                    stop=stop,
                )
            except Stopped as error:
                raise _stopped(sum(shard.rows for shard in done), len(manifest), output) from error
            done.append(folder.write(index, ids, embedded))
    return _summary(done, len(manifest), skipped, earlier, time.monotonic() - start)


def _description(encoder: SpeakerEncoder, manifest: Manifest, shard_size: int, short: Short, vad: bool) -> Description:
    return Description(
        manifest=manifest.fingerprint,
        model=encoder.fingerprint,
        n_rows=len(manifest),
        shard_size=shard_size,
        short=short,
        vad=vad,
        embedding_dim=encoder.config.ecapa.embedding_dim,
    )


def _stopped(n_done: int, n_rows: int, output: str | os.PathLike[str]) -> Stopped:
    return Stopped(
        f"stopped on request; {n_done} of {n_rows} recordings are safe in {output}: run the same command again to go on"
    )


def _summary(done: list[ShardSummary], n_rows: int, skipped: int, earlier: float, wall: float) -> CorpusSummary:
    speech = sum(shard.seconds for shard in done)
    return CorpusSummary(
        rows=n_rows,
        errors=sum(shard.errors for shard in done),
        skipped=skipped,
        shards=len(done),
        speech_seconds=round(speech, 3),
        wall_seconds=round(wall, 3),
        hours_per_second=(speech - earlier) / 3600 / max(wall, 1e-9),
    )


def _placed(root: str | os.PathLike[str], source: str | RecordingPart) -> str | RecordingPart:
    if isinstance(source, RecordingPart):
        return dataclasses.replace(source, path=join_root(root, source.path))
    return join_root(root, source)


def check_installed() -> None:
    """Checks that what only corpora need is there.

    Raises:
      EcapaError: saying what to install.
    """
    missing: list[Any] = []
    for name in ("pyarrow", "filelock"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise EcapaError(f"a corpus needs {' and '.join(missing)}: pip install 'ecapa-jax[corpus]'")
