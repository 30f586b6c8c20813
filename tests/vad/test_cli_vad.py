"""Tests of `ecapa-jax vad`."""

from __future__ import annotations

import numpy as np
import pytest

from ecapa_jax import vad
from ecapa_jax.cli import vad as cli_vad
from helpers.cli import run, run_refused, write_wav
from helpers.detector import AUDIO
from helpers.nonspeech import nonspeech


def test_each_segment_is_printed_on_one_line(capsys):
    result = run(capsys, "vad", AUDIO / "slt_1.flac")
    expected = vad.speech_segments(AUDIO / "slt_1.flac")
    assert (result.code, result.err) == (0, "")
    assert result.out == "".join(f"{one.start:9.3f} {one.end:9.3f}\n" for one in expected)


def test_lines_of_several_recordings_have_names(capsys):
    files = [str(AUDIO / "slt_1.flac"), str(AUDIO / "rms_1.flac")]
    lines = run(capsys, "vad", *files, "--threshold", "0.6").out.splitlines()
    assert {line.split(None, 2)[2] for line in lines} == set(files)


def test_json_output_is_one_object(capsys):
    value = run(capsys, "vad", AUDIO / "slt_1.flac", "--json", "--threshold", "0.4", "--max-speech", "2").json
    assert value["threshold"] == 0.4
    (found,) = value["files"]
    expected = vad.speech_segments(AUDIO / "slt_1.flac", 0.4, max_speech_duration_s=2.0)
    np.testing.assert_allclose(found["segments"], np.array(expected))
    assert found["speech_seconds"] == pytest.approx(sum(one.end - one.start for one in expected))
    assert found["seconds"] == pytest.approx(4.925)


def test_recording_without_speech_prints_only_a_note(capsys, tmp_path):
    wav = write_wav(tmp_path / "hum.wav", nonspeech("hum", 1))
    result = run(capsys, "vad", wav)
    assert (result.code, result.out, result.err) == (0, "", f"{wav}: no speech found\n")
    assert run(capsys, "vad", wav, "--json", "--quiet").json["files"][0]["segments"] == []


def test_invalid_options_are_refused_in_one_line(capsys, tmp_path):
    assert "no such file" in run_refused(capsys, tmp_path, "vad", tmp_path / "no.wav")
    assert "threshold is 0" in run_refused(capsys, tmp_path, "vad", AUDIO / "slt_1.flac", "--threshold", "0")
    assert "neg_threshold is 7" in run_refused(capsys, tmp_path, "vad", AUDIO / "slt_1.flac", "--neg-threshold", "7")
    assert run(capsys, "vad").code == 2


def test_parsing_imports_no_heavy_modules():
    assert not {"numpy", "jax"} & vars(cli_vad).keys()
