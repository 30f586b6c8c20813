"""Tests of reading trial lists in every format, and of the errors for invalid lists."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.errors import TrialError
from ecapa_jax.evaluation.presets import check_preset
from ecapa_jax.evaluation.trials import match_scores, read_enrolment, read_speakers, read_trials, with_speakers

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "lists"

PAIRS = [("s1/a.wav", "s1/b.wav", True), ("s1/a.wav", "s2/c.wav", False), ("s2/c.wav", "s2/d.wav", True)]
FORMATS = {
    "voxceleb": lambda a, b, same: f"{int(same)} {a} {b}",
    "kaldi": lambda a, b, same: f"{a} {b} {'target' if same else 'nontarget'}",
    "label last": lambda a, b, same: f"{a}\t{b}\t{int(same)}",
}


def write(folder, text, name="list.txt"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def pairs(trials):
    return [(trials.names[a], trials.names[b], bool(label))
            for a, b, label in zip(trials.enrol, trials.test, trials.known_labels, strict=True)]  # fmt: skip


@pytest.mark.parametrize("line", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_format_gives_the_same_trials(tmp_path, line, end):
    text = "".join(line(*pair) + end for pair in PAIRS)
    for content in (text, "\ufeff" + text, text.rstrip(), end + text + end, gzip.compress(text.encode())):
        trials = read_trials(write(tmp_path, content))
        assert pairs(trials) == PAIRS
        assert trials.names == ("s1/a.wav", "s2/c.wav", "s1/b.wav", "s2/d.wav")
        assert trials.speakers == ("s1", "s2", "s1", "s2")
        assert len(trials) == 3
        assert (trials.scores, trials.repeated, dict(trials.columns)) == (None, 0, {})


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("names", [("enrol", "test", "label"), ("Enroll", "file2", "Target"), ("path1", "b", "key")])
def test_tables_with_a_header_are_read(tmp_path, separator, names):
    lines = [[names[2], "gender", names[0], "score", names[1]]]
    lines += [[str(int(same)), "f", a.replace("a", "a name"), "0.25", b] for a, b, same in PAIRS]
    trials = read_trials(write(tmp_path, "".join(separator.join(line) + "\n" for line in lines)))
    assert pairs(trials) == [(a.replace("a", "a name"), b, same) for a, b, same in PAIRS]
    assert list(trials.columns) == ["gender"]
    assert trials.columns["gender"].tolist() == ["f", "f", "f"]
    assert trials.scores.tolist() == [0.25] * 3


def test_quoted_fields_are_read(tmp_path):
    trials = read_trials(write(tmp_path, 'enrol,test,label\n"a, b.wav","the ""c"".wav",1\nd,e,0\n'))
    assert pairs(trials) == [("a, b.wav", 'the "c".wav', True), ("d", "e", False)]


def test_score_files_are_read(tmp_path):
    for text in ("a b 1 0.5\nc d 0 -1e-3\n", "1 a b 0.5\n0 c d -0.001\n"):
        trials = read_trials(write(tmp_path, text))
        assert pairs(trials) == [("a", "b", True), ("c", "d", False)]
        assert trials.scores.tolist() == [0.5, -0.001]
    unlabelled = read_trials(write(tmp_path, "a b 0.5\nc d -0.1\n"))
    assert unlabelled.labels is None
    with pytest.raises(TrialError, match="no labels"):
        _ = unlabelled.known_labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("1 a b\n\n0 a\n", "line 3: 2 fields, the lines above have 3"),
        ("1 a b\n2 a c\n", "line 2: label '2' is unknown"),
        ("a b target\na c perhaps\n", "line 2: label 'perhaps' is unknown"),
        ("1 a b\n0 b c\n0 a b\n", "line 3: the same pair has the other label in line 1"),
        ("a b\n", "line 1: 'a b' is not a trial"),
        ("hello world again\n", "line 1: 'hello world again' is not a trial"),
        ("1 a 0\n", "line 1: '1 a 0' is not a trial"),
        ("enrol,label\na,1\n", "no column test; it has enrol, label"),
        ("enrol,test,label\n", "a header and nothing below"),
        ("enrol,test,label\na,b,1,x\n", "line 2: 4 fields, the header has 3"),
        ("enrol,test,label\n,b,1\n", "line 2: column enrol is empty"),
        ("enrol,test,test,label\n", "line 1: the header has two columns of the same name"),
        ("enrol,test,label,score\na,b,1,high\n", "line 2: score 'high' is not a number"),
        ("a b 1 0.5\na c 0 nan\n", "line 2: the score is not finite"),
        (b"1 a b\n0 \xff\xfe c\n", "line 2: is not UTF-8 text"),
        (gzip.compress(b"1 a b\n", mtime=0)[:-9], "can't be read"),
        ("enrol,test,label,enrol_speaker,test_speaker\na,b,1,x,y\n", "a and b are a target trial, but"),
        ("enrol,test,label,spk1,spk2\na,b,1,x,x\na,c,0,y,z\n", "line 3: a has speaker x elsewhere, here y"),
    ],
)
def test_invalid_lists_are_refused(tmp_path, text, message):
    with pytest.raises(TrialError, match=message) as caught:
        read_trials(write(tmp_path, text))
    assert "list.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(TrialError, match=r"none\.txt can't be read: No such file"):
        read_trials(tmp_path / "none.txt")
    with pytest.raises(TrialError, match="Is a directory"):
        read_trials(tmp_path)


def test_repeated_trials_are_counted(tmp_path):
    assert read_trials(write(tmp_path, "1 a b\n0 a c\n1 a b\n1 a b\n1 b a\n")).repeated == 2


@pytest.mark.parametrize(
    ("text", "speakers", "source"),
    [
        ("1 id10270/x/1.wav id10270/y/2.wav\n0 id10270/x/1.wav id10300/z/1.wav\n", {"id10270", "id10300"}, "VoxCeleb"),
        ("1 vox/id10270/x/1.wav vox/id10270/y/2.wav\n0 vox/id10270/x/1.wav vox/id10300/z/1.wav\n",
         {"id10270", "id10300"}, "VoxCeleb"),
        ("1 c/s1/a.flac c/s1/b.flac\n0 c/s1/a.flac c/s2/a.flac\n", {"c/s1", "c/s2"}, "the file's folder"),
        ("1 s1/v1/a.flac s1/v2/b.flac\n0 s1/v1/a.flac s2/v1/a.flac\n", {"s1", "s2"}, "the folder above"),
        ("1 a.flac b.flac\n0 a.flac c.flac\n", None, ""),
        ("1 x/a.flac x/b.flac\n0 x/a.flac x/c.flac\n", None, ""),  # all files are in one folder
        ("1 id10270/x/1.wav id10300/y/2.wav\n0 id10270/x/1.wav id10270/z/1.wav\n", None, ""),  # contradicts labels
        ("1 x/a.flac x/b.flac\n1 y/a.flac y/c.flac\n", None, ""),  # no non-target trials to check a guess
    ],
)  # fmt: skip
def test_speakers_are_inferred_from_paths(tmp_path, text, speakers, source):
    trials = read_trials(write(tmp_path, text))
    assert (trials.speakers and set(trials.speakers)) == speakers
    assert trials.speaker_source.startswith(source)


def test_speaker_maps_are_checked_against_the_labels(tmp_path):
    trials = read_trials(write(tmp_path, "1 a b\n0 a c\n"))
    known = with_speakers(trials, read_speakers(write(tmp_path, "a x\nb x\nc y\nd z\n", "utt2spk")), "utt2spk")
    assert known.speakers == ("x", "x", "y")
    with pytest.raises(TrialError, match="no speaker for 1 of 3 names, such as c"):
        with_speakers(trials, {"a": "x", "b": "x"}, "utt2spk")
    with pytest.raises(TrialError, match="a and c are a non-target trial, but utt2spk says otherwise"):
        with_speakers(trials, {"a": "x", "b": "x", "c": "x"}, "utt2spk")
    with pytest.raises(TrialError, match="line 2: 3 fields"):
        read_speakers(write(tmp_path, "a x\nb x y\n", "utt2spk"))
    with pytest.raises(TrialError, match="line 2: a has speaker x further up, here y"):
        read_speakers(write(tmp_path, "a x\na y\n", "utt2spk"))


def test_enrolment_files_are_read(tmp_path):
    assert read_enrolment(write(tmp_path, "m1 a b a\nm2 c\n")) == {"m1": ("a", "b"), "m2": ("c",)}
    with pytest.raises(TrialError, match="line 2: model m2 has no utterances"):
        read_enrolment(write(tmp_path, "m1 a b\nm2\n"))
    with pytest.raises(TrialError, match="line 2: model m1 comes twice"):
        read_enrolment(write(tmp_path, "m1 a b\nm1 c\n"))


def test_scores_of_another_file_are_matched_by_pair(tmp_path):
    trials = read_trials(write(tmp_path, "1 a b\n0 a c\n0 d c\n"))
    scored = read_trials(write(tmp_path, "x y 0.9\nd c 3\na c 2\na b 1\n", "scores.txt"))
    np.testing.assert_array_equal(match_scores(scored, trials), [1, 2, 3])
    with pytest.raises(TrialError, match=r"scores\.txt has no score for 2 of 3 trials, as a c"):
        match_scores(read_trials(write(tmp_path, "a b 1.5\nc d 2\n", "scores.txt")), trials)
    with pytest.raises(TrialError, match="two scores for 1 of 3 trials, as a b"):
        match_scores(read_trials(write(tmp_path, "a b 1.5\na c 2\nd c 1\na b 2\n", "scores.txt")), trials)
    with pytest.raises(TrialError, match="has no scores"):
        match_scores(trials, trials)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='01 ab,\t\n"enrol', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("bytes"), content)
    try:
        trials = read_trials(path)
    except TrialError as error:
        assert path.name in str(error)  # noqa: PT017
    else:
        assert len(trials) > 0
        assert max(trials.enrol.max(), trials.test.max()) < len(trials.names)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_complete_veri_test2_list():
    trials = read_trials(SHARED / "veri_test2.txt.gz")
    assert (len(trials), int(trials.known_labels.sum()), len(trials.names)) == (37_611, 18_802, 4708)
    assert len(set(trials.speakers)) == 40
    assert trials.repeated == 0
    assert check_preset("voxceleb1-o", trials).title == "VoxCeleb1-O"
    with pytest.raises(TrialError, match=r"37611 trials, VoxCeleb1-E \(cleaned\) has 579818"):
        check_preset("voxceleb1-e", trials)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_original_veri_test_list_is_refused():
    trials = read_trials(SHARED / "veri_test.txt.gz")
    assert (len(trials), int(trials.known_labels.sum())) == (37_720, 18_860)
    with pytest.raises(TrialError, match="the original list, with wrong labels"):
        check_preset("voxceleb1-o", trials)
