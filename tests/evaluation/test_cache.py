"""Tests of the embedding cache with killed processes, two writers, damage, and other models."""

import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest

from ecapa_jax.errors import TrialError
from ecapa_jax.evaluation.cache import EmbeddingCache

WRITER = """
import sys, numpy as np
from ecapa_jax.evaluation.cache import EmbeddingCache
path, first = sys.argv[1], int(sys.argv[2])
with EmbeddingCache(path, "model", (1, 64)) as cache:
    for batch in range(first, first + int(sys.argv[3])):
        files = range(16 * batch, 16 * batch + 16)
        cache.put({str(n).encode(): (np.full((1, 64), n, np.float32), n / 10) for n in files})
        print(batch, flush=True)
"""


def start_writer(path, first, batches):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first), str(batches)], stdout=subprocess.PIPE, text=True
    )


def read_all(path):
    with EmbeddingCache(path, "model", (1, 64)) as cache:
        return {int(key): entry for key, entry in cache.get(str(n).encode() for n in range(16 * 2000)).items()}


def test_killed_writer_leaves_complete_batches(tmp_path):
    path = tmp_path / "cache.sqlite"
    for round_ in range(3):
        process = start_writer(path, 100 * round_, 10**6)
        reported = [process.stdout.readline() for _ in range(4 + round_)]
        time.sleep(0.003 * round_)
        process.send_signal(signal.SIGKILL)
        reported += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        found = read_all(path)
        for batch in (int(line) for line in reported if line.strip()):
            assert all(16 * batch + n in found for n in range(16))  # every reported batch is stored
    assert len(found) % 16 == 0
    for number, (embedding, seconds) in found.items():
        np.testing.assert_array_equal(embedding, np.full((1, 64), number, np.float32))
        assert seconds == number / 10


def test_two_writers_store_all_batches(tmp_path):
    path = tmp_path / "cache.sqlite"
    processes = [start_writer(path, first, 40) for first in (0, 20)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert sorted(read_all(path)) == list(range(16 * 60))


def test_models_do_not_share_embeddings(tmp_path):
    path = tmp_path / "deep" / "cache.sqlite"
    with EmbeddingCache(path, "a", (1, 3)) as cache:
        cache.put({b"x": (np.ones((1, 3), np.float32), 1.5)})
        assert list(cache.get([b"x", b"y"])) == [b"x"]
    with EmbeddingCache(path, "b", (1, 3)) as cache:
        assert cache.get([b"x"]) == {}


@pytest.mark.parametrize("content", [b"", b"123", np.full(3, np.nan, "<f4").tobytes(), bytes(16)])
def test_damaged_embedding_is_ignored_and_replaced(tmp_path, content):
    path = tmp_path / "cache.sqlite"
    with EmbeddingCache(path, "a", (1, 3)) as cache:
        cache.put({b"x": (np.ones((1, 3), np.float32), 1.5)})
    database = sqlite3.connect(path)
    database.execute("UPDATE embeddings SET embedding = ?", (content,))
    database.commit()
    database.close()
    with EmbeddingCache(path, "a", (1, 3)) as cache:
        assert cache.get([b"x"]) == {}
        cache.put({b"x": (np.ones((1, 3), np.float32), 1.5)})
        np.testing.assert_array_equal(cache.get([b"x"])[b"x"][0], np.ones((1, 3)))


def test_other_files_are_refused_and_not_changed(tmp_path):
    database = sqlite3.connect(tmp_path / "theirs")
    database.execute("CREATE TABLE t (x)")
    database.commit()
    database.close()
    before = (tmp_path / "theirs").read_bytes()
    with pytest.raises(TrialError, match="not an embedding cache of this version"):
        EmbeddingCache(tmp_path / "theirs", "a", (1, 3))
    assert (tmp_path / "theirs").read_bytes() == before
    with pytest.raises(TrialError, match="can't be"):
        EmbeddingCache(tmp_path / "theirs" / "x", "a", (1, 3))
