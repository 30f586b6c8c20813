import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest

from helpers.bundles import contents
from helpers.checkpoints import modelscope, tensors
from helpers.cli import run, run_refused, write_wav
from helpers.privileges import unprivileged
from helpers.sounds import COMPLETE, encode, sound
from helpers.torch_zip_writer import Call, write_torch_zip


def float_wav(samples):
    return encode(np.asarray(samples, np.float32), subtype="FLOAT")


BAD_FILES = {
    "empty": b"",
    "text": b"this is no sound\n" * 20,
    "web page": b"<!DOCTYPE html><html></html>",
    "truncated flac": COMPLETE["flac"][:-5000],
    "truncated wav": COMPLETE["wav"][:-5000],
    "not a number": float_wav([0.1, np.nan, 0.2] * 6000),
    "infinite": float_wav([0.1, np.inf] * 9000),
    "no samples": encode(np.zeros(0, np.float32)),
    "one sample": encode(np.ones(1, np.float32) / 2),
    "too short": encode(sound(0.06)),
    "unscaled": float_wav(30000 * sound(1.0)),
}


@pytest.mark.usefixtures("one_encoder")
@pytest.mark.parametrize("verb", ["verify", "embed"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_error_names_the_invalid_recording(capsys, tmp_path, model, wav, verb, kind):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(BAD_FILES[kind])
    rest = [] if verb == "verify" else ["-o", tmp_path / "out.npz"]
    assert str(bad) in run_refused(capsys, tmp_path, verb, wav, bad, "--model", model, *rest)
    assert str(bad) in run_refused(capsys, tmp_path, verb, bad, wav, "--model", model, "--json", "--quiet", *rest)


@pytest.mark.parametrize(("kind", "words"), [("missing", "no such file"), ("directory", "is a directory")])
def test_error_names_a_missing_file_or_a_folder(capsys, tmp_path, model, wav, kind, words):
    bad = tmp_path / "bad.wav"
    if kind == "directory":
        bad.mkdir()
    for verb, rest in (("verify", []), ("embed", ["-o", tmp_path / "out.npz"])):
        message = run_refused(capsys, tmp_path, verb, wav, bad, "--model", model, *rest)
        assert str(bad) in message
        assert words in message


def test_error_names_an_unreachable_url(capsys, tmp_path, model, wav):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/a.wav?token=secret"
    message = run_refused(capsys, tmp_path, "verify", wav, url, "--model", model)
    assert f"127.0.0.1:{port}/a.wav" in message
    assert "secret" not in message


@pytest.mark.parametrize("threshold", ["1.0001", "-2", "nan", "inf", "-inf", "25"])
def test_threshold_out_of_range_is_refused(capsys, tmp_path, model, wav, threshold):
    message = run_refused(capsys, tmp_path, "verify", wav, wav, "--model", model, "--threshold", threshold)
    assert "lies in [-1, 1]" in message


def test_error_names_a_model_that_can_not_be_loaded(capsys, tmp_path, model, wav):
    def assert_load_fails(path, words):
        for arguments in (("verify", wav, wav, "--model", path), ("info", path)):
            assert words in run_refused(capsys, tmp_path, *arguments)

    assert_load_fails(tmp_path / "nothing", "nothing is not a bundle directory")
    assert_load_fails(wav, "a.wav is a file, not a bundle directory")
    assert_load_fails(tmp_path, "is not a whole bundle (no model.json)")
    assert_load_fails("3dspeaker", "3dspeaker is a preset without packaged weights")
    assert_load_fails("hf:someone", "takes ORG/NAME")
    half = shutil.copytree(model, tmp_path / "half")
    shutil.rmtree(half / "checkpoint" / "d")
    assert_load_fails(half, "is missing: convert the model again")
    (half / "model.json").write_bytes((model / "model.json").read_bytes()[:500])
    assert_load_fails(half, "model.json is damaged")
    document = json.loads((model / "model.json").read_text())
    (half / "model.json").write_text(json.dumps({**document, "schema": 7}))
    assert_load_fails(half, "has schema 7, this version reads 1")


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("missing/out.npz", "there is no folder"),
        ("out.npy", "must end in .npz"),
        ("out", "must end in .npz"),
        ("old.npz", "exists: choose another output or pass --force"),
        ("folder.npz", "exists: choose another output"),
        ("dangling.npz", "exists: choose another output or pass --force"),
    ],
)
def test_embed_refuses_an_invalid_output_before_loading_the_model(capsys, tmp_path, wav, out, words):
    (tmp_path / "old.npz").write_text("precious")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "dangling.npz").symlink_to(tmp_path / "nowhere")
    arguments = ["embed", wav, "-o", tmp_path / out, "--model", "nothing there"]
    assert words in run_refused(capsys, tmp_path, *arguments)
    assert ("nothing there" in run_refused(capsys, tmp_path, *arguments, "--force")) == ("--force" in words)


def test_embed_without_recordings_is_refused(capsys, tmp_path, model):
    assert "no recordings given" in run_refused(capsys, tmp_path, "embed", "-o", tmp_path / "x.npz", "--model", model)


def test_failed_embed_writes_nothing(capsys, tmp_path, model, wav):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    arguments = ["embed", wav, bad, wav, "--model", model, "-o", tmp_path / "out.npz"]
    assert str(bad) in run_refused(capsys, tmp_path, *arguments)
    (tmp_path / "out.npz").write_text("precious")
    assert str(bad) in run_refused(capsys, tmp_path, *arguments, "--force")


