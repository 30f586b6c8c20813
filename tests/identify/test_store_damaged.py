"""Tests of stores that can't be opened, read or written, and of processes that are killed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import StoreError
from ecapa_jax.identify import database
from ecapa_jax.identify.database import Database
from ecapa_jax.identify.store import SpeakerStore
from helpers.privileges import unprivileged

N_SPEAKERS = 200


def make_embeddings(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 192)).astype(np.float32)


@pytest.fixture
def full_store(tmp_path: Path, encoder: SpeakerEncoder) -> Path:
    """A store with 200 speakers."""
    path = tmp_path / "full.db"
    with SpeakerStore.open(path, encoder) as store:
        store.enroll_embeddings([f"speaker {index}" for index in range(N_SPEAKERS)], make_embeddings(N_SPEAKERS))
    return path


def error_message(call: Callable[[], object]) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_file_that_is_not_a_store_is_refused(tmp_path: Path, encoder: SpeakerEncoder) -> None:
    (tmp_path / "text").write_text("no database at all " * 100)
    (tmp_path / "empty").touch()
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE mine (a)").connection.close()
    for name, words in (
        ("text", "is not a speaker store, or is damaged"),
        ("other", "is a database of another program"),
        (".", "is a directory"),
    ):
        before = (tmp_path / name).read_bytes() if name != "." else b""
        assert words in error_message(lambda name=name: Database.open(tmp_path / name))
        assert words in error_message(lambda name=name: SpeakerStore.open(tmp_path / name, encoder))
        assert name == "." or (tmp_path / name).read_bytes() == before
    assert "is empty; enrol" in error_message(lambda: Database.open(tmp_path / "empty"))
    assert "no such speaker store; make it with" in error_message(lambda: Database.open(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    assert "can't be opened" in error_message(lambda: SpeakerStore.open(tmp_path / "no" / "where", encoder))
    with SpeakerStore.open(tmp_path / "empty", encoder) as store:
        assert store.speakers() == []


def test_newer_schema_is_refused(full_store: Path) -> None:
    sqlite3.connect(full_store).execute("PRAGMA user_version = 2").connection.close()
    before = full_store.read_bytes()
    assert "has schema 2, this version reads 1; use the version that wrote it" in error_message(
        lambda: Database.open(full_store)
    )
    assert full_store.read_bytes() == before


def test_damaged_store_is_refused_or_read_completely(full_store: Path, encoder: SpeakerEncoder) -> None:
    """If pages are overwritten or cut off, reading fails with one line or returns all original rows."""
    whole = full_store.read_bytes()
    with SpeakerStore.open(full_store, encoder) as store:
        expected = store.search(make_embeddings(1, 5), top=N_SPEAKERS)
    pages = len(whole) // 4096
    chance = random.Random(0)
    lines: list[str] = []
    for page in [0, 1, 2, 3, 4, *chance.sample(range(5, pages), 8)]:
        for damaged in (
            whole[: 4096 * page] + bytes(4096) + whole[4096 * (page + 1) :],
            whole[: 4096 * page] + chance.randbytes(4096) + whole[4096 * (page + 1) :],
            whole[: 4096 * page + 100],
        ):
            full_store.write_bytes(damaged)
            try:
                with SpeakerStore.open(full_store, encoder, create=False) as store:
                    found = store.search(make_embeddings(1, 5), top=N_SPEAKERS)
            except StoreError as error:
                lines.append(str(error))
            else:
                assert found == expected
    print(f"refused {len(lines)} of 39 damaged stores")
    assert len(lines) > 25
    assert all(line.startswith(str(full_store)) and "\n" not in line for line in lines)


def test_embedding_of_another_size_is_refused(full_store: Path, encoder: SpeakerEncoder) -> None:
    connection = sqlite3.connect(full_store)
    connection.execute("UPDATE utterance SET embedding = x'00' WHERE id = 7")
    connection.commit()
    connection.close()
    with SpeakerStore.open(full_store, encoder) as store:
        assert "has 1 instead of 768 bytes; remove the speaker" in error_message(store.gallery)


def test_full_disk_does_not_change_the_store(full_store: Path, encoder: SpeakerEncoder) -> None:
    with SpeakerStore.open(full_store, encoder) as store:
        connection = store.database._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite simulates a full disk
        names = [f"new {index}" for index in range(50)]
        assert "the disk is full" in error_message(lambda: store.enroll_embeddings(names, make_embeddings(50, 1)))
        assert len(store.speakers()) == N_SPEAKERS
        connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
        assert store.enroll_embeddings(names, make_embeddings(50, 1)) == 50


def test_read_only_store_is_read(encoder: SpeakerEncoder) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with SpeakerStore.open(folder / "s.db", encoder) as store:
            store.enroll_embeddings(["Ann"], make_embeddings(1))
            store.search(make_embeddings(1))  # compiles as root, who owns the compilation cache
        (folder / "s.db").chmod(0o444)
        folder.chmod(0o555)
        with unprivileged():
            with SpeakerStore.open(folder / "s.db", encoder) as store:
                assert store.search(make_embeddings(1))[0][0].name == "Ann"
                assert "read-only" in error_message(lambda: store.enroll_embeddings(["Bob"], make_embeddings(1, 1)))
                assert "read-only" in error_message(lambda: store.remove("Ann"))
            assert "can't be opened" in error_message(lambda: Database.open(folder / "new.db", create=True))
        folder.chmod(0o755)
        assert os.listdir(folder) == ["s.db"]


def test_store_locked_by_another_process_is_reported(full_store: Path, encoder: SpeakerEncoder, monkeypatch) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.1)
    with (
        SpeakerStore.open(full_store, encoder) as start_writer,
        SpeakerStore.open(full_store, encoder) as other,
        start_writer.database.writing(),
    ):
        assert "is busy: another process" in error_message(lambda: other.remove("speaker 1"))
        assert len(other.search(make_embeddings(1), top=3)[0]) == 3  # reading still works


WRITER = """
import sys
import numpy as np
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.bundle.bundle import load_bundle

