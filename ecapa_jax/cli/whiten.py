"""`ecapa-jax whiten RECORDINGS --model BUNDLE -o NEW`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from ecapa_jax.cli.bundle_options import Target, TargetOptions, cache_path
from ecapa_jax.cli.common import Model, ModelOptions, Output, OutputOptions, ShortOption, count_of


@dataclasses.dataclass(frozen=True)
class Whiten:
    """Whiten a bundle's embeddings, so that a few directions do not dominate the scores.

    The whitening is estimated from recordings of many people, without labels, and becomes part of the network's
    last layer. So the new bundle is as fast as the old one, and `embed`, `export` and every other verb use the whitened
    embeddings. Compare both bundles on your own trials: whitening helps most with a small
    model, or one that was trained on other kinds of recordings, and on people who sound alike.
    """

    recordings: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECORDINGS")]
    """A folder, which is searched for recordings, or a text file with the path of a recording on each line."""
    audio_root: Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the working directory)")] = ""
    """Folder that the paths in the file are relative to."""
    shrinkage: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.5
    """Strength of the whitening, from 0 (full whitening) to 1 (only the mean embedding is subtracted)."""
    cache: Annotated[
        str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: in the user's cache folder)")
    ] = None
    """File that keeps the embeddings, so that the next run does not compute them again."""
    short: ShortOption = "error"
    target: TargetOptions = Target()
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes the bundle. Its scoring is the plain cosine, as the old threshold belongs to the old embeddings."""
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
        self.output.note("the scale of the scores has changed: choose a threshold with ecapa-jax threshold")
        self.output.result(
            {"out": str(path), "recordings": len(files), "shrinkage": self.shrinkage},
            f"{path}: whitened by {count_of(len(files), 'recording')}, shrinkage {self.shrinkage:g}",
        )
