"""`ecapa-jax embed FILES... -o OUT.npz`, and `ecapa-jax embed --manifest M --output DIR`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ecapa_jax.cli.common import (
    ChannelOption,
    Flag,
    Model,
    ModelOptions,
    Output,
    OutputOptions,
    ShortOption,
    Vad,
    check_standard_input,
    count_of,
    local_path,
    parse_channel,
)

if TYPE_CHECKING:
    from ecapa_jax.corpus.run import CorpusSummary
    from ecapa_jax.encoder import SpeakerEncoder
    from ecapa_jax.files.atomic import Identity


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embed recordings into one .npz (`names` [n], `embeddings` [n, embedding_dim]), or a corpus into Parquet files."""

    files: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILES...", help_behavior_hint="")
    ] = ()
    """Recordings: files, http(s) URLs, or - for standard input. If one can't be read, nothing is written."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"], metavar="OUT.npz", help_behavior_hint="")] = None
    """The .npz to write."""
    force: Flag = False
    """Replace an existing .npz."""
    manifest: Annotated[str | None, tyro.conf.arg(metavar="M", help_behavior_hint="")] = None
    """List of recordings, instead of FILES: Parquet, CSV, TSV or JSONL with a column `path`, and optionally `id`,
    `start`, `stop` and `channel`; a manifest of NeMo, WeSpeaker, SpeechBrain or 3D-Speaker; wav.scp; or a text file
    with one path per line. A bad recording becomes a row with an error. If the run is interrupted, run the same command
    again to continue."""
    folder: Annotated[str | None, tyro.conf.arg(name="output", metavar="DIR", help_behavior_hint="")] = None
    """With --manifest, the directory of Parquet files to write or to continue."""
    audio_root: Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the working directory)")] = ""
    """Folder that relative paths in the manifest are relative to."""
    shard_size: Annotated[int, tyro.conf.arg(metavar="N")] = 2000
    """Number of recordings in one Parquet file."""
    retry_errors: Flag = False
    """Compute those Parquet files again that hold errors."""
    window: Annotated[float | None, tyro.conf.arg(metavar="SECONDS", help_behavior_hint="(default: no windows)")] = None
    """Compute one embedding for every window of this length, and their mean for each recording. The .npz then holds
    `embeddings` [windows, embedding_dim], the recording of each window in `names`, the start of each window in seconds
    in `starts`, and the recordings in `files` with their `means` [n, embedding_dim]."""
    hop: Annotated[float | None, tyro.conf.arg(metavar="SECONDS", help_behavior_hint="(default: half a window)")] = None
    """Time between the starts of two neighbouring windows. The rest at the end of a recording is in one more window."""
    short: ShortOption = "error"
    vad: Vad = False
    channel: ChannelOption = None
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the embeddings."""
        from ecapa_jax.errors import EcapaError

        parse_channel(self.channel)
        check_standard_input(*self.files)
        if self.vad and self.window is not None:
            raise EcapaError("--vad would change the times of the windows: leave out --vad or --window")
        if self.hop is not None and self.window is None:
            raise EcapaError("--hop needs --window: ecapa-jax embed FILES... -o OUT.npz --window 3 --hop 1.5")
        if self.manifest is None and self.folder is None:
            self._embed_files()
        elif self.manifest is None or self.folder is None or self.files or self.out is not None:
            raise EcapaError(
                "--manifest needs --output, and takes no FILES and no -o: ecapa-jax embed --manifest M --output DIR"
            )
        elif self.window is not None:
            raise EcapaError(
                "--window is for FILES, not for a manifest: ecapa-jax embed FILES... -o OUT.npz --window 3 --hop 1.5"
            )
        else:
            self._embed_corpus(self.manifest, self.folder)

    def _load(self, *, quiet: bool) -> SpeakerEncoder:
        encoder = self.model.load(quiet=quiet)
        encoder.channel = parse_channel(self.channel)
        return encoder

    def _embed_files(self) -> None:
        import numpy as np

        from ecapa_jax.errors import EcapaError
        from ecapa_jax.files.atomic import identity, write_whole

        if not self.files:
            raise EcapaError("no recordings given: ecapa-jax embed FILES... -o OUT.npz, or --manifest M --output DIR")
        if self.out is None:
            raise EcapaError("no output given: ecapa-jax embed FILES... -o OUT.npz")
        path = local_path(self.out)
        if path.suffix != ".npz":
            raise EcapaError(f"{path} must end in .npz")
        before = identity(path)
        if before is not None and (os.path.isdir(path) or not self.force):
            remedy = "choose another output" + ("" if os.path.isdir(path) else " or pass --force")
            raise EcapaError(f"{path} exists: {remedy}")
        if self.window is not None:
            self._embed_windows(path, self.window, before)
            return
        encoder = self._load(quiet=self.output.quiet)
        embeddings = encoder.embed(self.files, short=self.short, vad=self.vad)
        write_whole(path, lambda to: np.savez(to, names=np.array(self.files), embeddings=embeddings), over=before)
        sizes = {"n": len(embeddings), "embedding_dim": embeddings.shape[1]}
        self.output.result(
            {"out": str(path), **sizes, "padding": round(encoder.padding_waste, 4), "model": self.model.name},
            f"{path}: {count_of(len(embeddings), 'embedding')} of {embeddings.shape[1]} numbers",
        )

    def _embed_windows(self, path: Path, window: float, before: Identity) -> None:
        import numpy as np

        from ecapa_jax.files.atomic import write_whole

        encoder = self._load(quiet=self.output.quiet)
        hop = window / 2 if self.hop is None else self.hop
        found = [encoder.embed_windows(file, window, hop, short=self.short) for file in self.files]
        arrays: dict[str, Any] = {
            "names": np.repeat(self.files, [len(windows.starts) for windows in found]),
            "starts": np.concatenate([windows.starts for windows in found]),
            "embeddings": np.concatenate([windows.embeddings for windows in found]),
            "files": np.array(self.files),
            "means": np.stack([windows.mean for windows in found]),
        }
        write_whole(path, lambda to: np.savez(to, **arrays), over=before)
        n, dim = arrays["embeddings"].shape
        sizes = {"n": len(found), "windows": n, "embedding_dim": dim}
        self.output.result(
            {"out": str(path), **sizes, "window": window, "hop": hop, "model": self.model.name},
            f"{path}: {count_of(n, 'window')} of {count_of(len(found), 'recording')}, embeddings of {dim} numbers",
        )

    def _embed_corpus(self, manifest: str, folder: str) -> None:
        from ecapa_jax.cli.progress import CorpusProgress, stop_signals
        from ecapa_jax.corpus.manifest import read_manifest
        from ecapa_jax.corpus.run import check_installed, embed_corpus

        check_installed()
        recordings = read_manifest(manifest)
        path = local_path(folder)
        self.model.fetch(quiet=self.output.quiet)
        # The signals come first: loading the model takes long enough to be interrupted.
        with stop_signals() as stop, CorpusProgress(len(recordings), quiet=self.output.quiet) as progress:
            summary = embed_corpus(
                self._load(quiet=True),
                recordings,
                path,
                audio_root=self.audio_root,
                shard_size=self.shard_size,
                short=self.short,
                vad=self.vad,
                retry_errors=self.retry_errors,
                progress=progress.advance,
                stop=stop,
            )
        self.output.result(
            {"output": str(path), **dataclasses.asdict(summary), "model": self.model.name}, _text(folder, summary)
        )


def _text(folder: str, summary: CorpusSummary) -> str:
    what = f"{count_of(summary.rows, 'recording')} in {count_of(summary.shards, 'shard')}"
    text = f"{folder}: {what}, {summary.speech_seconds / 3600:.2f} h of speech"
    if summary.errors:
        text += f"\n{summary.errors:,} could not be embedded: the column error says why"
    if summary.skipped < summary.rows:
        text += f"\n{summary.rows - summary.skipped:,} embedded now, {summary.hours_per_second:.3f} speech-hours/s"
    return text
