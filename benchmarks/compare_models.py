"""Compares a model with others on the same trials: EER, minDCF, and differences by a paired bootstrap over speakers.

    python benchmarks/compare_models.py --data DATA [--telephone DIR] [--model BUNDLE] [--systems NAME[=PATH] ...]

DATA and DIR contain `lists/*.txt` (`label path path`) and the audio that they name, in a folder for each speaker. The
systems are:

mfcc             mean and standard deviation over time of 19 MFCCs, with cosine scores: a baseline without learning
checkpoint=FILE  a PyTorch ECAPA-TDNN in 3D-Speaker's layout, converted
before=BUNDLE    another bundle, such as an earlier packaged model
campplus=FILE    3D-Speaker's CAM++ in PyTorch, the packaged model's teacher (pip install --no-deps speakerlab; torch)
resemblyzer      Resemblyzer's encoder (pip install --no-deps resemblyzer; pip install webrtcvad-wheels torch)

Each list is reported separately. A difference is the value of this model minus that of the other system, so this model
is better if the difference is below zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from ecapa_jax.api import load
from ecapa_jax.audio.load import load_audio
from ecapa_jax.convert.run import convert
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.evaluation.trials import Trials, read_trials
from ecapa_jax.features.fbank import fbank
from ecapa_jax.presets import PRESETS
from ecapa_jax.scoring.bootstrap import Units, differences, intervals, resample
from ecapa_jax.scoring.counts import Cost, Counts, SortedTrials

DEV, TELEPHONE = "dev_speechocean762_same_gender_age", "dev_telephone_cross_call_same_gender"
EVAL = ("eval_librispeech_test_other", "eval_speechocean762_same_gender_age")
RATE = 16000
OURS = "ecapa-jax"

Embed = Callable[[list[Path]], Float[np.ndarray, "files dim"]]


def main() -> None:
    """Scores each list by each system, and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--telephone", type=Path)
    parser.add_argument("--model", type=Path, help="bundle; the packaged model if not given")
    parser.add_argument("--systems", nargs="*", default=["mfcc", "resemblyzer"])
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    encoder = load(arguments.model) if arguments.model else load()
    print_table(find_lists(arguments.data, arguments.telephone), encoder, arguments.systems, arguments.resamples)


def find_lists(data: Path, telephone: Path | None) -> dict[str, tuple[Trials, Path]]:
    """Returns the trials and the audio folder of each list, by the list's name."""
    places = {DEV: data, **({TELEPHONE: telephone} if telephone else {}), **dict.fromkeys(EVAL, data)}
    return {name: (read_trials(root / "lists" / f"{name}.txt"), root) for name, root in places.items()}


def print_table(
    lists: dict[str, tuple[Trials, Path]], encoder: SpeakerEncoder, names: list[str], resamples: int = 1000
) -> None:
    """Scores each list by each system, and prints a Markdown table."""
    systems = {OURS: encoder_embed(encoder)} | {name.partition("=")[0]: make_system(name) for name in names}
    print("| list | system | EER % [95 %] | minDCF | EER: ours less theirs [95 %], p |\n|---|---|--:|--:|--:|")
    for name, (trials, root) in lists.items():
        files = [root / file for file in trials.names]
        scores = {who: cosine_scores(embed(files), trials) for who, embed in systems.items()}
        for row in table_rows(name, trials, scores, resamples):
            print(row, flush=True)


def make_system(name: str) -> Embed:
    """Returns a system by its name; `NAME=PATH` gives the path of its weights."""
    kind, _, path = name.partition("=")
    if kind == "mfcc":
        return mfcc_embed
    if kind == "resemblyzer":
        return resemblyzer_embed
    if kind == "checkpoint" and path:
        return encoder_embed(SpeakerEncoder.from_bundle(convert(Path(path), family="3dspeaker")))
    if kind == "before" and path:
        return encoder_embed(load(path))
    if kind == "campplus" and path:
        return campplus_embed(Path(path))
    raise SystemExit(f"{name}: the systems are mfcc, resemblyzer, checkpoint=FILE, before=BUNDLE and campplus=FILE")


