"""Tests of `SpeakerEncoder` (inputs, buckets, compilations, decisions) and of the ModelScope pipeline."""

from __future__ import annotations

import dataclasses
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

import ecapa_jax
from ecapa_jax.batching import BATCH_SIZES, Buckets
from ecapa_jax.bundle.bundle import load_bundle, save_bundle
from ecapa_jax.compat.modelscope import SpeakerVerificationPipeline
from ecapa_jax.encoder import SilenceWarning, SpeakerEncoder
from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.masks import bucket_length
from ecapa_jax.scoring.config import Scoring
from helpers import parity
from helpers.bundles import make
from helpers.checkpoints import CONFIG
from helpers.weights import random_tensors, shallow_config, small_config, variables_of

pytestmark = pytest.mark.usefixtures("every_sound_is_speech")

RATE = 16000


@pytest.fixture
def no_type_checks() -> Iterator[None]:
    """Disables the run-time type checks of the tests, so that a wrong type reaches the library as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    config = shallow_config()
    variables = variables_of(config.ecapa, random_tensors(config.ecapa))
    return SpeakerEncoder(config, variables, scoring=Scoring(threshold=0.5))


@pytest.fixture(scope="module")
def three_block_encoder() -> SpeakerEncoder:
    config = small_config(width=16, se_channels=8, attention_channels=8)
    return SpeakerEncoder(config, variables_of(config.ecapa, random_tensors(config.ecapa)))


def make_noise(n_samples: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(n_samples).astype(np.float32)


def wav_bytes(samples: np.ndarray, rate: int = RATE, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=options.pop("format", "WAV"), **options)
    return file.getvalue()


def test_200_lengths_compile_one_program_per_bucket(encoder: SpeakerEncoder) -> None:
    """After the warm-up has compiled every bucket, random lengths in random batches compile no further program."""
    fresh = SpeakerEncoder(encoder.config, encoder.variables)
    n_buckets = fresh.warm_up(max_seconds=1.2)
    assert fresh.programs.compile_count == n_buckets == 2 * len(BATCH_SIZES)
    generator = np.random.default_rng(1)
    lengths = generator.integers(fresh.minimum_samples, int(1.2 * RATE), 200)
    waveforms = [make_noise(length, seed) for seed, length in enumerate(lengths)]
    start = 0
    while start < len(waveforms):
        size = int(generator.integers(1, 40))
        embeddings = fresh.embed(waveforms[start : start + size])
        assert np.isfinite(embeddings).all()
        start += size
    assert fresh.programs.compile_count == n_buckets


def test_batch_rows_equal_single_recordings(encoder: SpeakerEncoder) -> None:
    waveforms = [make_noise(length, seed) for seed, length in enumerate((30000, 1040, 16000, 16001, 7777, 24000, 1041))]
    together = encoder.embed(waveforms)
    for row, waveform in enumerate(waveforms):
        assert parity.same_embeddings(together[row : row + 1], encoder.embed(waveform))


def test_embed_stream_yields_every_index_once_and_is_deterministic(encoder: SpeakerEncoder) -> None:
    generator = np.random.default_rng(2)
    waveforms = [make_noise(int(n), seed) for seed, n in enumerate(generator.choice([1040, 16000, 17000, 24000], 45))]
    alone = np.concatenate([encoder.embed(waveform) for waveform in waveforms])

    def collect_stream() -> np.ndarray:
        rows = np.full_like(alone, np.nan)
        seen: list[int] = []
        for indices, embeddings in encoder.embed_stream(iter(waveforms)):
            rows[list(indices)] = embeddings
            seen += indices
        assert sorted(seen) == list(range(45))
        return rows

    first = collect_stream()
    assert parity.same_embeddings(first, alone)
    assert (first == collect_stream()).all()
    assert list(encoder.embed_stream([])) == []


def test_embed_stream_yields_before_the_input_ends(encoder: SpeakerEncoder) -> None:
    """The stream reads at most two batches ahead if all utterances have the same length."""
    n_read = 0

    def endless_waveforms() -> Iterator[np.ndarray]:
        nonlocal n_read
        while True:
            n_read += 1
            yield make_noise(16000, n_read)

    stream = encoder.embed_stream(endless_waveforms())
    for turn in range(3):
        assert next(stream)[0] == tuple(range(16 * turn, 16 * turn + 16))
        assert n_read <= 16 * (turn + 2)


@given(lengths=st.lists(st.integers(1040, 700_000), max_size=60), devices=st.sampled_from([1, 8]))
def test_plan_contains_every_utterance_once(lengths: list[int], devices: int) -> None:
    batches = Buckets(RATE, devices).plan(lengths)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(lengths)))
    for batch in batches:
        assert all(lengths[index] <= batch.samples for index in batch.indices)
        assert len(batch.indices) <= batch.rows
        assert batch.rows % devices == 0
        assert batch.rows == len(batch.indices) or devices > 1


@given(st.integers(1, 10**9))
def test_bucket_length_fits_the_utterance_with_little_padding(n_samples: int) -> None:
    bucket = bucket_length(n_samples, 16000)
    assert bucket >= n_samples
    assert bucket == 16000 or bucket <= 1.25 * n_samples
    assert bucket_length(bucket, 16000) == bucket
    assert bucket_length(n_samples + 1, 16000) >= bucket


def test_all_input_types_give_the_same_embedding(encoder: SpeakerEncoder, tmp_path: Path) -> None:
    samples = (make_noise(RATE) * 32767).astype(np.int16)
    data = wav_bytes(samples)
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    as_float = samples / np.float32(32768)
    sources = [
        str(path),
        path,
        data,
        io.BytesIO(data),
        samples,
        samples.astype(np.int32) << 16,
        as_float,
        as_float.astype(np.float64),
        jnp.asarray(as_float),
        np.stack([as_float] * 3, axis=1),
        wav_bytes(samples, format="FLAC"),
    ]
    embeddings = encoder.embed(sources)
    assert embeddings.dtype == np.float32
    assert parity.same_embeddings(embeddings, np.repeat(embeddings[:1], len(embeddings), axis=0))


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 8), (44100, 2), (192000, 1)])
def test_sample_rate_and_channel_count_hardly_change_the_embedding(
    three_block_encoder: SpeakerEncoder, rate: int, channels: int
) -> None:
    """The embedding of a resampled mix of tones is close to the embedding at the model's sample rate."""

    def mix_tones(at: int) -> np.ndarray:
        time = np.arange(at) / at
        return sum(0.1 * np.sin(2 * math.pi * f * time) * (1 + np.sin(9 * time)) for f in (210, 730, 1900))

    other = np.stack([mix_tones(rate)] + [make_noise(rate, c) for c in range(1, channels)], axis=1)
    a, b = three_block_encoder.embed([wav_bytes(other, rate), mix_tones(RATE)])
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
    c = three_block_encoder.embed(np.float32(other), sample_rate=rate)[0]
    assert a @ c / np.linalg.norm(a) / np.linalg.norm(c) > 0.999