def changed_tensors(change):
    content = tensors()
    change(content)
    return content


BAD_CHECKPOINTS = {
    "one missing": (changed_tensors(lambda t: t.pop("fc.conv.bias")), "missing tensor fc.conv.bias"),
    "one extra": (changed_tensors(lambda t: t.update(more=np.ones(2))), "unexpected tensor more (2,)"),
    "one transposed": (
        changed_tensors(lambda t: t.update({"fc.conv.weight": t["fc.conv.weight"].T})),
        "fc.conv.weight has shape (1, 96, 192)",
    ),
    "not finite": (changed_tensors(lambda t: t["fc.conv.bias"].__setitem__(0, np.nan)), "fc.conv.bias holds NaN"),
    "code": (Call("os", "system", ("touch ran",)), "names os.system"),
    "resnet": ({"conv1.weight": np.ones(2), "layer1.0.conv1.weight": np.ones(2)}, "this is a ResNet, another network"),
    "cam++": ({"head.conv1.weight": np.ones(2), "xvector.tdnn.linear.weight": np.ones(2)}, "this is a CAM++, another"),
    "nothing": ({"epoch": 3}, "has no dict of tensors"),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_error_names_the_invalid_checkpoint(capsys, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content, words = BAD_CHECKPOINTS[kind]
    write_torch_zip(tmp_path / "ecapa_tdnn.bin", content)
    message = run_refused(capsys, tmp_path, "convert", "ecapa_tdnn.bin", "-o", "bundle")
    assert message.startswith("ecapa-jax: ecapa_tdnn.bin: ")
    assert words in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.bin", "-o", "b"], "nothing.bin: no such file or directory"),
        (["empty", "-o", "b"], "none of the known weight files"),
        (["a.wav", "-o", "b"], "it has an unknown format"),
        (["text.bin", "-o", "b"], "it is a text file"),
        (["cut.bin", "-o", "b"], "damaged or cut off"),
        (["model.pt", "-o", "b"], "model.pt could be 3dspeaker or rdino or sdpn"),
        (["model.pt", "-o", "b", "--family", "kaldi"], "unknown family 'kaldi'; known: 3dspeaker, rdino"),
        (["published", "-o", "b", "--dilations", "2,3"], "has 3 SE-Res2 blocks, but 2 dilations are known"),
        (["published", "-o", "b", "--dilations", "2,x"], "--dilations '2,x' must be positive integers"),
        (["published", "-o", "b", "--dilations", "2,0,1"], "--dilations '2,0,1' must be positive integers"),
        (["published", "-o", "b", "--dilations", ""], "--dilations '' must be positive integers"),
        (["published", "-o", "missing/b"], "there is no folder"),
        (["published", "-o", "bundle"], "exists: choose another output or pass --force"),
        (["published", "-o", "empty"], "exists: choose another output or pass --force"),
        (["published", "-o", "a.wav", "--force"], "a.wav is not a bundle: it will not be replaced"),
        (["published", "-o", "published", "--force"], "published is not a bundle: it will not be replaced"),
        (["model.pt", "-o", "bundle", "--force"], "pass --family"),
    ],
)
def test_convert_refuses_invalid_arguments_and_writes_nothing(
    capsys, tmp_path, model, monkeypatch, wav, arguments, words
):
    monkeypatch.chdir(tmp_path)
    modelscope(tmp_path / "published")
    shutil.copy(tmp_path / "published" / "ecapa_tdnn.bin", "model.pt")
    Path("cut.bin").write_bytes(Path("model.pt").read_bytes()[:-3000])
    Path("text.bin").write_text("no weights\n")
    Path("empty").mkdir()
    shutil.copytree(model, "bundle")
    assert words in run_refused(capsys, tmp_path, "convert", *arguments)


def test_folder_without_write_permission_is_reported(capsys, model):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shutil.copytree(model, root / "model")
        modelscope(root / "published")
        wav = write_wav(root / "a.wav")
        (root / "locked").mkdir(mode=0o555)
        (root / "open").mkdir()
        for path in (root, root / "model", root / "published"):
            path.chmod(0o755)
        embed = ["embed", wav, "--model", root / "model", "-o"]
        convert = ["convert", root / "published", "-o"]
        assert (
            run(capsys, *embed, root / "open" / "out.npz").code == 0
        )  # imports all modules, as `unprivileged` requires
        assert run(capsys, *convert, root / "open" / "b").code == 0
        before = contents(root)
        with unprivileged():
            for command, out in ((embed, root / "locked" / "out.npz"), (convert, root / "locked" / "b")):
                result = run(capsys, *command, out)
                assert (result.code, result.out) == (2, "")
                assert result.err.startswith(f"ecapa-jax: {out} can't be written: Permission denied")
                assert result.err.count("\n") == 1
        assert contents(root) == before
        assert os.listdir(root / "locked") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that it can't read afterwards")
def test_path_below_an_unreadable_folder_is_reported(capsys, model):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "closed").mkdir()
        shutil.copytree(model, root / "closed" / "model")
        root.chmod(0o755)
        (root / "closed").chmod(0o700)
        inside = root / "closed" / "x"
        with unprivileged():
            for arguments in (
                ["info", root / "closed" / "model"],
                ["verify", inside, inside, "--model", root / "closed" / "model"],
                ["convert", inside, "-o", root / "b"],
                ["convert", root, "-o", inside],
                ["embed", inside, "-o", inside.with_suffix(".npz")],
            ):
                result = run(capsys, *arguments)
                assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
