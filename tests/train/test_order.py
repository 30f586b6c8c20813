"""Tests of the order of examples, and of the loader that reads them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.train.config import AugmentConfig, DataConfig
from ecapa_jax.train.data.manifest import TrainingManifest, read_manifest
from ecapa_jax.train.data.order import Order
from ecapa_jax.train.data.pipeline import AudioCache, Batches, Loader, Rows
from ecapa_jax.train.data.prepare import prepare


def make_manifest(n_utterances: int, n_speakers: int) -> TrainingManifest:
    labels = np.arange(n_utterances) % n_speakers
    return TrainingManifest(
        ids=tuple(f"u{i}" for i in range(n_utterances)),
        files=tuple(f"u{i}.flac" for i in range(n_utterances)),
        indices=np.full(n_utterances, -1, np.int32),
        starts=np.zeros(n_utterances, np.int64),
        samples=np.full(n_utterances, 16000, np.int64),
        labels=labels.astype(np.int32),
        variants=("",) * n_utterances,
        speakers=tuple(f"s{i}" for i in range(n_speakers)),
        rate=16000,
        fingerprint="",
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 8), st.integers(0, 2**31), st.integers(0, 3))
def test_epoch_contains_every_utterance_once(n_utterances, n_speakers, batch_size, seed, epoch):
    n_speakers = min(n_speakers, n_utterances)
    if batch_size > n_utterances:
        with pytest.raises(ConfigError, match="too few"):
            Order(DataConfig(batch_size=batch_size), make_manifest(n_utterances, n_speakers), seed)
        return
    order = Order(DataConfig(batch_size=batch_size), make_manifest(n_utterances, n_speakers), seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    seen = [order.example(step, row).utterance for step in steps for row in range(batch_size)]
    assert len(seen) == len(set(seen)) == n_utterances // batch_size * batch_size


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31), st.integers(0, 30))
def test_batch_drawn_by_speaker_has_no_speaker_twice(n_speakers, batch_size, seed, step):
    held, config = (
        make_manifest(3 * n_speakers, n_speakers),
        DataConfig(batch_size=min(batch_size, n_speakers), sampler="speakers"),
    )
    order = Order(config, held, seed)
    labels = [held.labels[order.example(step, row).utterance] for row in range(config.batch_size)]
    assert len(set(labels)) == len(labels)
    draw_replacement = order.draw_replacement(step, 0, 3)
    assert held.labels[draw_replacement] == labels[0]


def test_draws_of_a_step_do_not_depend_on_earlier_steps():
    one = Order(DataConfig(batch_size=4, speeds=(1.0, 0.9)), make_manifest(40, 5), 7)
    other = Order(DataConfig(batch_size=4, speeds=(1.0, 0.9)), make_manifest(40, 5), 7)
    forward = [one.example(step, row) for step in range(30) for row in range(4)]
    backward = [other.example(step, row) for step in reversed(range(30)) for row in reversed(range(4))]
    assert forward == backward[::-1]
    assert len({example.noise for example in forward}) == len(forward)
    assert {example.speed for example in forward} == {0, 1}
    different = Order(DataConfig(batch_size=4), make_manifest(40, 5), 8)
    assert [different.example(0, row).utterance for row in range(4)] != [e.utterance for e in forward[:4]]


@pytest.fixture(scope="module")
def prepared(collection, tmp_path_factory):
    return read_manifest(prepare(collection, tmp_path_factory.mktemp("prepared")).manifest)


DATA = DataConfig(batch_size=4, crop_seconds=0.8, speeds=(1.0, 0.9, 1.1), threads=3, prefetch=2)


def make_loader(prepared, data=DATA, rows=None, augment=None):
    rows = rows or Rows.span(0, data.batch_size)
    order = Order(data, prepared, 0)
    made = Loader(data, augment or AugmentConfig(), prepared, order, rows)
    return made, lambda step: Batches(made, rows, data, step)


def same_batches(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_batches_can_start_at_any_step_and_be_split_between_processes(prepared):
    _, begin = make_loader(prepared)
    whole = begin(0)
    batches = [next(whole) for _ in range(5)]
    later = begin(3)
    assert same_batches(next(later), batches[3])
    assert same_batches(next(later), batches[4])
    halves = [next(make_loader(prepared, rows=Rows.span(first, 2))[1](2)) for first in (0, 2)]
    joined = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    assert same_batches(joined, batches[2])


@pytest.mark.parametrize("short", ["repeat", "zeros"])
def test_crops_are_complete_and_labels_include_speeds(prepared, short):
    data = dataclasses.replace(DATA, crop_seconds=2.0, short=short)
    _, begin = make_loader(prepared, data)
    iterator, order = begin(0), Order(data, prepared, 0)
    for step in range(3):
        batch = next(iterator)
        for row in range(4):
            example = order.example(step, row)
            speaker = prepared.labels[example.utterance]
            assert batch["labels"][row] == speaker + 5 * example.speed
            used = int(prepared.samples[example.utterance] / data.speeds[example.speed])
            if short == "zeros":
                assert abs(batch["lengths"][row] - used) <= 1
                assert not batch["waveforms"][row, used + 1 :].any()
            else:
                assert batch["lengths"][row] == 32000
                assert batch["waveforms"][row, -8000:].any()
        assert batch["waveforms"].dtype == np.int16


def test_cache_does_not_change_the_batches(prepared):
    plain, cached = (
        make_loader(prepared)[1](0),
        make_loader(prepared, dataclasses.replace(DATA, cache_gigabytes=0.1))[1](0),
    )
    assert all(same_batches(next(plain), next(cached)) for _ in range(6))
    cache = AudioCache(100)
    for key in range(5):
        cache.put(key, np.zeros(20, np.int16))
    assert cache.get(0) is None
    assert cache.get(4) is not None


def test_unreadable_file_is_replaced_and_reported(prepared, tmp_path):
    broken = tmp_path / "broken.flac"
    broken.write_bytes(b"no sound")
    damaged = dataclasses.replace(prepared, files=(str(broken), *prepared.files[1:]))
    made, begin = make_loader(damaged, dataclasses.replace(DATA, sampler="utterances", batch_size=15))
    batch = next(begin(0))
    assert batch["waveforms"].shape[0] == 15
    assert list(made.problems) == [str(broken)]
    nothing = dataclasses.replace(prepared, files=(str(broken),) * len(prepared))
    with pytest.raises(AudioError, match="20 consecutive utterances"):
        make_loader(nothing)[0][0]
