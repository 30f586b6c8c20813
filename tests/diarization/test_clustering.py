"""Tests of clustering with embeddings that are drawn around known centres."""

import numpy as np
import pytest

from ecapa_jax.diarization.clustering import (
    SpeakerCount,
    cluster,
    merge_by_cosine,
    renumber,
    spectral_clustering,
    unit,
)
from ecapa_jax.diarization.settings import DiarizationSettings


def draw_windows(speakers, each=30, noise=0.12, seed=0, dim=64):
    """Draws windows of speakers in turn, each speaker around a random direction."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((speakers, dim)))
    truth = np.repeat(np.arange(speakers), each)
    rows = centres[truth] + noise * rng.standard_normal((len(truth), dim))
    spans = np.stack([np.arange(len(truth)) * 75, np.arange(len(truth)) * 75 + 150], axis=1)
    return rows.astype(np.float32), spans, truth


def same_partition(labels, truth):
    pairs = set(zip(labels.tolist(), truth.tolist(), strict=True))
    return len(pairs) == len(set(labels.tolist())) == len(set(truth.tolist()))


@pytest.mark.parametrize("speakers", [1, 2, 3, 5, 8, 12])
def test_number_of_speakers_is_estimated(speakers):
    rows, spans, truth = draw_windows(speakers)
    assert same_partition(cluster(rows, spans, SpeakerCount(), DiarizationSettings()), truth)


@pytest.mark.parametrize("given", [1, 2, 3, 4, 7])
def test_given_number_of_speakers_is_used(given):
    rows, spans, _ = draw_windows(3)
    labels = cluster(rows, spans, SpeakerCount(given), DiarizationSettings())
    assert len(np.unique(labels)) == given


@pytest.mark.parametrize("given", [2, 3])
def test_given_number_of_speakers_is_used_for_equal_windows(given):
    rows = np.ones((6, 8), np.float32)
    spans = np.stack([np.arange(6) * 75, np.arange(6) * 75 + 150], axis=1)
    assert len(np.unique(cluster(rows, spans, SpeakerCount(given), DiarizationSettings()))) == given


def test_bounds_of_the_number_of_speakers_are_respected():
    rows, spans, _ = draw_windows(6)
    assert len(np.unique(cluster(rows, spans, SpeakerCount(most=4), DiarizationSettings()))) <= 4
    rows, spans, _ = draw_windows(1)
    assert len(np.unique(cluster(rows, spans, SpeakerCount(least=2), DiarizationSettings()))) >= 2


def test_clustering_in_blocks_finds_the_speakers():
    rows, spans, truth = draw_windows(4, each=60)
    order = np.random.default_rng(1).permutation(len(truth))
    rows, truth = rows[order], truth[order]
    assert same_partition(cluster(rows, spans, SpeakerCount(), DiarizationSettings(block_windows=80)), truth)


def test_one_window_and_no_windows():
    rows, spans, _ = draw_windows(1, each=1)
    assert cluster(rows, spans, SpeakerCount(), DiarizationSettings()).tolist() == [0]
    assert cluster(rows[:0], spans[:0], SpeakerCount(), DiarizationSettings()).tolist() == []


@pytest.mark.parametrize("speakers", [2, 4])
def test_spectral_clustering_estimates_the_number_of_speakers(speakers):
    rows, _, truth = draw_windows(speakers)
    assert same_partition(spectral_clustering(rows, SpeakerCount()), truth)
    assert len(np.unique(spectral_clustering(rows, SpeakerCount(3)))) == 3


def test_similar_centroids_are_merged():
    rows, _, truth = draw_windows(2)
    split = truth * 2 + np.arange(len(truth)) % 2
    assert same_partition(merge_by_cosine(split, rows, 0.8), truth)


def test_labels_are_numbered_in_order_of_appearance():
    assert renumber(np.array([7, 7, 2, 9, 2])).tolist() == [0, 0, 1, 2, 1]
