# pyright: strict
"""A program that uses every public name of ecapa_jax, as a user's program would."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import numpy.typing as npt

import ecapa_jax
from ecapa_jax.convert.run import convert
from ecapa_jax.train.config import TrainConfig


def recordings() -> float:
    encoder: ecapa_jax.SpeakerEncoder = ecapa_jax.load(dtype="auto")
    rows = encoder.embed(["a.wav", np.zeros(16000, np.float32)], sample_rate=16000)
    windows = encoder.embed_windows("a.wav", window=3.0, hop=1.5)
    answer: ecapa_jax.Verification = encoder.verify("a.wav", "b.wav", threshold=0.3)
    scorer: ecapa_jax.Scorer = encoder.scorer
    same: bool | None = answer.same_speaker
    print(rows.shape, windows.starts, scorer.scoring.threshold, same, encoder.sample_rate, encoder.minimum_samples)
    low = encoder.with_dtype("bfloat16")
    print(low.fingerprint, low.padding_waste, low.warm_up(1.0), low.config, low.dtype, low.buckets, low.devices)
    waveform = encoder.read("a.wav")
    for indices, embeddings in encoder.embed_stream([waveform, waveform]):
        print(indices, embeddings.shape, encoder.embed_views(waveform).shape, encoder.variables["params"])
    return answer.score + encoder.score(rows[0], rows[1])


def who_speaks_when(samples: Iterable[npt.NDArray[np.float32]]) -> list[ecapa_jax.Turn]:
    encoder = ecapa_jax.load()
    try:
        found: ecapa_jax.Diarization = ecapa_jax.diarize(encoder, "meeting.wav")
    except ecapa_jax.DiarizationError:
        raise
    speakers: list[ecapa_jax.Speaker] = found.speakers
    print([(speaker.name, speaker.embedding.shape, speaker.seconds) for speaker in speakers])
    diarizer = ecapa_jax.Diarizer(encoder, max_speakers=4)
    for block in samples:
        print([(turn.start, turn.speaker) for turn in diarizer.push(block)])
    return found.turns + diarizer.finish()


def modelscope() -> ecapa_jax.SpeakerVerificationPipeline:
    pipeline = ecapa_jax.pipeline("speaker-verification")
    print(pipeline(["a.wav", "b.wav"])["score"])
    return pipeline


def voices(names: list[str]) -> npt.NDArray[np.float32]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ecapa_jax.NoSpeechWarning)
        return ecapa_jax.load().embed(names, channel="left")


def own_jit() -> jax.Array:
    config: ecapa_jax.ModelConfig = ecapa_jax.PRESETS["3dspeaker"]
    fbank: ecapa_jax.FbankConfig = config.fbank
    ecapa: ecapa_jax.EcapaConfig = config.ecapa
    std: ecapa_jax.StdConfig = ecapa.pooled_std
    variables = ecapa_jax.init(config, jax.random.key(0))
    shapes = ecapa_jax.abstract(config)
    folded = ecapa_jax.fold(config, variables, "bfloat16")
    waveforms, lengths = np.zeros((2, 16000), np.float32), np.array([16000, 12000], np.int32)
    assert ecapa_jax.minimum_samples(config) < 12000
    features, mask = ecapa_jax.fbank(fbank, waveforms, lengths)
    direct, statistics = ecapa_jax.apply(ecapa, variables, features, mask)
    rows = ecapa_jax.embed(config, folded, waveforms, lengths)
    print(std.epsilon, shapes.keys(), direct.shape, statistics)
    scores: jax.Array = ecapa_jax.score_matrix(rows, rows)
    best, whose = ecapa_jax.search(rows, rows, k=1)
    return scores + ecapa_jax.cosine(rows, rows) + best[0] + whose[0]


def normalised(rows: jax.Array, cohort: jax.Array) -> jax.Array:
    statistics: ecapa_jax.CohortStatistics = ecapa_jax.cohort_statistics(rows, cohort, top_n=2)
    scores = ecapa_jax.cosine(rows, rows)
    z = ecapa_jax.z_norm(scores, statistics)
    t = ecapa_jax.t_norm(scores, statistics)
    s = ecapa_jax.s_norm(scores, statistics, statistics)
    return z + t + s + ecapa_jax.as_norm(rows, rows, cohort, top_n=2)


def errors() -> list[type[Exception]]:
    kinds: list[type[ecapa_jax.EcapaError]] = [
        ecapa_jax.AudioError,
        ecapa_jax.BundleError,
        ecapa_jax.ConfigError,
        ecapa_jax.ConversionError,
        ecapa_jax.DownloadError,
        ecapa_jax.ScoringError,
    ]
    return [*kinds, ecapa_jax.SilenceWarning]


def conversion(source: Path, run: TrainConfig) -> None:
    bundle = convert(source)
    print(bundle.config, bundle.scoring.threshold, run.data)
