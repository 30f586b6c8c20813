import json
import os
import subprocess
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from ecapa_jax import api
from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.errors import EcapaError
from ecapa_jax.scoring.config import Scoring
from ecapa_jax.scoring.scorer import Scorer
from helpers import parity
from helpers.bundles import contents
from helpers.checkpoints import modelscope, speechbrain
from helpers.cli import PROGRAM, run, run_refused, write_wav
from helpers.sounds import sound

EXAMPLES = Path(__file__).parents[2] / "examples" / "audio"
VERBS = ("verify", "embed", "convert", "info", "doctor")


@pytest.fixture
def other_wav(tmp_path):
    rng = np.random.default_rng(3)
    return write_wav(tmp_path / "b.wav", (0.1 * rng.standard_normal(14400)).astype(np.float32))


def test_verify_prints_score_and_decision(capsys, model, wav, other_wav, encoder):
    result = run(capsys, "verify", wav, other_wav, "--model", model)
    assert (result.code, result.err) == (0, "")
    score = encoder.verify(wav, other_wav).score
    lines = [line.split(None, 1) for line in result.out.splitlines()]
    assert lines == [
        ["score", f"{score:.4f}   (cosine, from -1 to 1)"],
        ["threshold", "0.2500"],
        ["same", f"speaker  {'yes' if score >= 0.25 else 'no'}"],
    ]


@pytest.mark.usefixtures("one_encoder")
def test_verify_prints_one_json_object(capsys, model, wav, other_wav, encoder):
    result = run(capsys, "verify", wav, other_wav, "--model", model, "--json", "--threshold", "-1")
    score = encoder.verify(wav, other_wav).score
    assert (result.code, result.err) == (0, "")
    assert result.json == {
        "a": str(wav),
        "b": str(other_wav),
        "score": score,
        "same_speaker": True,
        "threshold": -1.0,
        "score_type": "cosine",
        "speech": [True, True],
        "model": "bundle",
    }
    assert (
        run(capsys, "verify", wav, other_wav, "--model", model, "--json", "--threshold=1").json["same_speaker"] is False
    )
    same = run(capsys, "verify", wav, wav, "--model", model, "--json").json
    assert (same["score"], same["same_speaker"]) == (pytest.approx(1, abs=1e-6), True)


@pytest.mark.usefixtures("one_encoder")
def test_model_without_threshold_prints_a_score_and_asks_for_a_threshold(
    capsys, monkeypatch, model, wav, other_wav, encoder
):
    monkeypatch.setattr(encoder, "scorer", Scorer(Scoring()))
    result = run(capsys, "verify", wav, other_wav, "--model", model)
    assert (result.code, result.out.count("\n")) == (0, 1)
    assert result.err == "this model has no threshold: pass --threshold to get a decision\n"
    assert run(capsys, "verify", wav, other_wav, "--model", model, "--quiet").err == ""
    answer = run(capsys, "verify", wav, other_wav, "--model", model, "--json", "--quiet").json
    assert (answer["same_speaker"], answer["threshold"]) == (None, None)
    assert run(capsys, "verify", wav, other_wav, "--model", model, "--threshold", "0.1").err == ""


@pytest.mark.usefixtures("one_encoder")
def test_verify_refuses_silence_and_embed_warns(capsys, tmp_path, model, wav):
    silent = write_wav(tmp_path / "silent.wav", np.zeros(14400, np.float32))
    for pair in ((silent, wav), (wav, silent), (silent, silent)):
        assert f"{silent} has no signal" in run_refused(capsys, tmp_path, "verify", *pair, "--model", model)
    quiet = run(capsys, "verify", silent, wav, "--model", model, "--quiet")
    assert (quiet.code, quiet.out) == (2, "")
    loud = run(capsys, "embed", silent, wav, "--model", model, "-o", tmp_path / "o.npz", "--json")
    assert (loud.code, loud.json["n"]) == (0, 2)
    assert loud.err.startswith(f"ecapa-jax: warning: {silent} has no signal")
    assert loud.err.count("\n") == 1


