"""Embeds a whole corpus into a directory of shards; the next call continues an interrupted run."""

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
"""Rows of a shard; a killed run loses at most one shard."""

Progress = Callable[[int, float, bool], None]
"""Called with the number of recordings and seconds of speech just done, and whether an earlier run had done them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """Summary of an output directory.

    Attributes:
      rows: number of recordings in the manifest.
      errors: number of recordings without an embedding.
      skipped: number of recordings that an earlier run had done.
      shards: number of files.
      speech_seconds: duration of the speech in the embedded recordings.
      wall_seconds: duration of this run, without loading the model.
      hours_per_second: hours of speech that this run embedded per second.
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
    """Embeds every recording of a manifest. After any interruption, the same call continues with the missing shards.

    Args:
      encoder: the model.
      manifest: the recordings.
      output: directory to make or continue.
      audio_root: folder of relative paths; the working directory by default.
      shard_size: rows of a shard.
      short, vad, workers: as for `embed_recordings`.
      retry_errors: whether to make shards with errors again.
      progress: called after every batch.
      stop: event that ends the run; the unfinished shard is dropped.

    Raises:
      CorpusError: the directory can't be written, is in use, or belongs to another manifest or model.
      Stopped: `stop` was set; all finished shards are kept.
    """
    if shard_size < 1:
        raise CorpusError(f"the shard size is {shard_size}; it must be 1 or more")
    report = progress or (lambda files, seconds, before: None)
    start = time.monotonic()
    done: list[ShardSummary] = []
    skipped, earlier = 0, 0.0
    with open_output(output, _describe(encoder, manifest, shard_size, short, vad)) as folder:
        for index, (first, last) in enumerate(shard_bounds(len(manifest), shard_size)):
            found = folder.find_shard(index, last - first)
            if found is not None and not (retry_errors and found.errors):
                done.append(found)
                skipped, earlier = skipped + found.rows, earlier + found.seconds
                report(found.rows, found.seconds, True)
                continue
            ids, _ = manifest.rows(first, last)
            try:
                embedded = embed_recordings(
                    encoder,
                    [_join_root(audio_root, source) for source in manifest.sources(first, last)],
                    short=short,
                    vad=vad,
                    workers=workers,
                    advance=lambda files, seconds: report(files, seconds, False),
                    stop=stop,
                )
            except Stopped as error:
                raise _explain_stop(sum(shard.rows for shard in done), len(manifest), output) from error
            done.append(folder.write(index, ids, embedded))
    return _summarise(done, len(manifest), skipped, earlier, time.monotonic() - start)


def _describe(encoder: SpeakerEncoder, manifest: Manifest, shard_size: int, short: Short, vad: bool) -> Description:
    return Description(
        manifest=manifest.fingerprint,
        model=encoder.fingerprint,
        n_rows=len(manifest),
        shard_size=shard_size,
        short=short,
        vad=vad,
        embedding_dim=encoder.config.ecapa.embedding_dim,
    )


def _explain_stop(n_done: int, n_rows: int, output: str | os.PathLike[str]) -> Stopped:
    return Stopped(
        f"stopped on request; {n_done} of {n_rows} recordings are safe in {output}: run the same command again to "
        "continue"
    )


def _summarise(done: list[ShardSummary], n_rows: int, skipped: int, earlier: float, wall: float) -> CorpusSummary:
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


def _join_root(root: str | os.PathLike[str], source: str | RecordingPart) -> str | RecordingPart:
    if isinstance(source, RecordingPart):
        return dataclasses.replace(source, path=join_root(root, source.path))
    return join_root(root, source)


def check_installed() -> None:
    """Checks that the packages that only corpora need are installed.

    Raises:
      EcapaError: a package is missing; the message says how to install it.
    """
    missing: list[Any] = []
    for name in ("pyarrow", "filelock"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise EcapaError(f"a corpus needs {' and '.join(missing)}: pip install 'ecapa-jax[corpus]'")
