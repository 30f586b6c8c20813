"""Tests of reading and writing RTTM and UEM files."""

import pytest

from ecapa_jax.diarization.rttm import read_rttm, read_uem, rttm_text
from ecapa_jax.diarization.turns import Turn
from ecapa_jax.errors import DiarizationError

GOOD = "SPEAKER a 1 0.5 1.5 <NA> <NA> ann <NA> <NA>"


def write_lines(tmp_path, *lines):
    path = tmp_path / "x.rttm"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_written_turns_are_read_back(tmp_path):
    turns = [Turn(0.0, 1.25, "speaker_1"), Turn(1.0, 2.5, "speaker_2")]
    assert read_rttm(write_lines(tmp_path, rttm_text("meeting", turns).rstrip())) == {"meeting": turns}


def test_names_with_spaces_are_written_as_one_field(tmp_path):
    found = read_rttm(write_lines(tmp_path, rttm_text("my talk", [Turn(0, 1, "Ann Lee")]).rstrip()))
    assert found == {"my_talk": [Turn(0, 1, "Ann_Lee")]}


def test_other_line_types_and_comments_are_ignored(tmp_path):
    path = write_lines(tmp_path, ";; comment", "", "SPKR-INFO a 1 <NA> <NA> <NA> unknown ann <NA>", GOOD)
    assert list(read_rttm(path)) == ["a"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("SPEAKER a 1 0.5 -1 <NA> <NA> ann <NA> <NA>", "can't be negative"),
        ("SPEAKER a 1 -0.5 1 <NA> <NA> ann <NA> <NA>", "can't be negative"),
        ("SPEAKER a 1 0.5 0 <NA> <NA> ann <NA> <NA>", "0 seconds"),
        ("SPEAKER a 1 x 1 <NA> <NA> ann <NA> <NA>", "must be a number"),
        ("SPEAKER a 1 nan 1 <NA> <NA> ann <NA> <NA>", "must be a number"),
        ("SPEAKER a 1 0.5 1 <NA> <NA>", "7 fields"),
        ("TALK a 1 0.5 1 <NA> <NA> ann <NA> <NA>", "SPEAKER"),
        ("SPEAKER a 1 1.0 1 <NA> <NA> ann <NA> <NA>", "overlap with itself"),
    ],
)
def test_error_names_the_line(tmp_path, line, says):
    with pytest.raises(DiarizationError, match=r"line 2.*") as error:
        read_rttm(write_lines(tmp_path, GOOD, line))
    assert says in str(error.value)


def test_two_speakers_may_overlap(tmp_path):
    path = write_lines(tmp_path, GOOD, GOOD.replace("ann", "bob"))
    assert len(read_rttm(path)["a"]) == 2


def test_uem_is_read(tmp_path):
    assert read_uem(write_lines(tmp_path, "a 1 0.0 30", "a 1 40 50")) == {"a": [(0.0, 30.0), (40.0, 50.0)]}
    for line in ("a 1 30 20", "a 1 0", "a 1 0 inf"):
        with pytest.raises(DiarizationError, match="line 1"):
            read_uem(write_lines(tmp_path, line))


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(DiarizationError, match="check the path"):
        read_rttm(tmp_path / "none.rttm")
    (tmp_path / "b.rttm").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DiarizationError, match="UTF-8"):
        read_rttm(tmp_path / "b.rttm")
