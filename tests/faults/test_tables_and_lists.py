"""Tests of tables, trial lists, score files and manifests that users and other programs write."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ecapa_jax.corpus.manifest import RecordingPart, read_manifest
from ecapa_jax.errors import CorpusError, TrainingError, TrialError
from ecapa_jax.evaluation.files import find_files, read_places
from ecapa_jax.evaluation.trials import Trials, read_speakers, read_trials
from ecapa_jax.train.data.layouts import find_utterances
from helpers.fault_inputs import KINDS, Case, cases

SAMPLE, ALL = 12, 300


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows_of_trials(trials: Trials) -> list[tuple]:
    names = [(trials.names[a], trials.names[b]) for a, b in zip(trials.enrol, trials.test, strict=True)]
    scores = [None] * len(names) if trials.scores is None else trials.scores.tolist()
    return [(*pair, bool(same), score) for pair, same, score in zip(names, trials.known_labels, scores, strict=True)]


def check_tables(case: Case, path: Path) -> None:
    assert read_manifest(path).rows(0, 99)[1] == [name for name, _ in case.expected]
    found = [(str(one.path.relative_to(path.parent)), one.speaker) for one in find_utterances(path)]
    assert sorted(found) == sorted(case.expected)


def check_trials(case: Case, path: Path) -> None:
    assert rows_of_trials(read_trials(path)) == case.expected


def check_manifests(case: Case, path: Path) -> None:
    sources = read_manifest(path).sources(0, 99)
    parts = [(one, None, None) if isinstance(one, str) else (one.path, *part_seconds(one)) for one in sources]
    assert parts == [row[:3] for row in case.expected]
    found = {(str(one.path), one.start or None, one.stop, one.speaker) for one in find_utterances(path)}
    assert found == {(path, start or None, stop, speaker) for path, start, stop, speaker in case.expected}


def part_seconds(part: RecordingPart) -> tuple[float, float | None]:
    start, stop = part.bounds(16000)
    return start / 16000, None if stop is None else stop / 16000


CHECKS = {"tables": check_tables, "trials": check_trials, "scores": check_trials, "manifests": check_manifests}


@pytest.mark.parametrize("kind", KINDS)
def test_some_generated_inputs_of_each_kind(tmp_path: Path, kind: str) -> None:
    for case in cases(kind, SAMPLE):
        CHECKS[kind](case, write(tmp_path, case.name, case.text))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_generated_inputs_of_each_kind(tmp_path: Path, kind: str) -> None:
    for case in cases(kind, ALL):
        CHECKS[kind](case, write(tmp_path, case.name, case.text))


# Tables

SWALLOWING = 'path,speaker,sentence\na.wav,s1,"Wait, he said.\nb.wav,s2,Fine.\nc.wav,s3,I come."\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SWALLOWING, ":2: is damaged: a quote opens and would swallow line 3"),
        ('path,speaker\na.wav,s1\nb.wav,"s2\n', ":3: is damaged: a quote opens and is not closed"),
        ("path,speaker\na.wav,s1,more\n", ":2: 3 cells, the header has 2"),
        ("sentence,path,speaker\nyes,no,a.wav,s1\n", ":2: 4 cells, the header has 3"),
        ("sentence,path,speaker\na.wav,s1\n", "2 cells, the header has 3"),
    ],
)
def test_error_names_a_row_that_would_be_lost_or_shifted(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, "m.csv", text)
    with pytest.raises(CorpusError, match=words):
        read_manifest(path)
    with pytest.raises(TrainingError, match=words):
        find_utterances(path)


def test_quotes_in_a_tab_separated_trial_list_are_text(tmp_path: Path) -> None:
    text = 'enrol\ttest\tlabel\tsaid\na "x.wav\tb.wav\t1\t"Wait\nc.wav\td.wav\t0\tso"\ne.wav\tf.wav\t1\t"a" b\n'
    trials = read_trials(write(tmp_path, "t.tsv", text))
    assert [row[:2] for row in rows_of_trials(trials)] == [
        ('a "x.wav', "b.wav"),
        ("c.wav", "d.wav"),
        ("e.wav", "f.wav"),
    ]
    assert trials.columns["said"].tolist() == ['"Wait', 'so"', '"a" b']
    with pytest.raises(TrialError, match="line 2: a quote opens"):
        read_trials(write(tmp_path, "t.csv", 'enrol,test,label\n"a.wav,b.wav,1\nc,d,0"\n'))


def test_unicode_line_separators_are_text(tmp_path: Path) -> None:
    trials = read_trials(write(tmp_path, "t.tsv", "enrol\ttest\tlabel\nx\u2028y\tb\t1\na\x85\tb\t0\n"))
    assert trials.names == ("x\u2028y", "a\x85".strip(), "b")
    assert read_trials(write(tmp_path, "t.txt", "a\u00a0b c 1\nd e 0\n")).names == ("a\u00a0b", "d", "c", "e")


def test_tab_separated_names_may_contain_spaces(tmp_path: Path) -> None:
    assert read_trials(write(tmp_path, "t", "1\ta b.wav\tc d.wav\n0\te.wav\tf g.wav\n")).names[0] == "a b.wav"
    assert read_trials(write(tmp_path, "t", "a b\ttarget\nc d\tnontarget\n")).names == ("a", "c", "b", "d")
    assert read_speakers(write(tmp_path, "utt2spk", "\ufeffa b.wav\tAnn Lee\nc.wav\tBob\n")) == {
        "a b.wav": "Ann Lee",
        "c.wav": "Bob",
    }


# Trials and scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b 0.61 1\na c -0.2 0\n", [("a", "b", True, 0.61), ("a", "c", False, -0.2)]),
        ("a b 1 0.61\na c 0 1\n", [("a", "b", True, 0.61), ("a", "c", False, 1.0)]),
        ("a b 1e-3 Target\na c 2 NonTarget\n", [("a", "b", True, 1e-3), ("a", "c", False, 2.0)]),
        ("a*b 1 0.5\nc*d 0 -0.5\n", [("a", "b", True, 0.5), ("c", "d", False, -0.5)]),
        ("modelid\tsegmentid\tside\tLLR\ttargettype\nm\ts\ta\t1.5\tnontarget\n", [("m", "s", False, 1.5)]),
        ("enrol test score label\na b 0.5 tgt\na c 0.1 imp\n", [("a", "b", True, 0.5), ("a", "c", False, 0.1)]),
        ("1 100 101 0.7\n0 100 102 0.2\n", [("100", "101", True, 0.7), ("100", "102", False, 0.2)]),
    ],
)
def test_score_files_of_other_programs_are_read(tmp_path: Path, text: str, expected: list[tuple]) -> None:
    assert rows_of_trials(read_trials(write(tmp_path, "s", text))) == expected


def test_unlabelled_scores_may_be_first_or_last(tmp_path: Path) -> None:
    for text in ("a b 0.5\nc d -1\n", "0.5 a b\n-1.0 c d\n"):
        trials = read_trials(write(tmp_path, "s", text))
        assert (trials.labels, trials.scores.tolist(), trials.names) == (None, [0.5, -1.0], ("a", "c", "b", "d"))


def test_ids_are_resolved_with_wav_scp(tmp_path: Path) -> None:
    for name in ("x.wav", "y z.wav"):
        (tmp_path / name).touch()
    places = read_places(write(tmp_path, "wav.scp", f"u1 x.wav\nu2\t{tmp_path}/y z.wav\n"))
    assert find_files(["u2", "u1"], tmp_path, None, places) == [tmp_path / "y z.wav", tmp_path / "x.wav"]
    with pytest.raises(
        TrialError, match=r"1 of 2 recordings are not in the wav\.scp, such as u3; it has ids such as u1"
    ):
        find_files(["u1", "u3"], tmp_path, None, places)
    with pytest.raises(TrialError, match="--wav-scp FILE says where they are"):
        find_files(["u1"], tmp_path)
    with pytest.raises(TrialError, match="another path on an earlier line"):
        read_places(write(tmp_path, "wav.scp", "u1 x.wav\nu1 y.wav\n"))


# Manifests


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.txt", '{"audio_filepath": "a.wav"}\n', "is not a path but a row of a table"),
        ("m", '["a.wav", "b.wav"]\n', "is not a path but a row of a table"),
        ("m.lst", 'a.wav\n{"wav": "b.wav"}\n', "m.lst:2: is not a path"),
        ("m.txt", "id\tpath\nu1\ta.wav\n", r"name the file \*.tsv"),
        ("raw.list", '{"key": "u", "wav": "sox a.wav -t wav - |", "spk": "s"}\n', "is a command"),
        ("m.json", '{"audio_filepath": "a.wav", "offset": "soon", "duration": 1}\n', "offset is 'soon'"),
        ("m.csv", "ID,wav,start,stop,spk_id\nu,a.wav,16000,16000,s\n", "the part from 16000 to 16000 is empty"),
        ("m.csv", "ID,wav,start,stop,spk_id\nu,a.wav,x,16000,s\n", "start is 'x'"),
    ],
)
def test_invalid_manifests_are_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(CorpusError, match=words):
        read_manifest(write(tmp_path, name, text))


def test_parts_of_a_recording_have_unique_ids(tmp_path: Path) -> None:
    lines = [f'{{"audio_filepath": "a.wav", "offset": {at}, "duration": 2}}\n' for at in (0, 2, 4.5)]
    manifest = read_manifest(write(tmp_path, "m.json", "".join(lines)))
    assert manifest.rows(0, 3)[0] == ["a.wav", "a.wav:2-4", "a.wav:4.5-6.5"]
    other = read_manifest(write(tmp_path, "n.json", "".join(lines[:2]) + lines[2].replace("2}", "3}")))
    assert manifest.fingerprint != other.fingerprint


def test_small_integer_times_are_seconds(tmp_path: Path) -> None:
    text = "ID,path,start,stop,spk\nu,a.wav,3,6,s\nv,a.wav,48000,96000,s\n"
    assert [part_seconds(part) for part in read_manifest(write(tmp_path, "m.csv", text)).sources(0, 2)] == [
        (3, 6),
        (3, 6),
    ]


def test_kaldi_segments_are_read_as_parts(tmp_path: Path) -> None:
    write(tmp_path, "wav.scp", "r1 a.wav\n")
    write(tmp_path, "utt2spk", "\ufeffu1 s1\nu2 s2\n")
    write(tmp_path, "segments", "u1 r1 0.5 2.5\nu2 r1 3 -1\n")
    found = [(one.id, one.path.name, one.speaker, one.start, one.stop) for one in find_utterances(tmp_path)]
    assert found == [("u1", "a.wav", "s1", 0.5, 2.5), ("u2", "a.wav", "s2", 3.0, None)]
    write(tmp_path, "segments", "u1 r2 0 1\n")
    with pytest.raises(TrainingError, match="has no recording r2"):
        find_utterances(tmp_path)


# Folders


def test_folder_links_are_followed_without_loops(tmp_path: Path) -> None:
    source = tmp_path / "all" / "ann" / "2020"
    source.mkdir(parents=True)
    (source / "a.WAV").touch()
    (source / "loop").symlink_to(tmp_path / "all")
    subset = tmp_path / "subset"
    subset.mkdir()
    (subset / "ann").symlink_to(tmp_path / "all" / "ann")
    (subset / "self").symlink_to(subset)
    (subset / "nowhere").symlink_to(tmp_path / "gone")
    (subset / "ring").symlink_to(subset / "ring")
    assert [one.id for one in find_utterances(subset)] == ["ann/2020/a.WAV"]
    from ecapa_jax.evaluation.cohorts import read_cohort

    assert read_cohort(subset, ".") == {subset / "ann/2020/a.WAV": "ann"}


def test_folders_with_many_links_are_visited_once(tmp_path: Path) -> None:
    for name in range(12):
        (tmp_path / "s" / str(name)).mkdir(parents=True)
        (tmp_path / "s" / str(name) / "a.flac").touch()
    for name in range(12):
        for other in range(12):
            os.symlink(tmp_path / "s" / str(other), tmp_path / "s" / str(name) / f"to_{other}")
    assert len(find_utterances(tmp_path)) == 12


def test_parts_are_cut_at_the_sample_rate_of_the_model() -> None:
    assert RecordingPart("a", 1.5, 2.0, False).bounds(8000) == (12000, 16000)
    assert RecordingPart("a", 160.0, None, True).bounds(8000) == (160, None)
    assert np.arange(10)[slice(*RecordingPart("a", 2.0, 5.0, True).bounds(1))].tolist() == [2, 3, 4]
