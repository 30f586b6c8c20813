"""Exports a bundle as a StableHLO file that computes embeddings from waveforms without this library.

`jax.export` stores the computation and the weights as StableHLO with a compatibility guarantee. Any program with `jax`
can load the file and run it on a CPU, GPU or TPU, even if this library is not installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ecapa_jax import functional
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.errors import ConfigError
from ecapa_jax.scoring.scorer import Scorer

ARTEFACT, METADATA, CARD = "embed.jax_export", "metadata.json", "README.md"
FILES = {ARTEFACT, METADATA, CARD}
PLATFORMS = ("cpu", "cuda", "tpu")

_CARD = """\
# ECAPA-TDNN speaker encoder as StableHLO

`embed.jax_export` is a computation that `jax.export` serialized ({n_bytes:,} bytes, weights included), for {platforms}.

    import jax
    embed = jax.export.deserialize(bytearray(open("embed.jax_export", "rb").read())).call
    embeddings = embed(waveforms, lengths)

- `waveforms`: float32 [batch, samples], {sample_rate} Hz, in [-1, 1], right-padded with any finite values; for a
  recording with several channels, take {channel}
- `lengths`: int32 [batch], true lengths in samples, from {minimum_samples} to `samples`
- `embeddings`: float32 [batch, {embedding_dim}]; the embedding of an utterance with fewer than {minimum_samples}
  samples is NaN

`batch` can be any size, and `samples` any number from {minimum_samples} on. Each new shape compiles once, so pad
waveforms to a few lengths. An embedding does not depend on the padding or on the other utterances of the batch.

Score: {scale}; threshold: {threshold}. Model: {name} (family {family}).
"""


def export_stablehlo(bundle: Bundle) -> tuple[bytes, dict[str, Any]]:
    """Makes the artefact, with a symbolic batch size and number of samples, and its metadata.

    Raises:
      ConfigError: flatbuffers, which `jax.export` needs, is not installed.
    """
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise ConfigError("jax.export needs flatbuffers: pip install 'ecapa-jax[export]'") from error
    import jax.export

    config, minimum = bundle.config, functional.minimum_samples(bundle.config)
    variables = bundle.variables
    embed = jax.jit(lambda waveforms, lengths: functional.embed(config, variables, waveforms, lengths))
    batch, samples = jax.export.symbolic_shape("batch, samples", constraints=[f"samples >= {minimum}", "batch >= 1"])
    arguments = jax.ShapeDtypeStruct((batch, samples), "float32"), jax.ShapeDtypeStruct((batch,), "int32")
    artefact = jax.export.export(embed, platforms=PLATFORMS)(*arguments).serialize()
    scorer = Scorer(bundle.scoring, bundle.embedding_mean)
    metadata = {
        "sample_rate": config.fbank.sample_rate,
        "channel": "the first" if config.fbank.channel == "first" else "their mean",
        "minimum_samples": minimum,
        "embedding_dim": config.ecapa.embedding_dim,
        "threshold": bundle.scoring.threshold,
        "scale": scorer.scale,
        "family": bundle.provenance.get("family", "none"),
        "name": bundle.provenance.get("name") or bundle.provenance.get("source", "ECAPA-TDNN"),
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
    }
    return bytes(artefact), metadata


def write_stablehlo(folder: Path, artefact: bytes, metadata: dict[str, Any]) -> None:
    """Writes the artefact, its metadata and instructions into an existing folder."""
    (folder / ARTEFACT).write_bytes(artefact)
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", "utf-8")
    words = {**metadata, "platforms": ", ".join(metadata["platforms"]), "n_bytes": len(artefact)}
    words["threshold"] = "none" if metadata["threshold"] is None else f"{metadata['threshold']:g}"
    (folder / CARD).write_text(_CARD.format(**words), "utf-8")
