"""Tests of distillation: losses, tables of embeddings, teacher bundles, views, and exact resumption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from ecapa_jax.api import load
from ecapa_jax.cli.main import main
from ecapa_jax.errors import ConfigError, TrainingError
from ecapa_jax.train.config import TeacherConfig, TrainConfig
from ecapa_jax.train.data.manifest import read_manifest, read_rows, write_manifest
from ecapa_jax.train.loop import history, train
from ecapa_jax.train.losses import Pairs, teacher_loss
from ecapa_jax.train.settings import build_config, config_document
from ecapa_jax.train.teacher import TeacherBundle, TeacherTable, compute_targets, read_teacher
from ecapa_jax.train.views import write_views
from helpers.training import QuietProgress, assert_equal_runs, stop_after, train_and_kill

DIMENSION = 16


def normalize(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def expected_loss(config: TeacherConfig, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Computes the loss row by row in float64."""
    s, t = normalize(student.astype(np.float64)), normalize(teacher.astype(np.float64))
    losses = np.zeros(len(s))
    for i in range(len(s)):
        losses[i] += config.cosine * (1 - s[i] @ t[i])
        others = [j for j in range(len(s)) if j != i]
        losses[i] += config.relations * np.mean([(s[i] @ s[j] - t[i] @ t[j]) ** 2 for j in others])
        wanted = np.exp(config.contrast_scale * (t @ t[i]))
        given = np.exp(config.contrast_scale * (t @ s[i]))
        losses[i] -= config.contrast * np.sum(wanted / wanted.sum() * np.log(given / given.sum()))
    return losses


def make_pairs(student: np.ndarray, teacher: np.ndarray, rows: np.ndarray) -> Pairs:
    return Pairs(jnp.asarray(student[rows]), jnp.asarray(teacher[rows]), jnp.asarray(rows))


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 5, 0.2)])
def test_loss_equals_the_formula(weights):
    config = TeacherConfig(**dict(zip(("cosine", "relations", "contrast"), map(float, weights), strict=True)))
    generator = np.random.default_rng(0)
    student, teacher = generator.standard_normal((2, 6, 9)).astype(np.float32)
    every = make_pairs(student, teacher, np.arange(6))
    losses, agreement = teacher_loss(config, every, every)
    np.testing.assert_allclose(losses, expected_loss(config, student, teacher), atol=2e-6)
    if config.cosine or config.contrast:
        np.testing.assert_allclose(agreement, np.sum(normalize(student) * normalize(teacher), axis=1), atol=1e-6)
    part, _ = teacher_loss(config, make_pairs(student, teacher, np.array([4, 1])), every)
    np.testing.assert_allclose(part, losses[np.array([4, 1])], atol=1e-6)


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def table_rows(config: TrainConfig) -> list[dict[str, Any]]:
    """Returns an embedding for each utterance, which depends on its speaker."""
    manifest = read_manifest(config.data.manifest)
    generator = np.random.default_rng(3)
    voices = generator.standard_normal((len(manifest.speakers), DIMENSION))
    return [
        {"id": name, "embedding": (voices[label] + 0.1 * generator.standard_normal(DIMENSION)).tolist()}
        for name, label in zip(manifest.ids, manifest.labels, strict=True)
    ]


