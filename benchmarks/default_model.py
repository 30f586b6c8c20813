"""Makes the packaged default model from a training run's bundle, and measures it on trial lists.

    python benchmarks/default_model.py BUNDLE --data DATA --telephone DIR [--systems NAME[=PATH] ...]
        [-o ecapa_jax/default_model]

DATA and DIR contain `lists/*.txt` (one `label path path` per line) and the audio that they name. The threshold is the
equal-error threshold of both dev lists together; one of them pairs different telephone calls. The eval lists are
measured at this threshold and do not influence it. The second table compares the model with the named systems (see
compare_models.py). Without -o, the script writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax.api import load
from ecapa_jax.bundle.bundle import Bundle, load_bundle, save_bundle
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.evaluation.operating import ThresholdRule, choose_threshold, operating_point
from ecapa_jax.evaluation.trials import Trials
from ecapa_jax.scoring.bootstrap import Units, intervals, resample
from ecapa_jax.scoring.config import Scoring
from ecapa_jax.scoring.counts import SortedTrials

sys.path.insert(0, str(Path(__file__).parent))
from compare_models import DEV, TELEPHONE, cosine_scores, encoder_embed, find_lists, print_table

STRICTER = (0.05, 0.01)
"""False acceptance rates on the dev lists for which the table has a threshold, besides the equal-error threshold."""

LICENCE = "Apache-2.0; distilled on speech under CC BY 4.0, CC BY-SA 4.0, MIT and the licence of CMU AN4"

SOURCE = "distilled from CAM++, starting from the packaged model of 2026-11-23"

TEACHER_NOTE = (
    "Distilled by `ecapa-jax train distil` from CAM++, 3D-Speaker's speech_campplus_sv_zh_en_16k-common_advanced "
    "(Apache-2.0; 6.8 M parameters, learned from about 200 000 speakers), whose embeddings it reproduces, on views of "
    "6.6 hours of speech: 2 951 steps of 32 on 48 000 views of 2 s, 2 600 steps on 48 000 views of 3 s, and 2 214, 900 "
    "and {steps} steps on {utterances} views of 3 s, on two CPU cores."
)
DATA_NOTE = (
    "Speech: LibriSpeech train-clean-100 (CC BY 4.0), speechocean762 (CC BY 4.0), dspspeech20 (MIT), FSDD "
    "(CC BY-SA 4.0), Malayalam Speech Corpus by Swathanthra Malayalam Computing (CC BY-SA 4.0), Arabic Speech Commands "
    "(CC BY 4.0), Speech Commands (CC BY 4.0), CMU AN4, Wake-Up-Word corpus II (CC BY-SA 4.0), Duke alphanumeric "
    "(MIT); noises under Apache-2.0, MIT, CC BY 3.0 and CC0."
)
LIMITS_NOTE = (
    "Small, and far from what its teacher can do. The threshold comes from two lists together: one compares recordings "
    "of one session, the other different telephone calls. Set a threshold on trials of your own."
)


def main() -> None:
    """Measures the model, prints the tables, and writes the bundle if -o is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--telephone", type=Path, required=True)
    parser.add_argument("--systems", nargs="*", default=[])
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    exact = load_bundle(arguments.bundle)
    stored = dataclasses.replace(exact, variables=halve_kernels(exact.variables))
    lists = find_lists(arguments.data, arguments.telephone)
    encoder = SpeakerEncoder.from_bundle(widen(stored))
    scores = {name: list_scores(encoder, *trials) for name, trials in lists.items()}
    change = np.abs(list_scores(load(arguments.bundle), *lists[DEV]) - scores[DEV]).max()
    points = operating_points({name: trials for name, (trials, _) in lists.items()}, scores)
    for point in points:
        low, high = (100 * rate for rate in point["eer_interval"])
        print(f"{point['trials']:<40} EER {point['eer']:.2%} [{low:.2f}, {high:.2f}]  ", end="")
        print(f"minDCF {point['min_dcf']:.3f}  ", end="")
        print(
            f"at {point['threshold']:.4f}: FAR {point['far']:.2%} FRR {point['frr']:.2%}  ({point['n_trials']} trials)"
        )
    note = f"Kernels are stored in float16: the largest change of a dev score is {change:.1e}."
    print(note)
    if arguments.out:
        save_bundle(describe(stored, points, note), arguments.out, force=True)
    if arguments.systems:
        print_table(lists, encoder, arguments.systems)


def halve_kernels(variables: dict) -> dict:
    """Converts convolution kernels to float16; small arrays stay in float32."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float16 if leaf.ndim == 3 else None), variables)


def widen(bundle: Bundle) -> Bundle:
    """Converts all arrays to float32, as loading does."""
    return dataclasses.replace(bundle, variables=jax.tree.map(lambda leaf: leaf.astype(np.float32), bundle.variables))


def list_scores(encoder: SpeakerEncoder, trials: Trials, root: Path) -> np.ndarray:
    """Returns the cosine of every trial; each whole file is embedded once."""
    return cosine_scores(encoder_embed(encoder)([root / name for name in trials.names]), trials)


def operating_points(lists: dict[str, Trials], scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Returns error rates of every list at each threshold, with the EER's 95 % interval by speaker."""
    labels = {name: trials.known_labels for name, trials in lists.items()}
    dev_scores = np.concatenate([scores[DEV], scores[TELEPHONE]])
    dev_labels = np.concatenate([labels[DEV], labels[TELEPHONE]])
    rules = [ThresholdRule(eer=True), *(ThresholdRule(far=far) for far in STRICTER)]
    thresholds = [math.ceil(1e3 * choose_threshold(dev_scores, dev_labels, rule)) / 1e3 for rule in rules]
    spreads = {name: eer_interval(trials, scores[name]) for name, trials in lists.items()}
    return [
        operating_point(threshold, scores[name], labels[name], trials=name) | {"eer_interval": spreads[name]}
        for threshold in thresholds
        for name in lists
    ]


def eer_interval(trials: Trials, scores: np.ndarray) -> list[float]:
    """Returns the interval from 1 000 resamples of the speakers."""
    speakers = np.array([Path(name).parent.as_posix() for name in trials.names])
    units = Units.of(speakers[trials.enrol], speakers[trials.test])
    samples = resample([SortedTrials.of(scores, trials.known_labels)], units, lambda counts: [counts.eer()])
    spread = intervals(samples[:, 0])[0]
    return [round(spread.low, 4), round(spread.high, 4)]


def describe(bundle: Bundle, points: list[dict[str, Any]], note: str) -> Bundle:
    """Returns the bundle with its name, notes, threshold and operating points."""
    notes = [TEACHER_NOTE.format(**bundle.provenance["training"]), DATA_NOTE, LIMITS_NOTE, note]
    provenance = {
        **bundle.provenance,
        "source": SOURCE,
        "name": "ecapa-jax default model",
        "licence": LICENCE,
        "notes": notes,
    }
    scoring = Scoring(threshold=points[0]["threshold"])
    return dataclasses.replace(bundle, provenance=provenance, scoring=scoring, operating_points=points)


if __name__ == "__main__":
    main()
