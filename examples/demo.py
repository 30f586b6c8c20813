"""Loads the packaged model, scores every pair of twelve short recordings, and decides.

python examples/demo.py
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

START = time.perf_counter()

import numpy as np  # noqa: E402

import ecapa_jax  # noqa: E402 - the measured time to the first score includes imports

AUDIO = Path(__file__).parent / "audio"


def main() -> None:
    """Prints a score matrix and the decisions for each group of recordings, and suggests the next command."""
    synthetic = sorted(AUDIO.glob("*.flac"))
    telephone = sorted((AUDIO / "telephone").glob("*.ogg"))
    encoder = ecapa_jax.load()
    first = encoder.verify(synthetic[0], synthetic[1])
    seconds = time.perf_counter() - START
    print(f"first score after {seconds:.1f} s, imports and compilation included: {first.score:.2f}\n")
    print(f"same speaker? yes at {encoder.scorer.scoring.threshold} or above\n")

    right, pairs = score_pairs(encoder, "three synthetic voices, two sentences each", synthetic)
    print(f"\n{right} of {pairs} decisions are right. One synthesizer made these voices, which makes them alike.\n")
    right, pairs = score_pairs(encoder, "three people, one sentence from each of two telephone calls", telephone)
    print(f"\n{right} of {pairs} decisions are right. Another call, often on another telephone, is hard for a small")
    print("model: its card (ecapa-jax info) has its error rates. A published model makes far fewer mistakes.")
    print("\nNext, in the folder of this README:")
    print("  .venv/bin/ecapa-jax verify examples/audio/rms_1.flac examples/audio/rms_2.flac")
    print("  .venv/bin/ecapa-jax verify ONE.wav OTHER.wav        # your own recordings")
    print("  .venv/bin/ecapa-jax convert ecapa_tdnn.bin -o my_model   # a published PyTorch checkpoint")


def score_pairs(encoder: ecapa_jax.SpeakerEncoder, title: str, files: list[Path]) -> tuple[int, int]:
    """Prints the score and decision of every pair; returns the number of correct decisions and of all decisions."""
    names = [file.stem.removeprefix("wuw_") for file in files]
    embeddings = encoder.embed(files)
    scores = np.asarray(ecapa_jax.score_matrix(embeddings, embeddings))
    print(f"{title}: score matrix (cosine)\n")
    print(" " * 14 + "".join(f"{name:>14}" for name in names))
    for name, row in zip(names, scores, strict=True):
        print(f"{name:<14}" + "".join(f"{score:14.2f}" for score in row))
    print()
    right = 0
    pairs = list(itertools.combinations(range(len(files)), 2))
    for a, b in pairs:
        same = bool(scores[a, b] >= encoder.scorer.scoring.threshold)
        truth = names[a].split("_")[0] == names[b].split("_")[0]
        right += same == truth
        mark = "" if same == truth else "  <- false accept" if same else "  <- false reject"
        print(f"  {names[a]:<14}{names[b]:<14}{scores[a, b]:6.2f}  {'yes' if same else 'no':<4}{mark}")
    return right, len(pairs)


if __name__ == "__main__":
    main()
