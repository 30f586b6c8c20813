"""Tests of converting pyannote's segmentation-3.0 from Hugging Face's layout without executing code in it."""

import os

import jax
import numpy as np
import pytest

from ecapa_jax.convert.segmentation import find_segmentation, read_segmentation, sinc_filters
from ecapa_jax.diarization.segmentation import load_weights
from ecapa_jax.errors import BundleError, ConversionError
from helpers.cli import run, run_refused
from helpers.segmentation_files import opcodes, published, pytorch_state, with_filters
from helpers.torch_zip_writer import Call, write_torch_zip


@pytest.fixture(scope="module")
def state():
    return with_filters(pytorch_state(load_weights()))


@pytest.fixture
def folder(tmp_path, state, monkeypatch):
    """A folder with the files of the repository."""
    folder = tmp_path / "segmentation-3.0"
    folder.mkdir()
    (folder / "config.yaml").write_text("task:\n  _target_: pyannote.audio.tasks.SpeakerDiarization\n")
    write_torch_zip(folder / "pytorch_model.bin", published(state, monkeypatch))
    return folder


@pytest.mark.parametrize("given", ["", "pytorch_model.bin"])
def test_published_layout_is_converted_to_one_file(capsys, tmp_path, folder, state, given):
    out = tmp_path / "overlap.safetensors"
    result = run(capsys, "convert", folder / given, "-o", out)
    assert (result.code, result.out) == (0, f"{out}: pyannote's segmentation-3.0, 1,489,169 parameters\n")
    weights, packaged = load_weights(out), load_weights()
    assert jax.tree.structure(weights) == jax.tree.structure(packaged)
    for ours, theirs in zip(jax.tree.leaves(weights["lstm"]), jax.tree.leaves(packaged["lstm"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    bank = [state[f"sincnet.conv1d.0.filterbank.{name}"] for name in ("low_hz_", "band_hz_", "n_", "window_")]
    np.testing.assert_array_equal(weights["sinc"]["kernel"], sinc_filters(*bank))
    assert b"MIT" in out.read_bytes()
    assert "--force" in run_refused(capsys, tmp_path, "convert", folder, "-o", out)
    assert "must end in .safetensors" in run_refused(capsys, tmp_path, "convert", folder, "-o", tmp_path / "bundle")


def test_plain_state_dict_is_read(tmp_path, state):
    write_torch_zip(tmp_path / "a.bin", state)
    assert find_segmentation(tmp_path / "a.bin") == tmp_path / "a.bin"
    assert len(read_segmentation(tmp_path / "a.bin")) == 31


class CodeInPickle:
    """An object whose pickle runs code if PyTorch loads it."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (opcodes(CodeInPickle()), "mkdir"),
        (Call("builtins", "eval", ("1",)), "builtins.eval"),
        (Call("pyannote.audio.core.model", "Model", ()), "pyannote.audio.core.model.Model"),
    ],
)
@pytest.mark.parametrize("key", ["hyper_parameters", "state_dict"])
def test_hyperparameters_that_name_code_are_refused_and_not_executed(
    capsys, tmp_path, state, monkeypatch, beside, named, key
):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": dict(state), "hyper_parameters": {}}
    content[key]["task"] = beside
    write_torch_zip(tmp_path / "pytorch_model.bin", content)
    message = run_refused(capsys, tmp_path, "convert", tmp_path / "pytorch_model.bin", "-o", tmp_path / "x.safetensors")
    assert named in message
    assert "none of it was run" in message


def test_other_network_is_refused(capsys, tmp_path, state):
    for name in ("classifier.weight", "lstm.weight_hh_l3", "sincnet.norm1d.2.bias"):
        changed = {key: value for key, value in state.items() if key != name}
        write_torch_zip(tmp_path / "a.bin", {"state_dict": changed})
        assert name in run_refused(capsys, tmp_path, "convert", tmp_path / "a.bin", "-o", tmp_path / "x.safetensors")
    write_torch_zip(tmp_path / "a.bin", {"state_dict": state | {"classifier.weight": np.zeros((4, 128), np.float32)}})
    with pytest.raises(ConversionError, match="another shape"):
        read_segmentation(tmp_path / "a.bin")


def test_files_without_segmentation_weights_are_refused(tmp_path, state):
    from safetensors.numpy import save

    write_torch_zip(tmp_path / "a.bin", state)
    good = {name: np.ascontiguousarray(array) for name, array in read_segmentation(tmp_path / "a.bin").items()}
    path = tmp_path / "x.safetensors"
    for content, why in (
        (b"", "damaged"),
        (b"\xff" * 100, "damaged"),
        (save(good)[:-4], "damaged"),
        (save({name: array for name, array in good.items() if name != "linear.0.bias"}), "other arrays"),
        (save(good | {"linear.0.bias": np.full(128, np.nan, np.float32)}), "not finite"),
    ):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=why):
            load_weights(path)
    with pytest.raises(BundleError, match="can't be read"):
        load_weights(tmp_path / "nowhere")
    assert find_segmentation(path) is None
    assert find_segmentation(tmp_path) is None
