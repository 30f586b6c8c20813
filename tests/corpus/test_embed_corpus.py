"""Tests of embedding a corpus with a small model: rows, errors, restarts, refused input."""

from __future__ import annotations

import json
import pickle
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ecapa_jax
from ecapa_jax.corpus.manifest import Manifest, read_manifest
from ecapa_jax.corpus.run import check_installed, embed_corpus
from ecapa_jax.corpus.shard import ShardEmbedder, embed_recordings
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import CorpusError, EcapaError, Stopped
from helpers import parity
from helpers.bundles import contents
from helpers.corpora import BAD, RATE, speech
from helpers.weights import random_tensors, variables_of

GOOD = [f"good_{index:02d}.wav" for index in range(24)]
NAMES = [*GOOD[:20], *BAD, *GOOD[20:]]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({"id": name[:-4], "path": name}) for name in NAMES))
    return read_manifest(tmp_path / "m.jsonl")


def read_rows(out: Path) -> list[dict]:
    """Reads the folder as a Parquet data set."""
    return pq.read_table(out).to_pylist()


def test_every_recording_has_a_row_with_embedding_or_error(
    encoder: SpeakerEncoder, manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    steps: list[tuple[int, float, bool]] = []
    summary = embed_corpus(
        encoder, manifest, tmp_path / "out", audio_root=folder, shard_size=10, progress=lambda *step: steps.append(step)
    )
    found = read_rows(tmp_path / "out")
    assert [row["id"] for row in found] == [name[:-4] for name in NAMES]
    reference = dict(zip(GOOD, encoder.embed([folder / name for name in GOOD]), strict=True))
    for name, row in zip(NAMES, found, strict=True):
        if name in BAD:
            assert BAD[name] in row["error"]
            assert name[:-4].split("\0")[0] in row["error"]
            assert (row["embedding"], row["seconds"]) == (None, None)
        else:
            assert row["error"] is None
            assert row["seconds"] == pytest.approx(0.5 + 0.02 * int(name[5:7]), abs=1 / RATE)
            assert parity.same_embedding(np.float32(row["embedding"]), reference[name])
    seconds = sum(row["seconds"] or 0 for row in found)
    assert (summary.rows, summary.errors, summary.skipped, summary.shards) == (33, len(BAD), 0, 4)
    assert summary.speech_seconds == pytest.approx(seconds, abs=1e-3)
    assert sum(step[0] for step in steps) == 33
    assert sum(step[1] for step in steps) == pytest.approx(seconds)
    schema = pq.read_schema(tmp_path / "out" / "shard-000000.parquet")
    assert schema.field("embedding").type == pa.list_(pa.float32(), 192)


def test_stopped_run_resumes_with_identical_results(
    encoder: SpeakerEncoder, manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    go = partial(embed_corpus, encoder, manifest, audio_root=folder, shard_size=10)
    go(tmp_path / "whole")
    stop = threading.Event()
    seen = 0

    def stop_halfway(files: int, seconds: float, before: bool) -> None:
        nonlocal seen
        seen += files
        if seen > 14:
            stop.set()

    with pytest.raises(Stopped, match=r"10 of 33 recordings are safe in .*run the same command again"):
        go(tmp_path / "out", progress=stop_halfway, stop=stop)
    assert sorted(contents(tmp_path / "out")) == [Path(n) for n in (".lock", "_corpus.json", "shard-000000.parquet")]
    (tmp_path / "out" / ".shard-000001.parquet.partial").write_bytes(b"PAR1 left by a kill")
    before = (tmp_path / "out" / "shard-000000.parquet").stat().st_mtime_ns
    assert go(tmp_path / "out").skipped == 10
    assert (tmp_path / "out" / "shard-000000.parquet").stat().st_mtime_ns == before
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "whole")
    assert not list(tmp_path.rglob("*.partial"))
    again = go(tmp_path / "out")
    assert (again.skipped, again.rows, again.hours_per_second) == (33, 33, 0)
    assert again.errors == len(BAD)
    # A shard that is damaged later is computed again.
    damaged = tmp_path / "out" / "shard-000002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert go(tmp_path / "out").skipped == 23
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "whole")


def test_failed_recordings_can_be_retried(encoder: SpeakerEncoder, folder: Path, tmp_path: Path) -> None:
    late = tmp_path / "late.wav"
    (tmp_path / "m.txt").write_text("\n".join([str(folder / GOOD[0]), str(folder / GOOD[1]), str(late)]))
    go = partial(embed_corpus, encoder, read_manifest(tmp_path / "m.txt"), tmp_path / "out", shard_size=2)
    assert go().errors == 1
    late.write_bytes((folder / GOOD[2]).read_bytes())
    assert (go().errors, go().skipped) == (1, 3)
    again = go(retry_errors=True)
    assert (again.errors, again.skipped) == (0, 2)


def make_other_model(encoder: SpeakerEncoder) -> SpeakerEncoder:
    return SpeakerEncoder(encoder.config, variables_of(encoder.config.ecapa, random_tensors(encoder.config.ecapa, 1)))


