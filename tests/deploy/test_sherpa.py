"""Tests of the export for sherpa-onnx: metadata, features, and the families whose features it can't compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ecapa_jax.bundle.bundle import Bundle, save_bundle
from ecapa_jax.config import FbankConfig
from ecapa_jax.convert.onnx.calibration import calibration_feeds, demo_recordings, make_feature_function
from ecapa_jax.convert.onnx.export import export_onnx
from ecapa_jax.convert.onnx.sherpa import band_map, export_sherpa, framework
from ecapa_jax.errors import ConfigError
from ecapa_jax.presets import PRESETS
from helpers import families, parity
from helpers.cli import run_refused
from helpers.onnx_runs import onnx_runtime
from helpers.weights import shallow_config

FRAMEWORKS = {
    "3dspeaker": "3d-speaker", "mvector": "3d-speaker", "ssl-modelscope": "3d-speaker",
    "wespeaker-c512": "wespeaker", "wespeaker-c1024": "wespeaker", "nemo": "nemo", "nemo-2.5": "nemo",
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_each_family_is_supported_or_refused(preset: str) -> None:
    if preset in FRAMEWORKS:
        assert framework(PRESETS[preset].fbank) == FRAMEWORKS[preset]
        return
    with pytest.raises(ConfigError, match="sherpa-onnx can't make this model's features"):
        framework(PRESETS[preset].fbank)


@pytest.mark.parametrize(
    "change",
    [{"frame_shift": 200}, {"framing": "center_zeros"}, {"waveform_scale": 2.0}, {"n_mels": 60}, {"f_min": 0.0}],
    ids=str,
)
def test_other_kaldi_features_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="can't make"):
        framework(dataclasses.replace(FbankConfig(), **change))


def test_unsupported_family_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, variables = families.config("taoruijie"), families.variables("taoruijie")
    bundle = save_bundle(Bundle(config=config, variables=variables), tmp_path / "bundle")
    arguments = ("export", bundle, "--to", "onnx", "-o", tmp_path / "m.onnx", "--input", "sherpa")
    assert "--input waveform, which includes the front end" in run_refused(capsys, tmp_path, *arguments)


def test_metadata_of_the_export(packaged: Bundle) -> None:
    about = {prop.key: prop.value for prop in export_sherpa(packaged).metadata_props}
    expected = {
        "framework": "3d-speaker", "output_dim": "192", "sample_rate": "16000", "normalize_samples": "1",
        "feature_normalize_type": "global-mean",
    }  # fmt: skip
    assert expected.items() <= about.items()
    assert about["threshold"] == f"{packaged.scoring.threshold:g}"
    assert {"language", "licence", "model"} <= about.keys()


def test_mapped_bands_are_closer_to_the_model_than_those_of_sherpa() -> None:
    config = dataclasses.replace(shallow_config(), fbank=FbankConfig(framing="kaldi_reflect"))
    feed = next(calibration_feeds(config, {"constants": {}}, "waveform", demo_recordings()[:1]))
    ours = make_feature_function(config, {"constants": {}}, "features")(feed)["features"]
    theirs = make_feature_function(config, {"constants": {}}, "sherpa")(feed)["x"]
    weights = band_map(config.fbank)
    assert weights.shape == (80, 80)
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    before, after = (np.sqrt(np.mean(np.square(x - ours))) for x in (theirs, theirs @ weights))
    print(f"{before:.2f} to {after:.2f} nepers")
    assert after < 0.5 * before


def test_sherpa_embedding_equals_that_of_the_assumed_features(packaged: Bundle, tmp_path: Path) -> None:
    """The extractor gives the embedding of the exported network on the features that this library assumes."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="needs the test group")
    model = export_sherpa(packaged)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    extractor = sherpa_onnx.SpeakerEmbeddingExtractor(sherpa_onnx.SpeakerEmbeddingExtractorConfig(str(path)))
    assert extractor.dim == 192
    recording = demo_recordings()[0]
    stream = extractor.create_stream()
    stream.accept_waveform(16000, parity.recordings()[recording.stem])
    stream.input_finished()
    found = np.array(extractor.compute(stream))
    feed = next(calibration_feeds(packaged.config, packaged.variables, "sherpa", [recording]))
    assert parity.relative_error(found, onnx_runtime(model, feed)[0]) <= 2e-3
    waveform = parity.recordings()[recording.stem][None]
    own = {"waveforms": waveform, "lengths": np.array([waveform.shape[1]], np.int64)}
    assert parity.cosine(found, onnx_runtime(export_onnx(packaged), own)[0]) > 0.97


@pytest.mark.parametrize("family", ["nemo", "wespeaker"])
def test_sherpa_runs_each_supported_family(family: str, tmp_path: Path) -> None:
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="needs the test group")
    bundle = Bundle(config=families.config(family), variables=families.variables(family))
    path = tmp_path / "model.onnx"
    path.write_bytes(export_sherpa(bundle).SerializeToString())
    extractor = sherpa_onnx.SpeakerEmbeddingExtractor(sherpa_onnx.SpeakerEmbeddingExtractorConfig(str(path)))
    waveform = parity.recordings()["slt_1"]
    stream = extractor.create_stream()
    stream.accept_waveform(16000, waveform)
    stream.input_finished()
    feed = {"waveforms": waveform[None], "lengths": np.array([len(waveform)], np.int64)}
    similar = parity.cosine(np.array(extractor.compute(stream)), onnx_runtime(export_onnx(bundle), feed)[0])
    print(f"{family}: {similar:.3f}")
    assert similar > 0.9
