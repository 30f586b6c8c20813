"""The packaged model beside others on the same trials: EER, minDCF, and differences by a paired bootstrap of speakers.

    python benchmarks/compare_models.py --data DATA [--model BUNDLE] [--checkpoint FILE] [--systems mfcc ...]

DATA holds `lists/*.txt` (`label path path`) and the audio they name, `<corpus>/<speaker>/<utterance>`. Systems:

mfcc         mean and standard deviation over time of 19 MFCCs, cosine: no learning, the floor
checkpoint   a PyTorch ECAPA-TDNN in 3D-Speaker's layout, converted (--checkpoint)
resemblyzer  Resemblyzer's pretrained encoder (pip install --no-deps resemblyzer; pip install webrtcvad-wheels torch)

Each list stands by itself. A difference is ours less theirs: below zero ours is better.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ecapa_jax.api import load
from ecapa_jax.audio.load import load_audio
from ecapa_jax.convert.run import convert
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.evaluation.trials import Trials, read_trials
from ecapa_jax.scoring.bootstrap import Units, differences, intervals, resample
from ecapa_jax.scoring.counts import Cost, Counts, SortedTrials

LISTS = ("dev_speechocean762_same_gender_age", "eval_librispeech_test_other", "eval_speechocean762_same_gender_age")
RATE = 16000
OURS = "ecapa-jax"

Embed = Callable[[list[Path]], Float[np.ndarray, "files dim"]]


def main() -> None:
    """Scores each list by each system, and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="bundle; the packaged model if not given")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--systems", nargs="*", default=["mfcc", "checkpoint", "resemblyzer"])
    parser.add_argument("--lists", nargs="*", default=list(LISTS))
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    systems = {OURS: encoder_embed(load(arguments.model) if arguments.model else load())}
    systems |= {name: system(name, arguments.checkpoint) for name in arguments.systems}
    print("| list | system | EER % [95 %] | minDCF | EER: ours less theirs [95 %], p |\n|---|---|--:|--:|--:|")
    for name in arguments.lists:
        trials = read_trials(arguments.data / "lists" / f"{name}.txt")
        files = [arguments.data / file for file in trials.names]
        scores = {who: cosine_scores(embed(files), trials) for who, embed in systems.items()}
        for row in table_rows(name, trials, scores, arguments.resamples):
            print(row, flush=True)


def system(name: str, checkpoint: Path | None) -> Embed:
    """A system by its name."""
    if name == "mfcc":
        return mfcc_embed
    if name == "resemblyzer":
        return resemblyzer_embed
    if name == "checkpoint" and checkpoint:
        return encoder_embed(SpeakerEncoder.from_bundle(convert(checkpoint, family="3dspeaker")))
    raise SystemExit(f"{name}: the systems are mfcc, resemblyzer, and checkpoint with --checkpoint FILE")


def encoder_embed(encoder: SpeakerEncoder) -> Embed:
    """Whole files through this library."""
    return lambda files: encoder.embed(files, short="repeat")


def mfcc_embed(files: list[Path]) -> Float[np.ndarray, "files 38"]:
    """MFCCs 1 to 19 by librosa (25 ms, 10 ms), mean and standard deviation."""
    import librosa

    rows = []
    for file in files:
        wave = load_audio(file, sample_rate=None, target_rate=RATE, channel="first")
        mfcc = librosa.feature.mfcc(y=wave, sr=RATE, n_mfcc=20, n_fft=512, win_length=400, hop_length=160)[1:]
        rows.append(np.concatenate([mfcc.mean(axis=1), mfcc.std(axis=1)]))
    return np.stack(rows)


def resemblyzer_embed(files: list[Path]) -> Float[np.ndarray, "files 256"]:
    """Resemblyzer's own preprocessing and encoder."""
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)
    return np.stack([encoder.embed_utterance(preprocess_wav(file)) for file in files])


def cosine_scores(embeddings: Float[np.ndarray, "files dim"], trials: Trials) -> Float[np.ndarray, " trials"]:
    """Cosine of each trial."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.einsum("td,td->t", unit[trials.enrol], unit[trials.test])


def table_rows(name: str, trials: Trials, scores: dict[str, np.ndarray], resamples: int) -> list[str]:
    """One row a system; ours first."""
    labels = trials.known_labels
    speakers = np.array([Path(file).parent.as_posix() for file in trials.names])
    units = Units.of(speakers[trials.enrol], speakers[trials.test])
    ours, rows = SortedTrials.of(scores[OURS], labels), []
    for who, values in scores.items():
        sorted_trials = SortedTrials.of(values, labels)
        eer, dcf = figures(sorted_trials.count())
        spread = intervals(resample([sorted_trials], units, figures, n=resamples)[:, 0])[0]
        against = ""
        if who != OURS:
            gap = differences([sorted_trials, ours], units, figures, n=resamples)[0]
            against = f"{percent(gap.value)} [{percent(gap.low)}, {percent(gap.high)}], p {gap.p_value:.3f}"
        interval = f"[{percent(spread.low)}, {percent(spread.high)}]"
        rows.append(f"| {name} | {who} | {percent(eer)} {interval} | {dcf:.3f} | {against} |")
    return rows


def figures(counts: Counts) -> list[float]:
    """EER and minDCF (p_target 0.01, both costs 1)."""
    return [counts.eer(), *counts.min_dcfs([Cost()])]


def percent(rate: float) -> str:
    """Without the sign."""
    return f"{100 * rate:.2f}"


if __name__ == "__main__":
    main()