path, bundle, name, count = sys.argv[1:]
encoder = SpeakerEncoder.from_bundle(load_bundle(bundle))
rng = np.random.default_rng(int(name))
with SpeakerStore.open(path, encoder) as store:
    for turn in range(int(count)):
        added = store.enroll_embeddings([f"{name}-{turn}"] * 3, rng.standard_normal((3, 192)).astype(np.float32))
        print(f"{name}-{turn}", added, flush=True)
        if turn % 5 == 4:
            store.remove(f"{name}-{turn - 4}")
            print(f"{name}-{turn - 4}", 0, flush=True)
"""


def start_writer(path: Path, bundle: Path, name: int, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), str(bundle), str(name), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def acknowledged(lines: str) -> dict[str, int]:
    """Returns the number of utterances of each speaker that a writer reported."""
    whole = [line.split() for line in lines.splitlines(keepends=True) if line.endswith("\n")]
    return {name: int(count) for name, count in whole}


def test_two_processes_create_one_store(tmp_path: Path, bundle: Path) -> None:
    processes = [start_writer(tmp_path / "s.db", bundle, name, 40) for name in (1, 2)]
    expected: dict[str, int] = {}
    for process in processes:
        expected |= acknowledged(process.communicate(timeout=300)[0])
        assert process.returncode == 0
    with Database.open(tmp_path / "s.db") as store:
        found = {speaker.name: speaker.utterances for speaker in store.speakers()}
    assert found == {name: count for name, count in expected.items() if count}
    assert len(found) == 2 * 32


def test_killed_writers_lose_no_reported_enrolment(tmp_path: Path, bundle: Path) -> None:
    """Two writers are killed while they write. All reported enrolments are stored, and no partial enrolment."""
    path, chance = tmp_path / "s.db", random.Random(1)
    processes = [start_writer(path, bundle, name, 10**6) for name in (1, 2)]
    expected: dict[str, int] = {}
    for process in processes:
        first = process.stdout.readline()
        time.sleep(chance.uniform(0.2, 1.0))
        process.send_signal(signal.SIGKILL)
        # `communicate` would lose the lines that `readline` has buffered.
        expected |= acknowledged(first + process.stdout.read())
        assert process.wait(timeout=60) == -signal.SIGKILL
        process.stdout.close()
    with Database.open(path) as store:
        found = {speaker.name: speaker.utterances for speaker in store.speakers()}
        assert set(found.values()) == {3}
        with store.reading() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    differing = {name for name in {*found, *expected} if found.get(name, 0) != expected.get(name, 0)}
    print(f"{len(found)} speakers, {len(differing)} written and not told")
    assert len(differing) <= 2  # the enrolment that each writer had not yet reported
    assert len(expected) > 2