def campplus_embed(weights: Path) -> Embed:
    """Returns 3D-Speaker's CAM++ for whole files, with the features of its recipe."""
    import torch
    from speakerlab.models.campplus.DTDNN import CAMPPlus

    network = CAMPPlus(80, 192)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval()

    def embed(files: list[Path]) -> Float[np.ndarray, "files 192"]:
        rows = []
        for file in files:
            wave = load_audio(file, sample_rate=None, target_rate=RATE, channel="first")
            padded = np.pad(wave, (0, -len(wave) % RATE))  # few lengths, so that few programs compile
            features, mask = front_end(padded[None], np.array([len(wave)], np.int32))
            with torch.inference_mode():
                rows.append(network(torch.from_numpy(np.array(features[:, : int(mask.sum())])))[0].numpy())
        return np.stack(rows)

    return embed


@jax.jit
def front_end(waveforms: Float[np.ndarray, "batch samples"], lengths: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Computes 3D-Speaker's features: Kaldi's log-mel filterbank minus its mean over time."""
    return fbank(PRESETS["3dspeaker"].fbank, waveforms, lengths)


def encoder_embed(encoder: SpeakerEncoder) -> Embed:
    """Returns the embedding function of this library for whole files."""
    return lambda files: encoder.embed(files, short="repeat")


def mfcc_embed(files: list[Path]) -> Float[np.ndarray, "files 38"]:
    """Computes mean and standard deviation of librosa's MFCCs 1 to 19 (25 ms windows, 10 ms hop)."""
    import librosa

    rows = []
    for file in files:
        wave = load_audio(file, sample_rate=None, target_rate=RATE, channel="first")
        mfcc = librosa.feature.mfcc(y=wave, sr=RATE, n_mfcc=20, n_fft=512, win_length=400, hop_length=160)[1:]
        rows.append(np.concatenate([mfcc.mean(axis=1), mfcc.std(axis=1)]))
    return np.stack(rows)


def resemblyzer_embed(files: list[Path]) -> Float[np.ndarray, "files 256"]:
    """Embeds files with Resemblyzer's preprocessing and encoder."""
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)
    return np.stack([encoder.embed_utterance(preprocess_wav(file)) for file in files])


def cosine_scores(embeddings: Float[np.ndarray, "files dim"], trials: Trials) -> Float[np.ndarray, " trials"]:
    """Returns the cosine of each trial."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.einsum("td,td->t", unit[trials.enrol], unit[trials.test])


def table_rows(name: str, trials: Trials, scores: dict[str, np.ndarray], resamples: int) -> list[str]:
    """Returns one row for each system, beginning with this model."""
    labels = trials.known_labels
    speakers = np.array([Path(file).parent.as_posix() for file in trials.names])
    units = Units.of(speakers[trials.enrol], speakers[trials.test])
    ours, rows = SortedTrials.of(scores[OURS], labels), []
    for who, values in scores.items():
        sorted_trials = SortedTrials.of(values, labels)
        eer, dcf = compute_metrics(sorted_trials.count())
        spread = intervals(resample([sorted_trials], units, compute_metrics, n=resamples)[:, 0])[0]
        against = ""
        if who != OURS:
            gap = differences([sorted_trials, ours], units, compute_metrics, n=resamples)[0]
            against = f"{percent(gap.value)} [{percent(gap.low)}, {percent(gap.high)}], p {gap.p_value:.3f}"
        interval = f"[{percent(spread.low)}, {percent(spread.high)}]"
        rows.append(f"| {name} | {who} | {percent(eer)} {interval} | {dcf:.3f} | {against} |")
    return rows


def compute_metrics(counts: Counts) -> list[float]:
    """Returns EER and minDCF (p_target 0.01, both costs 1)."""
    return [counts.eer(), *counts.min_dcfs([Cost()])]


def percent(rate: float) -> str:
    """Formats a rate in percent without the percent sign."""
    return f"{100 * rate:.2f}"


if __name__ == "__main__":
    main()
