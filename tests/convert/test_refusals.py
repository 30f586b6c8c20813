"""Tests of converting RDINO, SDPN, mvector and training outputs, and of the messages for other networks and files."""

import dataclasses

import numpy as np
import pytest

from ecapa_jax.convert.run import convert
from ecapa_jax.errors import ConversionError
from ecapa_jax.presets import PRESETS
from helpers.checkpoints import CONFIG, HYPERPARAMS, modelscope, prefixed, tensors
from helpers.torch_zip_writer import torch_zip_bytes, write_torch_zip
from helpers.trees import assert_same_leaves
from helpers.weights import variables_of

EXPECTED = variables_of(CONFIG.ecapa, tensors())
ONE = np.ones((2, 2, 1), np.float32)


def conversion_error(source, **options):
    with pytest.raises(ConversionError) as error:
        convert(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def teacher_tensors():
    student = {"module.backbone.fc.conv.weight": ONE}
    return {"student": student, "teacher": prefixed("module.backbone.", tensors()) | {"module.head.w": ONE}, "epoch": 9}


@pytest.mark.parametrize(
    ("name", "family"), [("pretrained_rdino.pth", "rdino"), ("rdino.pth", "rdino"), ("sdpn.pth", "sdpn")]
)
def test_teacher_of_a_self_supervised_model_is_converted(tmp_path, name, family):
    source = modelscope(tmp_path, teacher_tensors(), name, type="rdino_ecapa-tdnn-sv")
    bundle = convert(source)
    assert bundle.provenance["family"] == family
    assert bundle.config.fbank == PRESETS["rdino"].fbank
    assert bundle.config.fbank.normalization == "instance"
    assert_same_leaves(bundle.variables, EXPECTED)
    assert set(bundle.source_extra) >= {"module.head.w"}
    other = convert(source, family="ssl-modelscope")
    assert other.config.fbank == PRESETS["3dspeaker"].fbank
    assert_same_leaves(other.variables, EXPECTED)


def test_mvector_is_recognized_by_name_and_prefix(tmp_path):
    write_torch_zip(tmp_path / "model.pth", prefixed("0.", tensors()) | {"1.weight": ONE})
    bundle = convert(tmp_path)
    assert "1.weight" in bundle.source_extra
    assert bundle.provenance["family"] == "mvector"
    assert bundle.config == dataclasses.replace(PRESETS["mvector"], ecapa=CONFIG.ecapa)


def test_training_outputs_are_converted(tmp_path):
    run = tmp_path / "exp" / "models"
    for epoch in (9, 70, 60):
        folder = run / f"CKPT-EPOCH-{epoch}-00"
        folder.mkdir(parents=True)
        write_torch_zip(folder / "embedding_model.ckpt", tensors(seed=epoch))
        write_torch_zip(folder / "classifier.ckpt", {"weight": ONE})
    for source in (run, run.parent):
        bundle = convert(source)
        assert bundle.provenance["family"] == "3dspeaker"
        assert_same_leaves(bundle.variables, variables_of(CONFIG.ecapa, tensors(seed=70)))
    save = tmp_path / "results" / "save"
    (save / "CKPT+2026-01-02+03-04-05+00").mkdir(parents=True)
    write_torch_zip(save / "CKPT+2026-01-02+03-04-05+00" / "embedding_model.ckpt", tensors())
    (tmp_path / "results" / "hyperparams.yaml").write_text(HYPERPARAMS)
    assert convert(save.parent).provenance["family"] == "speechbrain"
    (save / "CKPT+2026-01-03+03-04-05+00").mkdir()
    write_torch_zip(save / "CKPT+2026-01-03+03-04-05+00" / "embedding_model.ckpt", tensors())
    assert "2 checkpoints (CKPT+2026-01-02+03-04-05+00, CKPT+2026-01-03+03-04-05+00): give" in conversion_error(save)


def test_bundles_and_runs_of_this_library_are_refused(tmp_path):
    bundle = tmp_path / "run" / "bundle"
    (bundle / "checkpoint").mkdir(parents=True)
    (bundle / "model.json").write_text("{}")
    assert f"{bundle} is already a bundle of ecapa-jax: use it directly with --model {bundle}" in conversion_error(
        bundle
    )
    assert "use it directly with --model" in conversion_error(bundle.parent)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["frontend.upstream.upstream.model.mask_emb", "encoder.conv.weight"], "WavLM or another self-supervised"),
        (["hifigan_decoder.speaker_encoder.conv1.weight"], "a part of XTTS, whose speaker encoder is a ResNet"),
        (["layer1.conv.weight", "layer2.0.conv.weight", "layer2.1.convs.0.weight"], "no weights of it were published"),
        (["speaker_encoder.blocks.0.conv.weight", "speaker_encoder.blocks.1.tdnn1.conv.weight"], "use it with transf"),
    ],
)
def test_error_for_other_networks_says_what_to_use(tmp_path, names, words):
    write_torch_zip(tmp_path / "model.pt", dict.fromkeys(names, ONE))
    assert words in conversion_error(tmp_path / "model.pt")


ONNX = b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\xd6\x03\x0a\x42\x0a\x05feats"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "voxceleb_ECAPA512.onnx",
            ONNX,
            "an ONNX model, whose weights are fused and renamed; convert its avg_model.pt",
        ),
        ("ecapa2.pt", torch_zip_bytes({}, members={"constants.pkl": b""}), "ECAPA2, another network"),
        ("model.pdparams", b"\x80\x04\x95", "of PaddlePaddle; PaddleSpeech's ECAPA-TDNN is a port"),
    ],
)
def test_error_for_other_files_says_what_to_use(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    assert words in conversion_error(tmp_path / name)
