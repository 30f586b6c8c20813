"""Tests of `ecapa-jax embed --manifest`: results, refused input, progress, and stopping by a signal."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from ecapa_jax import api
from ecapa_jax.cli.progress import CorpusProgress, clock, stop_signals
from ecapa_jax.encoder import SpeakerEncoder
from helpers.bundles import contents
from helpers.cli import PROGRAM, run, run_refused


@pytest.fixture
def one_encoder(monkeypatch: pytest.MonkeyPatch, encoder: SpeakerEncoder) -> None:
    monkeypatch.setattr(api, "load", lambda *_, **__: encoder)


@pytest.fixture
def wav_scp(tmp_path: Path) -> Path:
    (tmp_path / "wav.scp").write_text("u1 good_01.wav\nu2 missing file.wav\nu3 good_02.wav\n")
    return tmp_path / "wav.scp"


@pytest.mark.usefixtures("one_encoder")
def test_manifest_is_embedded_into_a_directory(capsys, tmp_path, folder, wav_scp) -> None:
    arguments = ["embed", "--manifest", wav_scp, "--output", tmp_path / "out", "--audio-root", folder]
    first = run(capsys, *arguments, "--json")
    assert (first.code, first.err) == (0, "")
    seconds = first.json["speech_seconds"]
    assert {name: first.json[name] for name in ("output", "rows", "errors", "skipped", "shards", "model")} == {
        "output": str(tmp_path / "out"), "rows": 3, "errors": 1, "skipped": 0, "shards": 1, "model": "default",
    }  # fmt: skip
    assert seconds == pytest.approx(0.52 + 0.54)
    table = pq.read_table(tmp_path / "out")
    assert table["id"].to_pylist() == ["u1", "u2", "u3"]
    again = run(capsys, *arguments)
    assert again.out.splitlines() == [
        f"{tmp_path / 'out'}: 3 recordings in 1 shard, 0.00 h of speech",
        "1 could not be embedded: the column error says why",
    ]
    retried = run(capsys, *arguments, "--retry-errors")
    assert retried.out.splitlines()[2].startswith("3 embedded now, 0.")
    assert "another --shard-size" in run_refused(capsys, tmp_path, *arguments, "--shard-size", 2)


@pytest.mark.usefixtures("one_encoder")
def test_relative_paths_are_relative_to_the_working_directory(capsys, tmp_path, folder, wav_scp, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    result = run(capsys, "embed", "--manifest", wav_scp, "--output", tmp_path / "out", "--json")
    assert result.json["errors"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--manifest", "wav.scp"], "--manifest needs --output, and takes no FILES and no -o"),
        (["--output", "out"], "--manifest needs --output, and takes no FILES and no -o"),
        (
            ["--manifest", "wav.scp", "--output", "out", "-o", "x.npz"],
            "--manifest needs --output, and takes no FILES and no -o",
        ),
        (
            ["a.wav", "--manifest", "wav.scp", "--output", "out"],
            "--manifest needs --output, and takes no FILES and no -o",
        ),
        (["a.wav"], "no output given"),
        ([], "no recordings given"),
        (["--manifest", "nothing.csv", "--output", "out"], "nothing.csv: can't be read as a manifest"),
        (["--manifest", "wav.scp", "--output", "no/out"], "there is no folder"),
        (["--manifest", "wav.scp", "--output", "full"], "full holds mine.txt and is not a corpus"),
        (["--manifest", "wav.scp", "--output", "out", "--model", "nothing"], "nothing is not a bundle directory"),
        (["--manifest", "wav.scp", "--output", "out", "--shard-size", "0"], "the shard size is 0"),
    ],
)
def test_refused_commands_write_nothing(capsys, tmp_path, monkeypatch, wav_scp, bundle, arguments, words) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    model = [] if "--model" in arguments else ["--model", bundle]
    assert words in run_refused(capsys, tmp_path, "embed", *arguments, *model)


def test_error_names_the_missing_package(capsys, tmp_path, wav_scp, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = run_refused(capsys, tmp_path, "embed", "--manifest", wav_scp, "--output", tmp_path / "out")
    assert "pip install 'ecapa-jax[corpus]'" in message


def test_help_names_the_options(capsys) -> None:
    shown = " ".join(run(capsys, "embed", "--help").out.replace("│", " ").split())
    for text in ("--manifest M", "--output DIR", "--audio-root DIR", "--shard-size N", "--retry-errors", "-o OUT.npz"):
        assert text in shown
    assert "None" not in shown


def test_progress_shows_speed_and_remaining_time(monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    out = io.StringIO()
    with CorpusProgress(100, console=Console(file=out, force_terminal=True, width=100)) as progress:
        progress.advance(30, 144000.0, True)
        progress.advance(1, 0.0, False)
        now = 160.0
        progress.advance(9, 36000.0, False)  # the first batch compiles and is not counted
        assert progress._progress.tasks[0].description == "continuing"
        now = 162.0
        progress.advance(10, 36000.0, False)
    assert progress._progress.tasks[0].description == "5.000 hours of speech/s, 0:10 left"
    assert "50/100" in out.getvalue()
    assert [clock(s) for s in (0.0, 59.6, 3599.0, 3600.0, 90061.0)] == ["0:00", "1:00", "59:59", "1:00:00", "25:01:01"]


def test_progress_is_shown_on_terminals_only() -> None:
    out = io.StringIO()
    for console, quiet in ((Console(file=out), False), (Console(file=out, force_terminal=True), True)):
        with CorpusProgress(3, console=console, quiet=quiet) as progress:
            progress.advance(3, 1.0, False)
    assert out.getvalue() == ""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_stops_gracefully_and_second_signal_at_once(kind: int) -> None:
    before = signal.getsignal(kind)
    received: list[int] = []
    signal.signal(kind, lambda number, _: received.append(number))
    try:
        with stop_signals() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), kind)
            assert (stop.wait(5), received) == (True, [])
            os.kill(os.getpid(), kind)
            assert received == [kind]
        with stop_signals():
            pass
        os.kill(os.getpid(), kind)
        assert received == [kind, kind]
    finally:
        signal.signal(kind, before)


def start(*arguments: object, **options) -> subprocess.Popen:
    command = [str(PROGRAM), *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_sigterm_saves_the_state_and_exits_with_75(tmp_path, bundle, folder) -> None:
    """The run is stopped after the first shard. The same command then embeds the rest."""
    names = [tmp_path / f"{index:04d}.wav" for index in range(2000)]
    for name in names:
        os.link(folder / "good_00.wav", name)
    (tmp_path / "m.txt").write_text("\n".join(map(str, names)))
    command = ["embed", "--manifest", tmp_path / "m.txt", "--output", tmp_path / "out", "--shard-size", 4]
    with start(*command, "--model", bundle) as process:
        deadline = time.monotonic() + 300
        while not (tmp_path / "out" / "shard-000000.parquet").exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (75, "")
    found = re.fullmatch(r"ecapa-jax: stopped on request; (\d+) of 2000 recordings are safe in .*\n", err)
    assert found, err
    safe = int(found[1])
    assert 4 <= safe < 2000
    kept = [path.name for path in contents(tmp_path / "out") if path.suffix == ".parquet"]
    assert len(kept) == safe // 4
    with start(*command, "--model", bundle, "--json") as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out).items() >= {"rows": 2000, "skipped": safe, "errors": 0}.items()
    assert len(pq.read_table(tmp_path / "out")) == 2000


@pytest.mark.usefixtures("one_encoder")
def test_full_disk_is_reported_and_finished_shards_are_kept(capsys, tmp_path, folder) -> None:
    names = [str(folder / f"good_{index:02d}.wav") for index in range(20)]
    (tmp_path / "m.txt").write_text("\n".join(names))
    command = ["embed", "--manifest", tmp_path / "m.txt", "--output", tmp_path / "out", "--shard-size", 16]
    assert run(capsys, *command).code == 0
    (tmp_path / "out" / "shard-000001.parquet").unlink()
    before = contents(tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        result = run(capsys, *command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"ecapa-jax: {tmp_path / 'out' / 'shard-000001.parquet'} can't be written: ")
    assert result.err.count("\n") == 1
    assert contents(tmp_path / "out") == before
    assert run(capsys, *command, "--json").json["skipped"] == 16


def test_documented_recipe_reads_rows_as_an_array(tmp_path, folder, encoder, capsys, monkeypatch) -> None:
    """The test follows the recipe in docs/corpus.md."""
    monkeypatch.setattr(api, "load", lambda *_, **__: encoder)
    (tmp_path / "m.txt").write_text(
        "\n".join(str(folder / name) for name in ("good_00.wav", "gone.wav", "good_01.wav"))
    )
    assert run(capsys, "embed", "--manifest", tmp_path / "m.txt", "--output", tmp_path / "out").code == 0
    table = pq.read_table(tmp_path / "out")
    table = table.filter(table["error"].is_null())
    embeddings = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    assert (embeddings.shape, embeddings.dtype) == ((2, 192), np.float32)
    assert np.isfinite(embeddings).all()
