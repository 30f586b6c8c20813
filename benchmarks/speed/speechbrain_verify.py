"""SpeechBrain's equivalent of `ecapa-jax verify`: `python -m benchmarks.speed.speechbrain_verify FOLDER A B`.

It uses SpeechBrain's own interface: `SpeakerRecognition.from_hparams` with a local source, then `verify_files`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.speed.model import Model

HYPERPARAMS = """\
compute_features: !new:speechbrain.lobes.features.Fbank
  n_mels: 80
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
  norm_type: sentence
  std_norm: False
mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
  norm_type: global
  std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
  input_size: 80
  channels: {channels}
  lin_neurons: {embedding_dim}
modules:
  compute_features: !ref <compute_features>
  mean_var_norm: !ref <mean_var_norm>
  mean_var_norm_emb: !ref <mean_var_norm_emb>
  embedding_model: !ref <embedding_model>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    embedding_model: !ref <embedding_model>
"""


def write_source(model: Model, folder: Path) -> Path:
    """Writes the settings and weights that the interface reads."""
    import torch
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    from benchmarks.speed.engines_torch import fill_weights

    model.write()
    ecapa = model.config().ecapa
    channels = [*ecapa.channels, ecapa.mfa_channels]
    folder.mkdir(parents=True, exist_ok=True)
    text = HYPERPARAMS.format(channels=channels, embedding_dim=ecapa.embedding_dim)
    (folder / "hyperparams.yaml").write_text(text, "utf-8")
    network = fill_weights(ECAPA_TDNN(80, channels=channels, lin_neurons=ecapa.embedding_dim), model)
    torch.save(network.state_dict(), folder / "embedding_model.ckpt")
    return folder


def main() -> None:
    """Prints the score and the decision."""
    folder, a, b = sys.argv[1:]
    from speechbrain.inference.speaker import SpeakerRecognition

    encoder = SpeakerRecognition.from_hparams(source=folder, savedir=folder)
    score, same = encoder.verify_files(a, b)
    print(f"{float(score):.4f} {bool(same)}")


if __name__ == "__main__":
    main()
