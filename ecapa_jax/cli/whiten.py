"""`ecapa-jax whiten RECORDINGS --model BUNDLE -o NEW`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from ecapa_jax.cli.bundle_options import Target, TargetOptions, cache_path
from ecapa_jax.cli.common import Model, ModelOptions, Output, OutputOptions, Short


@dataclasses.dataclass(frozen=True)
class Whiten:
    """Whiten a bundle's embeddings by recordings of many people, without labels, so that no few directions decide.

    The last layer of the network takes the whitening up: the new bundle computes as fast as the old one, and `embed`,
    `export` and everything else give whitened embeddings. Judge it on a trial list of your own: it helps most where a
    small model, or a model from other recordings than yours, is compared on people who sound alike.
    """

    recordings: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECORDINGS")]
    """A folder, which is searched for recordings, or a text file with the path of a recording on each line."""
    audio_root: Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the working directory)")] = ""
    """What the file's paths are relative to."""
    shrinkage: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.5
    """From 0 (whiten wholly) to 1 (only subtract the mean embedding)."""
    cache: Annotated[
        str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in the user's cache folder)")
    ] = None
    """Where embeddings are kept, so that another run need not compute them."""
    short: Short = "error"
    target: TargetOptions = Target()
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the bundle. Its scoring is the plain cosine: what was chosen for other embeddings is dropped."""
        from ecapa_jax import api
        from ecapa_jax.bundle.bundle import load_bundle, save_bundle
        from ecapa_jax.bundle.whitening import whitened
        from ecapa_jax.cli.progress import EvaluationProgress
        from ecapa_jax.evaluation.cache import EmbeddingCache
        from ecapa_jax.evaluation.files import embed_files, list_recordings
        from ecapa_jax.scoring.whitening import estimate_whitening

        path, before = self.target.check(self.model)
        files = list_recordings(self.recordings, self.audio_root or ".")
        bundle = load_bundle(api.resolve(self.model.model))
        encoder = self.model.load("cosine", quiet=self.output.quiet)
        shape = (1, encoder.config.ecapa.embedding_dim)
        with (
            EmbeddingCache(cache_path(self.cache), f"{encoder.fingerprint}:1", shape) as cache,
            EvaluationProgress(quiet=self.output.quiet) as progress,
        ):
            embedded = embed_files(encoder, files, cache, short=self.short, progress=progress)
        whitening = estimate_whitening(embedded.embeddings[:, 0], self.shrinkage)
        save_bundle(whitened(bundle, whitening, self.shrinkage, len(files)), path, force=True, over=before)
        self.output.note("scores have another scale now: choose a threshold with ecapa-jax threshold")
        self.output.result(
            {"out": str(path), "recordings": len(files), "shrinkage": self.shrinkage},
            f"{path}: whitened by {len(files)} recordings, shrinkage {self.shrinkage:g}",
        )