def write_valid_recordings(folder):
    stereo, noise = sound(0.9, channels=2), sound(0.9)
    return [
        write_wav(folder / "8 channels.wav", sound(0.9, channels=8)),
        write_wav(folder / "192k.wav", sound(0.9, rate=192_000), rate=192_000),
        write_wav(folder / "8k.wav", sound(0.9, rate=8000), rate=8000),
        write_wav(folder / "int32.wav", noise, subtype="PCM_32"),
        write_wav(folder / "x.flac", noise, kind="FLAC"),
        write_wav(folder / "ünicode.ogg", stereo, kind="OGG"),
        write_wav(folder / "x.mp3", noise, kind="MP3"),
        write_wav(folder / "float.wav", noise, subtype="DOUBLE"),
    ]


def test_embed_accepts_every_kind_of_recording(capsys, tmp_path, model, encoder):
    files, out = write_valid_recordings(tmp_path), tmp_path / "out.npz"
    result = run(capsys, "embed", *files, "--out", out, "--model", model)
    assert (result.code, result.out, result.err) == (0, f"{out}: 8 embeddings of 192 numbers\n", "")
    with np.load(out, allow_pickle=False) as written:
        assert sorted(written) == ["embeddings", "names"]
        assert written["names"].tolist() == [str(path) for path in files]
        embeddings = written["embeddings"]
    assert (embeddings.shape, embeddings.dtype) == ((8, 192), np.float32)
    assert parity.same_embeddings(embeddings, encoder.embed(files))
    # Lossless files of the same sound give the same embedding.
    np.testing.assert_allclose(embeddings[3], embeddings[7], atol=1e-2)
    np.testing.assert_allclose(embeddings[3], embeddings[4], atol=0.05 * np.abs(embeddings[3]).max())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([path.name for path in files] + ["out.npz"])


@pytest.mark.usefixtures("one_encoder")
def test_embed_replaces_the_output_with_force(capsys, tmp_path, model, wav):
    out = tmp_path / "out.npz"
    out.write_text("old")
    assert "--force" in run_refused(capsys, tmp_path, "embed", wav, "-o", out, "--model", model)
    result = run(capsys, "embed", wav, "-o", out, "--model", model, "--force", "--json")
    answer = result.json
    assert answer.pop("padding") == pytest.approx(1 - len(soundfile.read(wav)[0]) / 16000, abs=1e-4)
    assert answer == {"out": str(out), "n": 1, "embedding_dim": 192, "model": "bundle"}
    assert np.load(out)["embeddings"].shape == (1, 192)


@pytest.mark.usefixtures("one_encoder")
def test_embed_writes_windows(capsys, tmp_path, model, encoder):
    files = [write_wav(tmp_path / name, sound(seconds)) for name, seconds in (("a.wav", 2.2), ("b.wav", 0.5))]
    out = tmp_path / "out.npz"
    result = run(capsys, "embed", *files, "-o", out, "--model", model, "--window", "1", "--hop", "0.75")
    assert (result.code, result.out, result.err) == (
        0,
        f"{out}: 4 windows of 2 recordings, embeddings of 192 numbers\n",
        "",
    )
    with np.load(out, allow_pickle=False) as written:
        assert written["names"].tolist() == [str(files[0])] * 3 + [str(files[1])]
        np.testing.assert_allclose(written["starts"], [0, 0.75, 1.2, 0])
        assert written["files"].tolist() == [str(path) for path in files]
        windows = [encoder.embed_windows(path, 1.0, 0.75) for path in files]
        np.testing.assert_array_equal(written["embeddings"], np.concatenate([found.embeddings for found in windows]))
        np.testing.assert_array_equal(written["means"], np.stack([found.mean for found in windows]))
    result = run(capsys, "embed", files[1], "-o", out, "--force", "--model", model, "--window", "1", "--json")
    expected = {"out": str(out), "n": 1, "windows": 1, "embedding_dim": 192, "window": 1.0, "hop": 0.5}
    assert result.json == {**expected, "model": "bundle"}


