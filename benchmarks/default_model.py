"""Makes the packaged default model from a checkpoint and measures it on trial lists.

    python benchmarks/default_model.py CHECKPOINT --data DATA [-o ecapa_jax/default_model]

CHECKPOINT is in 3D-Speaker's file layout. DATA holds `lists/*.txt` (`label path path` a line) and the audio they name.
The threshold is the equal-error threshold of the dev list; eval lists are measured at it and change nothing. Without
-o the table is printed and nothing is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import jax
import numpy as np

from ecapa_jax.convert.run import convert
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.io.bundle import Bundle, save_bundle
from ecapa_jax.scoring.metrics import eer, eer_threshold, error_rates, far_frr, min_dcf
from ecapa_jax.scoring_config import Scoring

DEV = "dev_speechocean762_same_gender_age"
EVAL = ("eval_librispeech_test_other", "eval_speechocean762_same_gender_age")

STRICTER = (0.05, 0.01)
"""False acceptance rates on the dev list for which a threshold is given besides the equal-error one."""

NOTES = (
    "Trained with 3D-Speaker's PyTorch code on 481 speakers, 1.9 hours: LibriSpeech train-clean-100 (CC BY 4.0), "
    "speechocean762 (CC BY 4.0), dspspeech20 (MIT), FSDD (CC BY-SA 4.0); noises of audiomentations (MIT). "
    "Batches of 32 speakers, crops of 2 s, noise and speed augmentation, AAM-softmax (s 30, margin 0.2), AdamW, "
    "3 819 steps on two CPU cores.",
    "A start, not a product: small, trained on little speech, and measured on recordings of one session a speaker, "
    "where the channel helps. Mean and standard deviation of MFCCs, without any learning, give 6.9 % EER on "
    "eval_librispeech_test_other and about 11 % on eval_speechocean762_same_gender_age. Expect more errors across "
    "rooms, microphones and days, and set the threshold on trials of your own.",
)


def main() -> None:
    """Converts, measures, prints, and writes where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    exact = convert(arguments.checkpoint, family="3dspeaker")
    stored = dataclasses.replace(exact, variables=half_kernels(exact.variables))
    trials = {name: read_trials(arguments.data / "lists" / f"{name}.txt") for name in (DEV, *EVAL)}
    scores = score_lists(SpeakerEncoder.from_bundle(widened(stored)), trials, arguments.data)
    loss = score_lists(SpeakerEncoder.from_bundle(exact), {DEV: trials[DEV]}, arguments.data)[DEV] - scores[DEV]
    print(f"float16 storage: largest change of a score {np.abs(loss).max():.1e} on {len(loss)} trials")
    threshold = round(eer_threshold(scores[DEV], trials[DEV][0]), 4)
    points = [operating_point(name, scores[name], trials[name][0], threshold) for name in trials]
    for far in STRICTER:
        stricter = threshold_at_far(scores[DEV], trials[DEV][0], far)
        points += [operating_point(name, scores[name], trials[name][0], stricter) for name in trials]
    for point in points:
        print(f"{point['trials']:<40} EER {point['eer']:.2%}  minDCF {point['min_dcf']:.3f}  ", end="")
        print(f"at {point['threshold']}: FAR {point['far']:.2%} FRR {point['frr']:.2%}  ({point['n_trials']} trials)")
    if arguments.out:
        note = f"Kernels are stored in float16: the largest change of a dev score is {np.abs(loss).max():.1e}."
        save_bundle(described(stored, threshold, points, note), arguments.out, force=True)


def half_kernels(variables: dict) -> dict:
    """Convolution kernels in float16; everything small stays in float32."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float16) if leaf.ndim == 3 else leaf, variables)


def widened(bundle: Bundle) -> Bundle:
    """As loading gives it: float32 everywhere."""
    return dataclasses.replace(bundle, variables=jax.tree.map(lambda leaf: leaf.astype(np.float32), bundle.variables))


def read_trials(path: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Labels and the two paths of each trial."""
    labels, a, b = zip(*(line.split() for line in path.read_text().splitlines()), strict=True)
    return np.array(labels) == "1", list(a), list(b)


def score_lists(encoder: SpeakerEncoder, lists: dict, root: Path) -> dict[str, np.ndarray]:
    """Cosine of every trial; each file is embedded once, whole."""
    scores = {}
    for name, (_, a, b) in lists.items():
        files = sorted({*a, *b})
        rows = {file: row for row, file in enumerate(files)}
        unit = encoder.embed([root / file for file in files])
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        left, right = unit[[rows[file] for file in a]], unit[[rows[file] for file in b]]
        scores[name] = np.einsum("nd,nd->n", left, right)
    return scores


def operating_point(name: str, scores: np.ndarray, labels: np.ndarray, threshold: float) -> dict:
    """Error rates of a list at the threshold, with its EER and minDCF (p_target 0.01)."""
    far, frr = far_frr(scores, labels, threshold)
    return {
        "threshold": threshold,
        "far": far,
        "frr": frr,
        "trials": name,
        "n_trials": len(labels),
        "n_targets": int(labels.sum()),
        "eer": eer(scores, labels),
        "min_dcf": min_dcf(scores, labels),
    }


def threshold_at_far(scores: np.ndarray, labels: np.ndarray, far: float) -> float:
    """The smallest threshold, rounded up to four digits, whose false acceptance rate is at most `far`."""
    rates = error_rates(scores, labels)
    return math.ceil(1e4 * rates.thresholds[np.argmax(rates.far <= far)]) / 1e4


def described(bundle: Bundle, threshold: float, points: list[dict], note: str) -> Bundle:
    """The bundle with its name, notes, threshold and operating points."""
    provenance = {
        **bundle.provenance,
        "name": "ecapa-jax default model",
        "licence": "Apache-2.0; trained on speech under CC BY 4.0, CC BY-SA 4.0 and MIT",
        "published": {},
        "notes": [*NOTES, note],
    }
    scoring = Scoring(threshold=threshold)
    exact = sum(leaf.ndim != 3 for leaf in jax.tree.leaves(bundle.variables))
    parity = {**bundle.parity, "tensors_bit_identical": exact}
    return dataclasses.replace(bundle, provenance=provenance, scoring=scoring, operating_points=points, parity=parity)


if __name__ == "__main__":
    main()
