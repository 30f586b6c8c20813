"""Makes a table of a PyTorch teacher's embeddings of every view, for `ecapa-jax train distil`.

    ecapa-jax views distil -o views -n 48000 --set data.manifest=data/manifest.parquet --set augment.probability=0.5
    python examples/teacher_table.py views campplus_cn_en_common.pt -o table.parquet
    ecapa-jax train distil -o run --set data.manifest=views/manifest.parquet --set teacher.embeddings=table.parquet

The teacher is 3D-Speaker's CAM++ (it needs torch and `pip install --no-deps speakerlab`). To use another model, replace
`load_teacher`, which returns a function from 16 kHz waveforms [batch, samples] to embeddings [batch, D].
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from ecapa_jax.features.fbank import fbank
from ecapa_jax.presets import PRESETS

BATCH = 32


def main() -> None:
    """Embeds the recordings of a folder that `ecapa-jax views` or `ecapa-jax prepare` wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("views", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = pq.read_table(arguments.views / "manifest.parquet").to_pylist()
    teacher = load_teacher(arguments.weights)
    embeddings = []
    for first in range(0, len(rows), BATCH):
        batch = [read(arguments.views, row) for row in rows[first : first + BATCH]]
        if len({len(waveform) for waveform in batch}) == 1:
            embeddings += list(teacher(np.stack(batch)))
        else:  # recordings have different lengths
            embeddings += [teacher(waveform[None])[0] for waveform in batch]
        print(f"\r{len(embeddings)} of {len(rows)}", end="", flush=True)
    columns = {"id": [row["id"] for row in rows], "variant": [row["variant"] or "" for row in rows]}
    pq.write_table(pa.table({**columns, "embedding": [row.tolist() for row in embeddings]}), arguments.out)
    print(f"\n{arguments.out}: {len(rows)} embeddings of {len(embeddings[0])} values")


def read(folder: Path, row: dict) -> np.ndarray:
    """Returns the samples of a manifest's row as float32 in [-1, 1]."""
    waveform, _ = soundfile.read(folder / row["path"], dtype="float32", start=row["start"], frames=row["samples"])
    return waveform


def load_teacher(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns CAM++ with its training features: Kaldi's log-mel filterbank minus its mean over time."""
    import torch
    from speakerlab.models.campplus.DTDNN import CAMPPlus

    network = CAMPPlus(80, 192)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval()
    features_of = jax.jit(lambda waveforms, lengths: fbank(PRESETS["3dspeaker"].fbank, waveforms, lengths)[0])

    def embed(waveforms: np.ndarray) -> np.ndarray:
        lengths = np.full(len(waveforms), waveforms.shape[1], np.int32)
        features = torch.from_numpy(np.array(features_of(waveforms, lengths)))
        with torch.inference_mode():
            return network(features).float().numpy()

    return embed


if __name__ == "__main__":
    main()