def test_too_short_recording_is_refused(encoder: SpeakerEncoder, no_type_checks: None) -> None:
    with pytest.raises(AudioError, match=r"1039 samples.*needs 1040.*short='repeat'"):
        encoder.embed(make_noise(1039))
    repeated = encoder.embed(make_noise(700), short="repeat")
    assert parity.same_embeddings(repeated, encoder.embed(np.resize(make_noise(700), 1040)))
    with pytest.raises(ConfigError, match="short"):
        encoder.embed(make_noise(2000), short="pad")  # type: ignore[arg-type]


def test_silence_warns_and_returns_an_embedding(encoder: SpeakerEncoder) -> None:
    with pytest.warns(SilenceWarning, match="no signal"):
        embeddings = encoder.embed([np.zeros(RATE, np.float32)])
    assert np.isfinite(embeddings).all()


def test_embed_of_an_empty_list(encoder: SpeakerEncoder) -> None:
    assert encoder.embed([]).shape == (0, 192)


def test_verify_decides_at_the_threshold_inclusive(encoder: SpeakerEncoder) -> None:
    a, b = make_noise(RATE, 1), make_noise(2 * RATE, 2)
    answer = encoder.verify(a, b)
    embeddings = encoder.embed([a, b])
    assert answer.score == pytest.approx(float(ecapa_jax.cosine(*embeddings)), abs=1e-6)
    assert answer.threshold == 0.5
    assert answer.same_speaker is (answer.score >= 0.5)
    assert encoder.verify(a, b, threshold=answer.score).same_speaker is True
    assert encoder.verify(a, b, threshold=math.nextafter(answer.score, 2)).same_speaker is False
    assert encoder.verify(a, a).score == pytest.approx(1.0, abs=1e-6)
    without = SpeakerEncoder(encoder.config, encoder.variables).verify(a, b)
    assert (without.same_speaker, without.threshold) == (None, None)


@pytest.mark.parametrize("threshold", [1.1, -1.01, math.nan, math.inf])
def test_threshold_out_of_range_is_refused(encoder: SpeakerEncoder, threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        encoder.verify(make_noise(RATE), make_noise(RATE), threshold=threshold)


def test_scores_subtract_the_mean_if_the_model_requires_it(encoder: SpeakerEncoder) -> None:
    mean = make_noise(192)
    centred = SpeakerEncoder(
        encoder.config, encoder.variables, scoring=Scoring(subtract_mean=True), embedding_mean=mean
    )
    a, b = make_noise(192, 1), make_noise(192, 2)
    assert centred.score(a, b) == pytest.approx(float(ecapa_jax.cosine(a - mean, b - mean)), abs=1e-6)
    with pytest.raises(ConfigError, match="mean"):
        SpeakerEncoder(encoder.config, encoder.variables, scoring=Scoring(subtract_mean=True))


def test_pipeline_has_the_results_of_modelscope(encoder: SpeakerEncoder, tmp_path: Path) -> None:
    pipeline = SpeakerVerificationPipeline(encoder)
    a, b = (make_noise(RATE, seed) for seed in (1, 2))
    paths = []
    for name, samples in (("one.a.wav", a), ("two.wav", b)):
        paths.append(str(tmp_path / name))
        soundfile.write(paths[-1], samples, RATE, subtype="FLOAT")
    score = round(encoder.verify(a, b).score, 5)
    assert pipeline(paths) == {"score": score, "text": "yes" if score >= 0.5 else "no"}
    assert pipeline([a, b], thr=-1.0)["text"] == "yes"
    assert pipeline([a, b], thr=1.0)["text"] == "no"
    assert pipeline([a]) == {"text": "No similarity score output"}
    result = pipeline(paths, output_emb=True, save_dir=str(tmp_path / "out"))
    assert set(result) == {"outputs", "embs"}
    assert result["embs"].shape == (2, 192)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "one.a.npy"), result["embs"][0])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.a.npy", "two.npy"]


