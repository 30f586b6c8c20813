"""Tests of the published figures that reports show beside measured ones."""

from ecapa_jax.convert.sources import speechbrain, three_d_speaker
from ecapa_jax.evaluation.presets import PRESETS, published_figures


def test_published_figures_of_converted_models():
    for family in (three_d_speaker.FAMILY, speechbrain.FAMILY):
        for model in family.published:
            provenance = {"published": {**model.figures, "note": "of the published model"}}
            found = published_figures(PRESETS["voxceleb1-o"], provenance)
            assert found["VoxCeleb1-O EER %"] == model.figures["VoxCeleb1-O EER %"]
            assert found["source"] == model.figures["source"]
            assert found["note"] == "of the published model"
            assert not any(key.startswith(("VoxCeleb1-E", "VoxCeleb1-H")) for key in found)


def test_models_without_published_figures():
    assert published_figures(PRESETS["voxceleb1-o"], {}) == {}
    assert published_figures(PRESETS["voxceleb1-h"], {"published": {"VoxCeleb1-O EER %": 0.9, "source": "x"}}) == {}
