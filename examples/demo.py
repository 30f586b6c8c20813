"""The main job on six short recordings: load the packaged model, score every pair, decide.

python examples/demo.py
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

START = time.perf_counter()

import numpy as np  # noqa: E402

import ecapa_jax  # noqa: E402 - the time to the first score includes the imports

AUDIO = Path(__file__).parent / "audio"


def main() -> None:
    """Prints the score matrix, the decision for each pair, and what to type next."""
    files = sorted(AUDIO.glob("*.flac"))
    names = [file.stem for file in files]
    encoder = ecapa_jax.load()
    first = encoder.verify(files[0], files[1])
    seconds = time.perf_counter() - START
    print(f"first score after {seconds:.1f} s, imports and compilation included: {first.score:.2f}\n")

    embeddings = encoder.embed(files)
    scores = np.asarray(ecapa_jax.score_matrix(embeddings, embeddings))
    print("score matrix (cosine); three voices, two sentences each\n")
    print(" " * 8 + "".join(f"{name:>8}" for name in names))
    for name, row in zip(names, scores, strict=True):
        print(f"{name:<8}" + "".join(f"{score:8.2f}" for score in row))

    threshold = encoder.scorer.scoring.threshold
    print(f"\nsame speaker? yes at {threshold} or above\n")
    right = 0
    pairs = list(itertools.combinations(range(len(files)), 2))
    for a, b in pairs:
        same = bool(scores[a, b] >= threshold)
        truth = names[a].split("_")[0] == names[b].split("_")[0]
        right += same == truth
        print(f"  {names[a]:<8}{names[b]:<8}{scores[a, b]:6.2f}  {'yes' if same else 'no':<4}{_remark(same, truth)}")
    print(f"\n{right} of {len(pairs)} decisions are right. One synthesizer made these voices, which makes them alike,")
    print("and the packaged model is small: its card (ecapa-jax info) has its error rates on real speech.")
    print("\nNext, in the folder of this README:")
    print(f"  .venv/bin/ecapa-jax verify {_shown(files[0])} {_shown(files[1])}")
    print("  .venv/bin/ecapa-jax verify ONE.wav OTHER.wav        # your own recordings")
    print("  .venv/bin/ecapa-jax convert ecapa_tdnn.bin -o my_model   # a published PyTorch checkpoint")


def _remark(same: bool, truth: bool) -> str:
    if same == truth:
        return ""
    return "  <- false accept" if same else "  <- false reject"


def _shown(path: Path) -> str:
    return f"examples/audio/{path.name}"


if __name__ == "__main__":
    main()