def test_pipeline_divides_integers_by_32768_and_uses_the_first_channel(encoder: SpeakerEncoder, tmp_path: Path) -> None:
    pipeline = SpeakerVerificationPipeline(encoder)
    ints = (make_noise(RATE) * 32767).astype(np.int64)
    embs = pipeline([ints, ints.astype(np.int16), ints / 32768], output_emb=True)["embs"]
    np.testing.assert_array_equal(embs[0], embs[1])
    np.testing.assert_array_equal(embs[0], embs[2])
    stereo = tmp_path / "stereo.wav"
    soundfile.write(stereo, np.stack([make_noise(RATE, 1), make_noise(RATE, 2)], 1), RATE, subtype="FLOAT")
    first = pipeline([str(stereo), make_noise(RATE, 1)], output_emb=True)["embs"]
    assert parity.same_embeddings(first[:1], first[1:])


def test_pipeline_refuses_the_inputs_that_modelscope_refuses(
    encoder: SpeakerEncoder, no_type_checks: None, tmp_path: Path
) -> None:
    pipeline = SpeakerVerificationPipeline(encoder)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        pipeline([make_noise(RATE)] * 2, thr=1.5)
    with pytest.raises(ValueError, match="paths, URLs and NumPy"):
        pipeline([b"bytes", make_noise(RATE)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="shape"):
        pipeline([make_noise(RATE)[None], make_noise(RATE)])
    with pytest.raises(ConfigError, match="thr"):
        SpeakerVerificationPipeline(SpeakerEncoder(encoder.config, encoder.variables))([make_noise(RATE)] * 2)
    (tmp_path / "b").mkdir()
    twins = [str(tmp_path / "a.wav"), str(tmp_path / "b" / "a.flac")]
    for path in twins:
        soundfile.write(path, make_noise(RATE), RATE)
    with pytest.raises(ConfigError, match="the same file name"):
        pipeline(twins, save_dir=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="speaker-verification"):
        ecapa_jax.pipeline("diarization")  # type: ignore[arg-type]


def test_packaged_model_loads_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = ecapa_jax.load()
    assert encoder.sample_rate == RATE
    assert -1 < encoder.scorer.scoring.threshold < 1
    audio = Path(__file__).parents[1] / "examples" / "audio"
    same = encoder.verify(audio / "rms_1.flac", audio / "rms_2.flac")
    other = encoder.verify(audio / "rms_1.flac", audio / "awb_2.flac")
    assert same.same_speaker
    assert same.score > other.score + 0.3


def test_load_refuses_invalid_arguments(no_type_checks: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of: float32, bfloat16"):
        ecapa_jax.load(dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(ecapa_jax.BundleError, match="convert"):
        ecapa_jax.load("speechbrain")
    with pytest.raises(ecapa_jax.BundleError, match="not a bundle"):
        ecapa_jax.load(tmp_path / "nothing")


def test_assigned_variables_are_used_by_the_next_call(encoder: SpeakerEncoder) -> None:
    """The encoder discards the folded variables of the old weights and does not compile again."""
    changed = SpeakerEncoder(encoder.config, encoder.variables)
    before, fingerprint = changed.embed(make_noise(RATE)), changed.fingerprint
    other = variables_of(encoder.config.ecapa, random_tensors(encoder.config.ecapa, seed=1))
    changed.variables = other
    assert parity.relative_error(changed.embed(make_noise(RATE)), before) > 0.1
    assert changed.fingerprint != fingerprint
    changed.variables = encoder.variables
    assert np.array_equal(changed.embed(make_noise(RATE)), before)
    assert changed.programs.compile_count == 1


def test_fingerprint_differs_for_other_weights_or_front_end(tmp_path):
    """Two copies of a model have the same fingerprint."""
    bundle, other = make(), make(seed=1)
    hamming = dataclasses.replace(CONFIG, fbank=dataclasses.replace(CONFIG.fbank, window="hamming"))
    copies = [load_bundle(save_bundle(bundle, tmp_path / name)) for name in "ab"]
    first, second = (SpeakerEncoder.from_bundle(copy).fingerprint for copy in copies)
    assert first == second
    assert first != SpeakerEncoder.from_bundle(other).fingerprint
    assert first != SpeakerEncoder.from_bundle(dataclasses.replace(bundle, config=hamming)).fingerprint