@pytest.mark.usefixtures("one_encoder")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hop", "1"], "--hop needs --window"),
        (["--window", "0.01"], "too short: this model needs"),
        (["--window", "nan"], "too short"),
        (["--window", "1", "--hop", "2"], "at most the window"),
        (["--window", "1", "--hop", "-1"], "above 0"),
    ],
)
def test_invalid_windows_are_refused(capsys, tmp_path, model, wav, options, words):
    arguments = ["embed", wav, "-o", tmp_path / "out.npz", "--model", model, *options]
    assert words in run_refused(capsys, tmp_path, *arguments)


def test_windows_with_a_manifest_are_refused(capsys, tmp_path):
    arguments = ["embed", "--manifest", "m.csv", "--output", tmp_path / "out", "--window", "3"]
    assert "--window is for FILES" in run_refused(capsys, tmp_path, *arguments)


def test_convert_writes_a_bundle(capsys, tmp_path):
    source, out = modelscope(tmp_path / "published"), tmp_path / "bundle"
    result = run(capsys, "convert", source, "-o", out)
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        f"{out}: 3dspeaker, {load_bundle(out).parity['parameters']:,} parameters\n"
        "200 of 200 tensors come back bit for bit, 31 not used in inference\n"
        "threshold: 0.36\n"
    )
    assert load_bundle(out).scoring.threshold == 0.36
    before = contents(out)
    assert "--force" in run_refused(capsys, tmp_path, "convert", source, "-o", out)
    result = run(capsys, "convert", source, "-o", out, "--force", "--json", "--family", "speechbrain")
    assert result.json == {"out": str(out), "family": "speechbrain", **load_bundle(out).parity}
    assert contents(out) != before
    assert load_bundle(out).scoring.threshold == 0.25
    result = run(capsys, "convert", source, "-o", out, "--force", "--dilations", "2,3,4")
    assert (result.code, load_bundle(out).config.ecapa.dilations) == (0, (2, 3, 4))


def test_convert_reads_a_speechbrain_directory(capsys, tmp_path):
    result = run(capsys, "convert", speechbrain(tmp_path), "-o", tmp_path / "bundle")
    assert (result.code, result.err) == (0, "")
    assert "threshold: 0.25\n" in result.out
    published = modelscope(tmp_path / "published", yesOrno_thr=None)
    result = run(capsys, "convert", published, "-o", tmp_path / "other")
    assert "threshold: none published; pass --threshold to verify" in result.out


