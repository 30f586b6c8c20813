"""Tests of outputs of killed and concurrent commands, names of models and speakers, and stores of other hosts."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

import ecapa_jax
from ecapa_jax import api
from ecapa_jax.cli.common import packaged_recipes
from ecapa_jax.corpus.manifest import RecordingPart
from ecapa_jax.corpus.shard import embed_recordings
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import BundleError, ConfigError, EcapaError, StoreError, TrainingError
from ecapa_jax.files.atomic import claimed, identity, replacing_file, replacing_folder, write_whole
from ecapa_jax.identify.database import Database, check_name, format_name
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.train.scale import plan
from ecapa_jax.train.settings import packaged_configs
from helpers.corpora import small_bundle, speech, write_speech


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SpeakerEncoder:
    return ecapa_jax.load(small_bundle(tmp_path_factory.mktemp("model") / "bundle"))


# Outputs


def _exit_while_writing(path: str, *, folder: bool) -> None:
    with (replacing_folder if folder else replacing_file)(Path(path)):
        os._exit(9)


@pytest.mark.parametrize("folder", [True, False])
def test_partial_output_of_a_killed_writer_is_removed_by_the_next_writer(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "out put.npz"
    process = multiprocessing.get_context("spawn").Process(
        target=_exit_while_writing, args=(str(path),), kwargs={"folder": folder}
    )
    process.start()
    process.join()
    left = os.listdir(tmp_path)
    assert [name.startswith(".out put.npz.partial-") for name in left] == [True]
    with replacing_file(path) as other:  # the partial file of a running writer is kept
        write_whole(path, lambda to: to.write_text("new"))
        assert sorted(os.listdir(tmp_path)) == sorted([other.name, path.name])
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("before", [None, "old"])
def test_slower_of_two_file_writers_fails(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "out"
    if before:
        path.write_text(before)
    seen = identity(path)
    write_whole(path, lambda to: to.write_text("faster"), over=seen)
    with pytest.raises(EcapaError, match="meanwhile, and it was not replaced"):
        write_whole(path, lambda to: to.write_text("slower"), over=seen)
    assert path.read_text() == "faster"
    assert os.listdir(tmp_path) == ["out"]


def test_slower_of_two_folder_writers_fails(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    seen = identity(path)
    with (
        pytest.raises(BundleError, match="another command"),
        replacing_folder(path, over=seen, error=BundleError),
        replacing_folder(path, over=seen) as faster,
    ):
        (faster / "a").touch()
    assert os.listdir(tmp_path) == ["bundle"]
    assert os.listdir(path) == ["a"]


def test_folder_that_was_moved_aside_is_restored(tmp_path: Path) -> None:
    """A process was killed between the two renames that replace a folder."""
    (tmp_path / ".bundle.old-12ab").mkdir()
    (tmp_path / ".bundle.old-12ab" / "model.json").touch()
    write_whole(tmp_path / "another", lambda to: to.touch())
    assert not (tmp_path / "bundle").exists()
    with (
        pytest.raises(BundleError, match="another command"),
        replacing_folder(tmp_path / "bundle", over=None, error=BundleError),
    ):
        pass
    assert sorted(os.listdir(tmp_path)) == ["another", "bundle"]
    assert (tmp_path / "bundle" / "model.json").exists()


def test_folder_is_claimed_by_one_command_at_a_time(tmp_path: Path) -> None:
    with (
        claimed(tmp_path),
        pytest.raises(TrainingError, match="in use by another command"),
        claimed(tmp_path, TrainingError),
    ):
        pass
    assert os.listdir(tmp_path) == []
    with claimed(tmp_path):
        pass


def test_file_name_of_255_bytes_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 125 + ".npz")
    write_whole(path, lambda to: to.write_text("x"))
    assert path.read_text() == "x"


# Names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "no such bundle.: give a directory that"),
        ("some/where/deep", "no such bundle.: give a directory that"),
        ("defautl", r"did you mean default\?"),
        ("iic/speech_ecapa-tdnn_sv_zh-cn_cnceleb_16k@v1.0.0", "write modelscope:iic/speech_ecapa-tdnn_sv_zh"),
        ("speechbrain/spkrec-ecapa-voxceleb", "write hf:speechbrain/spkrec-ecapa-voxceleb$"),
        ("SpeechBrain/spkrec-ecapa-voxcelab", "write hf:speechbrain/spkrec-ecapa-voxceleb$"),
        ("weights.pt", "is a checkpoint, not a bundle: convert it with ecapa-jax convert weights.pt -o BUNDLE"),
        (
            "published",
            r"contains a checkpoint \(avg_model.pt\), not a bundle: convert it with ecapa-jax convert published",
        ),
        ("run", "is a training run, not a bundle; its bundle is run/best_bundle"),
    ],
)
def test_error_for_an_unknown_name_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").touch()
    Path("published").mkdir()
    Path("published/avg_model.pt").touch()
    Path("run/best_bundle").mkdir(parents=True)
    Path("run/best_bundle/model.json").touch()
    for function in (api.resolve, api.check_name, ecapa_jax.load):
        with pytest.raises(BundleError, match=words):
            function(name)


def test_default_names_the_packaged_model() -> None:
    assert api.resolve("default") == api.resolve(None)


def test_pipeline_accepts_a_modelscope_revision() -> None:
    name = "iic/speech_ecapa-tdnn_sv_en_voxceleb_16k"
    with pytest.raises(BundleError, match=f"write modelscope:{name}@v1.0.1"):
        ecapa_jax.pipeline(task="speaker-verification", model=name, model_revision="v1.0.1")
    with pytest.raises(ConfigError, match="has no other revision"):
        ecapa_jax.pipeline("speaker-verification", model_revision="v1.0.1")


def test_help_lists_the_packaged_recipes() -> None:
    assert packaged_recipes() == sorted(packaged_configs())
    assert "mini_channels" in packaged_recipes()


@pytest.mark.parametrize(
    "name", ["\u202ennA", "An\u200bn", "A\u2066nn", "\ufeffAnn", "Ann\u2028", "An\u00adn", "An\u200dn", "a\tb"]
)
def test_names_with_invisible_characters_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="which is not text"):
        check_name(name + "x")


@pytest.mark.parametrize("name", ["\u0646\u0627\u0645\u200c\u0647\u0627", "👩\u200d🔬", "Zoë", "שלום", "李 明"])
def test_names_in_all_scripts_are_accepted(name: str) -> None:
    assert check_name(name) == format_name(name) == name


def test_invalid_name_in_an_older_store_is_shown_escaped_and_can_be_removed(tmp_path: Path) -> None:
    with Database.open(tmp_path / "s.db", create=True) as database:
        with database.writing() as connection:
            connection.execute("INSERT INTO speaker (name) VALUES (?)", ("\u202ennA",))
        assert [format_name(speaker.name) for speaker in database.speakers()] == ["\\u202ennA"]
        assert database.remove("\u202ennA") == 0


# Stores


def replace_embedding(path: Path, blob: bytes) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE utterance SET embedding = ? WHERE id = 1", (blob,))
    connection.commit()
    connection.close()


def test_store_with_64_bit_embeddings_is_read(tmp_path: Path, encoder: SpeakerEncoder) -> None:
    embedding = encoder.embed([speech(0.9)])[0]
    with SpeakerStore.open(tmp_path / "s.db", encoder) as store:
        store.enroll_embeddings(["Ann"], embedding[None].astype(np.float64))
        replace_embedding(tmp_path / "s.db", embedding.astype("<f8").tobytes())
        assert store.identify_embedding(embedding).speaker == "Ann"


@pytest.mark.parametrize("blob", [b"", b"\0" * 7, np.full(192, np.nan, "<f4").tobytes(), np.full(192, 1e300).tobytes()])
def test_error_names_the_damaged_row(tmp_path: Path, encoder: SpeakerEncoder, blob: bytes) -> None:
    with SpeakerStore.open(tmp_path / "s.db", encoder) as store:
        store.enroll_embeddings(["Ann"], np.ones((1, 192), np.float32), source="ann_1.wav")
        replace_embedding(tmp_path / "s.db", blob)
        with pytest.raises(StoreError, match=r"'ann_1.wav' of the speaker 'Ann' .*ecapa-jax remove"):
            store.gallery()


@pytest.mark.parametrize(
    "wrong", [np.ones(191, np.float32), np.full(192, np.inf, np.float32), np.ones((2, 96), np.float32)]
)
def test_invalid_embeddings_are_not_stored(tmp_path: Path, encoder: SpeakerEncoder, wrong: np.ndarray) -> None:
    from ecapa_jax.identify.database import to_blob

    assert to_blob(np.ones(192), 192, "a.wav") == np.ones(192, "<f4").tobytes()
    with pytest.raises(StoreError, match="nothing was enrolled"):
        to_blob(wrong, 192, "a.wav")


# Rows of manifests


def test_invalid_rows_do_not_stop_a_run(tmp_path: Path, encoder: SpeakerEncoder) -> None:
    good = write_speech(tmp_path / "good.wav", 2.0)
    os.mkfifo(tmp_path / "pipe.wav")
    rows = [
        *(str(tmp_path / "pipe.wav"), "/dev/zero", str(good), "x" * 5000, "nul\0"),
        RecordingPart(str(good), 0.5, 1.5, False),
        RecordingPart(str(good), 5.0, 6.0, False),
        RecordingPart(str(good), 100.0, 110.0, True),
        RecordingPart("/dev/zero", 0.0, 1.0, False),
    ]
    done = embed_recordings(encoder, rows)
    whys = ["named pipe", "device", None, "", "", None, "outside its 2 s", "too short: 10 samples", "device"]
    for error, why in zip(done.errors, whys, strict=True):
        assert (error is None) == (why is None)
        assert error is None or why in error
    part = encoder.embed([speech(2.0)[8000:24000]])[0]
    np.testing.assert_allclose(done.embeddings[5], part, atol=1e-5 * np.abs(part).max())
    assert done.seconds[5] == 1.0


# Plans


@pytest.mark.parametrize(("per_batch", "largest"), [(0, 16 * 256), (1, 16 * 256), (-5, 16 * 256), (2**22, 1024)])
def test_largest_batch_if_memory_hardly_depends_on_the_batch(
    monkeypatch: pytest.MonkeyPatch, per_batch: int, largest: int
) -> None:
    """A classifier of a million speakers needs nearly all of the memory, and the batch needs little."""

    def make_program(batch: int) -> plan.Program:
        return plan.Program(batch, 4, 0, 0, 12 * plan.GIB + per_batch * batch, 1.0, 1.0, (), {})

    tried: list[int] = []

    def compile_batch(config: object, devices: object, n_speakers: int, batch: int) -> plan.Program:
        tried.append(batch)
        return make_program(batch)

    monkeypatch.setattr(plan, "_compile_batch", compile_batch)
    config = plan.TrainConfig()
    found = plan.largest_batch(config, plan.CHIPS["v5e"], (None,) * 4, 10**6, make_program(256))
    assert found.confirmed
    assert found.batch == largest if per_batch < 2**22 else found.batch >= 256
    assert max(tried) <= 16 * 256
