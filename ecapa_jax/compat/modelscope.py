"""ModelScope's speaker-verification pipeline, with its call and result, for a bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ecapa_jax.api import load
from ecapa_jax.audio.load import AudioSource
from ecapa_jax.convert.names import suggestion
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.hub.address import HUBS
from ecapa_jax.scoring.scorer import check_threshold


class SpeakerVerificationPipeline:
    """ModelScope's speaker-verification pipeline: its call and its result.

    Reference: `modelscope.pipelines.audio.speaker_verification_light_pipeline.SpeakerVerificationPipeline`. Unlike
    there, `thr` holds for one call only.
    """

    def __init__(self, encoder: SpeakerEncoder):
        self.encoder = encoder

    def __call__(
        self,
        in_audios: Sequence[str | os.PathLike[str] | np.ndarray],
        save_dir: str | None = None,
        output_emb: bool = False,
        thr: float | None = None,
    ) -> dict[str, Any]:
        """Scores two recordings.

        Args:
          in_audios: paths, URLs, or 1-D arrays at the model's rate (integers are divided by 32768).
          save_dir: writes each path's embedding to `save_dir/<file name without suffix>.npy`.
          output_emb: returns `{"outputs": result, "embs": [n, embedding_dim]}`.
          thr: threshold on the scale of the score, for a cosine in [-1, 1]; None takes the model's.

        Returns:
          `{"score": score rounded to 5 digits, "text": "yes" or "no"}`, or `{"text": "No similarity score output"}` if
          the number of inputs is not two.

        Raises:
          ConfigError: (a ValueError) `thr` is outside the range of the score, or neither given nor part of the model.
          AudioError: (a ValueError) an input can't be read or is of another type.
        """
        threshold = (
            self.encoder.scorer.scoring.threshold if thr is None else check_threshold(thr, self.encoder.scorer.scoring)
        )
        if threshold is None:
            raise ConfigError("this model publishes no threshold: pass thr, a score in [-1, 1]")
        views = self.encoder.embed_views([_modelscope_input(audio) for audio in in_audios])
        embeddings = views[:, 0]
        if save_dir is not None:
            _save(Path(save_dir), in_audios, embeddings)
        result: dict[str, Any] = {"text": "No similarity score output"}
        if len(views) == 2:
            score = round(self.encoder.score(views[0], views[1]), 5)
            result = {"score": score, "text": "yes" if score >= threshold else "no"}
        return {"outputs": result, "embs": embeddings} if output_emb else result


def pipeline(
    task: Literal["speaker-verification"],
    model: str | os.PathLike[str] | None = None,
    *,
    model_revision: str | None = None,
) -> SpeakerVerificationPipeline:
    """Makes ModelScope's `pipeline("speaker-verification", model=...)` for a bundle.

    Args:
      task: must be "speaker-verification".
      model: as for `ecapa_jax.load`. Write ModelScope's names as addresses: `modelscope:iic/...`.
      model_revision: branch, tag or commit of a model that is named by its address.

    Raises:
      ConfigError: the task is not supported, or a revision is given for a model that has no revisions.
      BundleError: the bundle does not exist or is not whole.
    """
    if task != "speaker-verification":
        raise ConfigError(f"task {task!r} is not supported; supported: speaker-verification")
    return SpeakerVerificationPipeline(load(_add_revision(model, model_revision)))


def _add_revision(model: str | os.PathLike[str] | None, revision: str | None) -> str | os.PathLike[str] | None:
    """Adds the revision to the name of the model, as in an address."""
    if revision is None:
        return model
    name = "" if model is None else os.fspath(model)
    if os.path.exists(name) or "@" in name or not (suggestion(name) or name.partition(":")[0].lower() in HUBS):
        raise ConfigError(
            f"model_revision={revision!r} is for a model on a hub, such as modelscope:ORG/NAME; "
            f"{name or 'the packaged model'} has no other revision"
        )
    return f"{name}@{revision}"


def _modelscope_input(audio: Any) -> AudioSource:
    if isinstance(audio, np.ndarray):
        if audio.ndim != 1:
            raise AudioError(f"an array input has shape {audio.shape}; the pipeline takes [samples]")
        return (audio / 32768.0).astype(np.float32) if audio.dtype.kind == "i" else audio.astype(np.float32)
    if isinstance(audio, str | os.PathLike):
        return audio
    raise AudioError(f"an input is a {type(audio).__name__}; the pipeline takes paths, URLs and NumPy arrays")


def _save(directory: Path, audios: Sequence[Any], embeddings: np.ndarray) -> None:
    names = {
        index: os.path.basename(os.fspath(audio)).rsplit(".", 1)[0]
        for index, audio in enumerate(audios)
        if isinstance(audio, str | os.PathLike)
    }
    if len(set(names.values())) < len(names):
        raise ConfigError(
            f"two inputs have the same file name ({', '.join(names.values())}): one embedding would be lost"
        )
    directory.mkdir(parents=True, exist_ok=True)
    for index, name in names.items():
        np.save(directory / f"{name}.npy", embeddings[index])