def test_info_describes_a_bundle(capsys, model):
    result = run(capsys, "info", model)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith((model / "README.md").read_text())
    assert result.out.endswith("minimum samples: 1,040\n")
    document = run(capsys, "info", model, "--json").json
    assert document.items() > json.loads((model / "model.json").read_text()).items()
    assert document["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(load_bundle(model).variables["params"]))
    assert document["operating_points"] == load_bundle(model).operating_points


def test_info_without_a_bundle_describes_the_packaged_model(capsys):
    result = run(capsys, "info", "--json")
    assert (result.code, result.err) == (0, "")
    packaged = json.loads((api.default_bundle() / "model.json").read_text())
    assert result.json["provenance"] == packaged["provenance"]
    assert result.json["scoring"]["threshold"] is not None
    assert result.json["operating_points"]


def test_doctor_succeeds(capsys):
    result = run(capsys, "doctor", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json["checks"].keys() == {"jax and flax", "audio", "default model"}
    assert not any("FAILED" in text for text in result.json["checks"].values())
    assert result.json["versions"]["jax"]
    assert result.json["machine"]["devices"]


def test_doctor_reports_a_damaged_packaged_model(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(api, "default_bundle", lambda: tmp_path / "gone")
    for option in ([], ["--json"]):
        result = run(capsys, "doctor", *option)
        assert result.code == 2
        assert f"FAILED: BundleError: {tmp_path / 'gone'} is not a bundle directory" in result.out
        assert result.err == "ecapa-jax: doctor found a fault in: default model\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["transcribe"],
        ["verify", "a.wav"],
        ["verify", "a.wav", "b.wav", "c.wav"],
        ["verify", "a.wav", "b.wav", "--threshold", "high"],
        ["verify", "a.wav", "b.wav", "--dtype", "int8"],
        ["embed", "a.wav"],
        ["convert", "x.bin"],
        ["convert", "-o", "x"],
        ["info", "a", "b"],
        ["doctor", "--colour"],
    ],
)
def test_invalid_usage_exits_with_2(capsys, arguments):
    result = run(capsys, *arguments)
    assert (result.code, result.out) == (2, "")
    assert "ecapa-jax" in result.err


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_names_every_option(capsys, verb):
    result = run(capsys, *([verb] if verb else []), "--help")
    assert (result.code, result.err) == (0, "")
    expected = {
        "": VERBS,
        "verify": ("A B", "--threshold X", "--model BUNDLE", "the packaged", "from -1 to 1"),
        "embed": ("FILES...", "-o OUT.npz", "--force", "--model BUNDLE"),
        "convert": ("SOURCE", "-o BUNDLE", "--family", "3dspeaker and speechbrain", "--dilations D,D,...", "--force"),
        "info": ("[BUNDLE]",),
        "doctor": (),
    }[verb]
    shown = " ".join(result.out.replace("│", " ").split())
    for text in expected + (("--json", "--quiet", "--debug") if verb else ()):
        assert text in shown
    assert "None" not in shown
    assert "default: False" not in shown


class RaisingCommand:
    def __init__(self, error):
        self.error = error

    def __call__(self, *_, **__):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            RuntimeError("two\nlines"),
            1,
            r"internal fault, please report it: RuntimeError('two\nlines') (--debug shows where)",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (EcapaError("so\nwrong"), 2, "so wrong"),
        (MemoryError(), 1, "internal fault, please report it: MemoryError() (--debug shows where)"),
    ],
)
def test_errors_print_one_line_and_set_the_exit_code(capsys, monkeypatch, error, code, line):
    monkeypatch.setattr(api, "load", RaisingCommand(error))
    for option in ([], ["--json"], ["--quiet"]):
        result = run(capsys, "verify", "a", "b", *option)
        assert (result.code, result.out, result.err) == (code, "", f"ecapa-jax: {line}\n")
    with pytest.raises(type(error)):
        run(capsys, "verify", "a", "b", "--debug")


def test_main_restores_the_warning_filters(capsys):
    before = warnings.showwarning, list(warnings.filters)
    run(capsys, "info", "nothing")
    assert (warnings.showwarning, list(warnings.filters)) == before


def clean_environment(home):
    return {"PATH": os.defpath, "HOME": str(home)}


def test_program_runs_in_a_clean_environment(tmp_path):
    files = [str(EXAMPLES / name) for name in ("slt_1.flac", "slt_2.flac")]
    command = [PROGRAM, "verify", *files, "--json"]
    environment = clean_environment(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert (answer["a"], answer["b"], answer["model"]) == (*files, "default")
    assert answer["same_speaker"] is (answer["score"] >= answer["threshold"])
    compiled = tmp_path / ".cache" / "ecapa-jax" / "compiled"
    assert all((tmp_path / name).is_relative_to(compiled) for name in contents(tmp_path))
    assert list(compiled.glob("*/programs/*"))  # kept for the next call


def test_closed_pipe_is_not_an_error(tmp_path, model):
    command = [PROGRAM, "info", model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=300)) == (b"", 141)


def test_verify_names_a_published_model_on_a_terminal_only(capsys, tmp_path, monkeypatch):
    wav = write_wav(tmp_path / "a.wav")
    assert "published" not in run(capsys, "verify", wav, wav).err
    monkeypatch.setattr("ecapa_jax.cli.verify.is_terminal", lambda: True)
    notes = [line for line in run(capsys, "verify", wav, wav).err.splitlines() if "published" in line]
    assert len(notes) == 1
    assert "--model hf:speechbrain/spkrec-ecapa-voxceleb" in notes[0]