def test_other_manifest_model_or_shard_size_is_refused(
    encoder: SpeakerEncoder, manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    go = partial(embed_corpus, audio_root=folder, shard_size=40)
    go(encoder, manifest, out)
    before = contents(out)
    fewer = Manifest(manifest.table.slice(0, 32))
    renamed = Manifest(
        manifest.table.set_column(1, "path", pa.array([name + "x" for name in NAMES], pa.large_string()))
    )
    for call, words in (
        (partial(go, encoder, fewer), "the manifest has changed since"),
        (partial(go, encoder, renamed), "the manifest has changed since"),
        (partial(go, make_other_model(encoder), manifest), "it was made with another model"),
        (partial(go, encoder, manifest, shard_size=41), "another --shard-size"),
        (partial(go, encoder, manifest, short="repeat"), "another --short"),
    ):
        with pytest.raises(CorpusError, match=f"out can't be continued: .*{words}"):
            call(out)
    assert contents(out) == before


def test_shard_of_another_run_is_refused(
    encoder: SpeakerEncoder, manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    go = partial(embed_corpus, encoder, audio_root=folder)
    go(manifest, tmp_path / "out", shard_size=33)
    for name, content in (("another", None), ("no note", pa.table({"id": ["a"] * 33}))):
        target = tmp_path / name
        go(manifest, target, shard_size=33)
        if content is None:
            go(Manifest(manifest.table.slice(0, 2)), tmp_path / "two", shard_size=33)
            (target / "shard-000000.parquet").write_bytes((tmp_path / "two" / "shard-000000.parquet").read_bytes())
        else:
            pq.write_table(content, target / "shard-000000.parquet")
        with pytest.raises(CorpusError, match="does not belong to this run"):
            go(manifest, target, shard_size=33)


def test_directory_with_other_files_is_refused(encoder: SpeakerEncoder, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "_corpus.json").write_text("{")
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "_corpus.json").write_text('{"schema": 7}')
    for name, words in (
        ("full", "holds letters.txt and is not a corpus"),
        ("file", "can't be written: File exists"),
        ("no/where", "can't be written: No such file or directory"),
        ("damaged", "_corpus.json is damaged"),
        ("newer", "has schema 7, this version writes 1"),
    ):
        with pytest.raises(CorpusError, match=words):
            embed_corpus(encoder, manifest, tmp_path / name)
    with pytest.raises(CorpusError, match="the shard size is 0"):
        embed_corpus(encoder, manifest, tmp_path / "out", shard_size=0)
    assert not (tmp_path / "out").exists()


def test_second_run_is_refused_while_the_first_run_writes(
    encoder: SpeakerEncoder, manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    go = partial(embed_corpus, encoder, manifest, tmp_path / "out", audio_root=folder, shard_size=33)
    refusals: list[str] = []

    def start_second_run(files: int, seconds: float, before: bool) -> None:
        with pytest.raises(CorpusError) as caught:
            go()
        refusals.append(str(caught.value))

    go(progress=start_second_run)
    assert set(refusals) == {f"{tmp_path / 'out'} is in use by another run; wait for it, or choose another output"}
    assert go().skipped == 33


def test_embedding_that_is_not_finite_is_an_error(encoder: SpeakerEncoder, monkeypatch) -> None:
    whole = encoder.embed_stream

    def overflow(waveforms):
        for indices, embeddings in whole(waveforms):
            broken = embeddings.copy()
            broken[0, 3] = np.inf
            yield indices, broken

    monkeypatch.setattr(encoder, "embed_stream", overflow)
    done = embed_recordings(encoder, [speech(0.5), speech(0.6)])
    assert done.errors == ["array: its embedding is not finite"] * 2
    assert np.isnan(done.embeddings).all()
    assert np.isnan(done.seconds).all()


def test_unexpected_decoder_error_becomes_a_row(encoder: SpeakerEncoder, monkeypatch) -> None:
    def read(source, sample_rate=None, *, short="error", channel=None):
        raise MemoryError("no\nroom")

    monkeypatch.setattr(encoder, "read", read)
    assert embed_recordings(encoder, ["a.wav"]).errors == ["a.wav: MemoryError: no room"]


def test_shard_embedder_is_picklable_and_loads_its_model_once(
    bundle: Path, encoder: SpeakerEncoder, folder: Path
) -> None:
    from ecapa_jax.corpus import shard

    shard._encoder.cache_clear()
    embedder = ShardEmbedder(partial(ecapa_jax.load, str(bundle)), short="repeat")
    data = pickle.dumps(embedder)
    assert len(data) < 2000
    batch = {"id": np.array(["a", "b", "c"]), "path": np.array([str(folder / n) for n in (GOOD[0], "x.wav", GOOD[1])])}
    done = pickle.loads(data)(batch)
    assert done["id"].tolist() == ["a", "b", "c"]
    assert [not error for error in done["error"]] == [True, False, True]
    assert np.isnan(done["embedding"][1]).all()
    assert (done["embedding"].shape, done["embedding"].dtype) == ((3, 192), np.float32)
    expected = encoder.embed([folder / GOOD[0], folder / GOOD[1]])
    assert parity.same_embeddings(done["embedding"][[0, 2]], expected)
    # The input has arrays instead of paths. The second unpickled copy reuses the model of the first.
    assert shard._encoder.cache_info().currsize == 1
    from_arrays = pickle.loads(data)({"id": ["a"], "audio": [speech(0.5)]})
    np.testing.assert_array_equal(from_arrays["embedding"][0], encoder.embed(speech(0.5))[0])
    assert shard._encoder.cache_info().currsize == 1


def test_error_names_the_missing_package(monkeypatch) -> None:
    check_installed()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(EcapaError, match=r"a corpus needs pyarrow: pip install 'ecapa-jax\[corpus\]'"):
        check_installed()
