"""Tests of preparing collections: layouts, checks, shards, and the list of unusable files."""

from __future__ import annotations

import csv
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ecapa_jax.audio.segments import change_speed, read_segment
from ecapa_jax.errors import ConfigError, TrainingError
from ecapa_jax.train.data.layouts import find_utterances
from ecapa_jax.train.data.manifest import read_manifest
from ecapa_jax.train.data.prepare import prepare

RATE = 16000


def read_problems(folder: Path) -> dict[str, str]:
    with (folder / "problems.csv").open() as file:
        return {row["id"]: row["problem"] for row in csv.DictReader(file)}


def test_unusable_files_are_listed(collection, tmp_path):
    source = shutil.copytree(collection, tmp_path / "source")
    (source / "s0" / "broken.flac").write_bytes(b"fLaC of no use")
    soundfile.write(source / "s1" / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(source / "s2" / "short.wav", 0.1 * np.random.default_rng(1).standard_normal(2000), RATE)
    shutil.copy(source / "s3" / "u0.flac", source / "s4" / "again.flac")
    soundfile.write(source / "s4" / "other_rate.wav", 0.1 * np.random.default_rng(2).standard_normal(9000), 8000)
    (source / "s4" / "notes.txt").write_text("no sound")
    made = prepare(source, tmp_path / "out", threads=2)
    manifest = read_manifest(made.manifest)
    assert made.utterances == len(manifest) == 16
    assert manifest.speakers == ("s0", "s1", "s2", "s3", "s4")
    assert made.problems == {"broken": 1, "duplicate": 1, "short": 1, "silent": 1}
    found = read_problems(tmp_path / "out")
    assert set(found) == {"s0/broken.flac", "s1/silent.wav", "s2/short.wav", "s4/again.flac"}
    assert found["s4/again.flac"] == "duplicate: the samples of s3/u0.flac"
    assert manifest.samples[manifest.ids.index("s4/other_rate.wav")] == 18000


def test_shards_contain_the_same_samples(collection, tmp_path):
    pytest.importorskip("array_record")
    from array_record.python.array_record_module import ArrayRecordReader

    plain = read_manifest(prepare(collection, tmp_path / "plain").manifest)
    sharded = read_manifest(prepare(collection, tmp_path / "sharded", shard_utterances=4).manifest)
    assert plain.fingerprint == sharded.fingerprint
    assert len(set(sharded.files)) == 4
    for row in range(len(plain)):
        reader = ArrayRecordReader(sharded.files[row])
        record = reader.read([int(sharded.indices[row])])[0]
        reader.close()
        ours = read_segment(record, 0, 10**9, rate=RATE)
        np.testing.assert_array_equal(ours, read_segment(plain.files[row], 0, 10**9, rate=RATE))


def test_kaldi_and_csv_name_the_same_recordings(collection, tmp_path):
    paths = sorted(collection.rglob("*.flac"))
    kaldi = tmp_path / "kaldi"
    kaldi.mkdir()
    (kaldi / "wav.scp").write_text("".join(f"{p.parent.name}-{p.stem} {p}\n" for p in paths))
    (kaldi / "utt2spk").write_text("".join(f"{p.parent.name}-{p.stem} {p.parent.name}\n" for p in paths))
    lines = [f"{p.parent.name}-{p.stem},1.0,{p},0,8000,{p.parent.name}" for p in paths]
    (tmp_path / "sb.csv").write_text("\n".join(["ID,duration,wav,start,stop,spk_id", *lines]) + "\n")
    from_kaldi, from_csv = find_utterances(kaldi), find_utterances(tmp_path / "sb.csv")
    assert [(r.id, r.speaker, r.path) for r in from_kaldi] == [(r.id, r.speaker, r.path) for r in from_csv]
    assert {(r.start, r.stop) for r in from_csv} == {(0.0, 0.5)}
    manifest = read_manifest(prepare(tmp_path / "sb.csv", tmp_path / "out", min_seconds=0.1).manifest)
    assert set(manifest.samples.tolist()) == {8000}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wav.scp": "a sox x |\n", "utt2spk": "a s\n"}, "is a command"),
        ({"wav.scp": "a x.wav\n", "utt2spk": "b s\n"}, "no speaker of a"),
        ({"wav.scp": "a\n", "utt2spk": "a s\n"}, ":1: has no path"),
        ({"wav.scp": "a x.wav\na y.wav\n", "utt2spk": "a s\n"}, "the id a is used twice"),
        ({}, "holds no recording"),
    ],
)
def test_invalid_folder_is_reported(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TrainingError, match=message):
        find_utterances(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,spk\na,b\n", "no column for the path"),
        ("path,start,spk\nx.wav,soon,s\n", "start is 'soon'"),
        ("path,spk\nx.wav,\n", ":2: its speaker is missing"),
    ],
)
def test_invalid_table_is_reported(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(TrainingError, match=message):
        find_utterances(tmp_path / "x.csv")


def test_existing_output_and_invalid_manifest_are_refused(collection, tmp_path):
    prepare(collection, tmp_path / "out")
    with pytest.raises(TrainingError, match="exists"):
        prepare(collection, tmp_path / "out")
    with pytest.raises(ConfigError, match="no such manifest"):
        read_manifest(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(ConfigError, match="not a Parquet file"):
        read_manifest(tmp_path / "text.parquet")
    with pytest.raises(TrainingError, match="no such file or folder"):
        prepare(tmp_path / "nowhere", tmp_path / "other")


def test_segments_equal_slices_of_the_recording(collection):
    path = next(collection.rglob("*.flac"))
    whole = read_segment(path, 0, 10**9, rate=RATE)
    np.testing.assert_array_equal(read_segment(path, 1234, 500, rate=RATE), whole[1234:1734])
    assert len(read_segment(path, len(whole) + 5, 10, rate=RATE)) == 0
    np.testing.assert_array_equal(
        read_segment(path, 100, 50, rate=8000), read_segment(path, 0, 10**9, rate=8000)[100:150]
    )


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_change_scales_length_and_frequency(factor):
    """The length changes by 1 / factor, and the frequency of a tone by factor."""
    time = np.arange(RATE) / RATE
    tone = (8000 * np.sin(2 * np.pi * 1000 * time)).astype(np.int16)
    changed = change_speed(tone, factor)
    assert abs(len(changed) - RATE / factor) <= 1
    spectrum = np.abs(np.fft.rfft(changed * np.hanning(len(changed))))
    assert np.argmax(spectrum) * RATE / len(changed) == pytest.approx(1000 * factor, abs=2)
    assert change_speed(tone, 1.0) is tone


def test_error_without_the_extra_says_what_to_install(monkeypatch, collection, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"needs pyarrow and array_record: pip install 'ecapa-jax\[train\]'"):
        prepare(collection, tmp_path / "out", shard_utterances=2)
    assert not (tmp_path / "out").exists()
