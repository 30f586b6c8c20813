"""Tests of the overlap detection network: shapes, batches, silence. tests/peers compares it with PyTorch."""

import jax
import numpy as np

from ecapa_jax.diarization import segmentation
from helpers.conversations import voice


def test_output_shape():
    assert segmentation.n_frames(segmentation.CHUNK_SAMPLES) == segmentation.CHUNK_FRAMES
    shape = jax.eval_shape(
        segmentation.log_probabilities,
        segmentation.load_weights(),
        jax.ShapeDtypeStruct((2, segmentation.CHUNK_SAMPLES), np.float32),
    ).shape
    assert shape == (2, segmentation.CHUNK_FRAMES, len(segmentation.SETS))


def test_chunk_in_a_batch_equals_chunk_alone():
    segmenter = segmentation.Segmenter()
    sounds = [np.concatenate([voice(2, pitch), np.zeros(160000 - 32000, np.float32)]) for pitch in (100, 150, 230)]
    together = list(segmenter(sounds))
    alone = list(segmenter(sounds[:1]))
    assert len(together) == 3
    np.testing.assert_allclose(together[0], alone[0], atol=2e-3)
    np.testing.assert_allclose(np.exp(together[1]).sum(axis=-1), 1, atol=1e-5)


def test_silence_has_no_active_voice():
    (rows,) = segmentation.Segmenter()([np.zeros(16000, np.float32)])
    assert (rows.argmax(axis=-1) == 0).all()


def test_classes_map_to_sets_of_voices():
    voices = segmentation.active_voices(np.array([0, 3, 6]))
    assert voices.tolist() == [[False, False, False], [False, False, True], [False, True, True]]