@pytest.fixture(scope="session")
def distillation_config(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A tiny run with a table of teacher embeddings, in which half of the utterances have no speaker."""
    folder = tmp_path_factory.mktemp("taught")
    rows = read_rows(Path(config.data.manifest))
    for row in rows:
        row["path"] = str(Path(config.data.manifest).parent / row["path"])
    for row in rows[::2]:
        row["speaker"] = None
    write_manifest(folder / "manifest.parquet", rows, 16000)
    table = write_table(folder / "table.parquet", table_rows(config))
    document = config_document(config)
    document["data"]["manifest"] = str(folder / "manifest.parquet")
    document["teacher"] = {"embeddings": str(table), "relations": 5.0, "contrast": 0.2, "labels": 0.1}
    return build_config(document)


@pytest.fixture(scope="session")
def distillation_run(distillation_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("taught_run") / "whole"
    assert train(distillation_config, directory, QuietProgress()).finished
    return directory


def test_student_approaches_its_teacher(distillation_run):
    cosines = [line["teacher_cosine"] for line in history(distillation_run) if "teacher_cosine" in line]
    assert cosines[-1] > cosines[0] + 0.1


def test_stopped_run_resumes_bit_for_bit(distillation_config, distillation_run, tmp_path):
    assert not train(distillation_config, tmp_path / "run", QuietProgress(), stop_after(4)).finished
    assert train(distillation_config, tmp_path / "run", QuietProgress()).finished
    assert_equal_runs(distillation_config, tmp_path / "run", distillation_run)


def test_killed_run_resumes_bit_for_bit(distillation_config, distillation_run, tmp_path):
    assert train_and_kill(
        distillation_config, tmp_path / "run", lambda run: (run / "metrics.jsonl").exists() and len(history(run)) >= 2
    )
    assert train(distillation_config, tmp_path / "run", QuietProgress()).finished
    assert_equal_runs(distillation_config, tmp_path / "run", distillation_run)


def test_resuming_with_another_table_is_refused(distillation_config, distillation_run, tmp_path):
    rows = pq.read_table(distillation_config.teacher.embeddings).to_pylist()
    rows[0]["embedding"][0] += 1.0
    other = dataclasses.replace(
        distillation_config.teacher, embeddings=str(write_table(tmp_path / "other.parquet", rows))
    )
    with pytest.raises(TrainingError, match="another teacher"):
        train(dataclasses.replace(distillation_config, teacher=other), distillation_run, QuietProgress())


@pytest.mark.parametrize("fault", ["missing", "twice", "length", "nan", "null"])
def test_error_names_the_invalid_row_of_the_table(distillation_config, tmp_path, capsys, fault):
    rows = pq.read_table(distillation_config.teacher.embeddings).to_pylist()
    name = rows[3]["id"]
    if fault == "missing":
        del rows[3]
    elif fault == "twice":
        rows.append(rows[3])
    elif fault == "length":
        rows[3]["embedding"] = rows[3]["embedding"][:-1]
    elif fault == "nan":
        rows[3]["embedding"][2] = float("nan")
    else:
        rows[3]["embedding"] = None
    document = config_document(distillation_config)
    document["teacher"]["embeddings"] = str(write_table(tmp_path / "faulty.parquet", rows))
    with pytest.raises(ConfigError, match="faulty") as error:
        read_teacher(build_config(document), read_manifest(distillation_config.data.manifest))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_command_line_refuses_an_invalid_table_in_one_line(config, tmp_path, capsys):
    table = write_table(tmp_path / "table.parquet", table_rows(config)[1:])
    changes = [f"data.manifest={config.data.manifest}", f"teacher.embeddings={table}", "model.ecapa.embedding_dim=16"]
    options = [part for change in changes for part in ("--set", change)]
    assert main(["train", "distil", "-o", str(tmp_path / "run"), *options]) == 2
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0
    assert "has no row for" in message


def test_embeddings_of_another_size_allow_only_the_relation_loss(distillation_config, tmp_path):
    rows = [
        {**row, "embedding": row["embedding"][:8]}
        for row in pq.read_table(distillation_config.teacher.embeddings).to_pylist()
    ]
    table = str(write_table(tmp_path / "small.parquet", rows))
    manifest = read_manifest(distillation_config.data.manifest)
    small = dataclasses.replace(distillation_config.teacher, embeddings=table)
    with pytest.raises(ConfigError, match="8 values"):
        read_teacher(dataclasses.replace(distillation_config, teacher=small), manifest)
    related = dataclasses.replace(small, cosine=0.0, contrast=0.0)
    found = read_teacher(dataclasses.replace(distillation_config, teacher=related), manifest)
    assert isinstance(found, TeacherTable)
    assert found.target(0, 0).shape == (8,)


def test_utterances_without_a_speaker_need_a_teacher(distillation_config, tmp_path):
    alone = dataclasses.replace(distillation_config, teacher=TeacherConfig())
    with pytest.raises(TrainingError, match="have no speaker"):
        train(alone, tmp_path / "run", QuietProgress())


def test_each_speed_has_its_own_table_row(config, tmp_path):
    document = config_document(config)
    document["data"]["speeds"] = [1.0, 0.9]
    rows = table_rows(config)
    document["teacher"] = {"embeddings": str(write_table(tmp_path / "slow.parquet", rows)), "centre": False}
    with pytest.raises(ConfigError, match=r"variant '0\.9x'"):
        read_teacher(build_config(document), read_manifest(config.data.manifest))
    slow = [{**row, "variant": "0.9x", "embedding": [-value for value in row["embedding"]]} for row in rows]
    write_table(tmp_path / "slow.parquet", [{**row, "variant": ""} for row in rows] + slow)
    found = read_teacher(build_config(document), read_manifest(config.data.manifest))
    assert isinstance(found, TeacherTable)
    np.testing.assert_array_equal(found.target(2, 0), -found.target(2, 1))


def test_teacher_bundle_computes_targets_within_the_step(config, finished, tmp_path):
    """The targets are the teacher's embeddings minus their mean. A resumed run equals an uninterrupted run."""
    document = config_document(config)
    document["teacher"] = {"bundle": str(finished / "bundle"), "same_view": 0.5}
    distillation_config = build_config(document)
    teacher = read_teacher(distillation_config, read_manifest(config.data.manifest))
    assert isinstance(teacher, TeacherBundle)
    waveforms = 0.1 * np.random.default_rng(0).standard_normal((3, 8000)).astype(np.float32)
    targets = compute_targets(teacher.config, teacher.arrays, jnp.asarray(waveforms), jnp.full(3, 8000))
    expected = load(finished / "bundle").embed(list(waveforms), sample_rate=16000) - teacher.arrays["centre"]
    np.testing.assert_allclose(targets, expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(teacher.arrays["centre"]).max() > 0
    assert train(distillation_config, tmp_path / "whole", QuietProgress()).finished
    assert not train(distillation_config, tmp_path / "stopped", QuietProgress(), stop_after(5)).finished
    assert train(distillation_config, tmp_path / "stopped", QuietProgress()).finished
    assert_equal_runs(distillation_config, tmp_path / "stopped", tmp_path / "whole")


def test_views_equal_the_training_batches_and_resume(config, tmp_path, monkeypatch):
    document = config_document(config)
    document["augment"] |= {"mixture": 1.0, "probability": 1.0}
    config = build_config(document)
    made = write_views(config, tmp_path / "whole", 18)
    assert made.views == 20  # only full batches of 4
    assert 12 <= made.utterances <= 15
    manifest = read_manifest(made.manifest)
    assert len(set(zip(manifest.ids, manifest.variants, strict=True))) == 20
    assert all(len(soundfile.read(file)[0]) == 8000 for file in manifest.files)
    monkeypatch.setattr("ecapa_jax.train.views.PART_STEPS", 2)
    calls = iter(range(2))

    def fail(done: int, total: int) -> None:
        if next(calls, None) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_views(config, tmp_path / "stopped", 18, progress=fail)
    write_views(config, tmp_path / "stopped", 18)
    hashes = [row["sha256"] for row in read_rows(made.manifest)]
    assert [row["sha256"] for row in read_rows(tmp_path / "stopped" / "manifest.parquet")] == hashes
    assert len(set(hashes)) == 20
    with pytest.raises(TrainingError, match="exists"):
        write_views(config, tmp_path / "stopped", 18)


def test_views_command_prints_what_it_wrote(config, tmp_path, capsys):
    changes = [f"data.manifest={config.data.manifest}", "data.batch_size=4", "data.crop_seconds=0.5"]
    options = [part for change in changes for part in ("--set", change)]
    assert main(["views", "distil", "-o", str(tmp_path / "views"), "-n", "4", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["views"] == 4
    assert main(["views", "distil", "-o", str(tmp_path / "none"), "-n", "0", *options]) == 2
    assert "must be positive" in capsys.readouterr().err
