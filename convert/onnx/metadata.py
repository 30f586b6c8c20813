"""The metadata of an exported ONNX file, for this library, for other programs and for people."""

from __future__ import annotations

from ecapa_jax.batching import minimum_samples
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.onnx_file import KEY, make_document
from ecapa_jax.scoring.scorer import Scorer


def metadata(bundle: Bundle, takes: str, precision: str = "float32") -> dict[str, str]:
    """Makes the metadata of an export, in which every value is text.

    Args:
      bundle: the model.
      takes: `waveform`, `features` or `sherpa`.
      precision: precision of the weights, `float32`, `float16` or `int8`.
    """
    config, provenance = bundle.config, bundle.provenance
    threshold = bundle.scoring.threshold
    return {
        KEY: make_document(
            takes=takes,
            precision=precision,
            config=config,
            scoring=bundle.scoring,
            embedding_mean=bundle.embedding_mean,
            cohort=bundle.cohort,
            provenance=provenance,
        ),
        "model": str(provenance.get("name") or provenance.get("source") or "ECAPA-TDNN"),
        "family": str(provenance.get("family", "none")),
        "licence": str(provenance.get("licence", "not stated")),
        "input": takes,
        "precision": precision,
        "sample_rate": str(config.fbank.sample_rate),
        "channel": "the first" if config.fbank.channel == "first" else "their mean",
        "minimum_samples": str(minimum_samples(config)),
        "embedding_dim": str(config.ecapa.embedding_dim),
        "threshold": "none" if threshold is None else f"{threshold:g}",
        "score": Scorer(bundle.scoring, bundle.embedding_mean, bundle.cohort).scale,
    }


_INPUTS = {
    "waveform": "`waveforms` [batch, samples] float32 in [-1, 1], right-padded with any values, and `lengths` [batch] "
    "int64, the true lengths in samples; an utterance with fewer than {minimum_samples} samples has the embedding NaN",
    "features": "`features` [batch, frames, mels] float32, normalised as by the model's front end, without padding",
    "sherpa": "the features that the SpeakerEmbeddingExtractor of sherpa-onnx computes, one recording at a time",
}


def card(about: dict[str, str]) -> str:
    """Makes a model card from the metadata; the card becomes the `doc_string` of the file."""
    lines = [
        f"ECAPA-TDNN speaker encoder: {about['model']} (family {about['family']}), exported by ecapa-jax.",
        f"Input: {_INPUTS[about['input']].format(**about)}.",
        f"Audio: {about['sample_rate']} Hz; for several channels, take {about['channel']}.",
        f"Output: `embeddings` [batch, {about['embedding_dim']}] float32, not normalised to length one.",
        f"Score: {about['score']}; threshold: {about['threshold']}.",
        f"Weights: {about['precision']}. Licence: {about['licence']}.",
    ]
    if "score_change" in about:
        lines += [
            f"On {about['trials']}: EER {about['eer']}, {about['eer_float32']} in float32; no score differs by more "
            f"than {about['score_change']}."
        ]
    return "\n".join(lines) + "\n"
