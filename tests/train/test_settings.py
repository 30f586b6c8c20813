"""Tests of training configurations: packaged recipes, changes by options, and errors."""

from __future__ import annotations

import jaxtyping
import pytest

from ecapa_jax.errors import ConfigError
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.settings import build_config, config_document, load_config, packaged_configs


@pytest.mark.parametrize("name", sorted(packaged_configs()))
def test_packaged_recipes_are_valid_and_survive_a_round_trip(name):
    config = load_config(name)
    assert isinstance(config, TrainConfig)
    assert build_config(config_document(config)) == config


def test_recipes_equal_the_published_ones():
    """The test compares the numbers in the publishers' recipes."""
    reference = load_config("voxceleb2_3dspeaker")
    assert (reference.data.batch_size, reference.data.speeds, reference.optim.peak) == (256, (1.0, 0.9, 1.1), 0.2)
    assert (reference.loss.scale, reference.loss.margin, reference.run.length) == (32.0, 0.3, 70.0)
    large = load_config("voxceleb2_wespeaker_lm")
    assert (large.loss.margin, large.data.crop_seconds, large.data.speeds) == (0.5, 6.0, (1.0,))
    assert large.model == load_config("voxceleb2_wespeaker").model


def test_changes_are_applied_in_order(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[data]\nbatch_size = 8\n[model.ecapa]\nchannels = [16, 16, 16, 16]\nmfa_channels = 48\n")
    config = load_config(
        str(path),
        ["data.batch_size=4", "data.batch_size=6", "loss.kind=am", 'data.manifest="a b"', "data.speeds=[1.0, 0.9]"],
    )
    assert (config.data.batch_size, config.loss.kind, config.data.manifest) == (6, "am", "a b")
    assert config.data.speeds == (1.0, 0.9)
    assert config.model.ecapa.channels == (16,) * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.batch_size", "section.key=value"),
        ("data.batchsize=3", "unknown key batchsize"),
        ("nothing.here=3", "unknown key nothing"),
        ("data.batch_size=many", "type int"),
        ("data.batch_size=0", "positive"),
        ("data.speeds=[0.9]", "start with 1.0"),
        ("loss.kind=arc", "one of: aam, am, softmax"),
        ("model.preset=x", "one of"),
        ("model.ecapa.width=3", "unknown key width"),
        ("step.micro_batches=7", "multiple"),
        ("data.speed_probability=2.0", "speed_probability lies in"),
        ("augment.noise_snr=[5.0]", "two ascending"),
        ("data=3", "must be a table"),
    ],
)
def test_invalid_change_is_reported(change, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no run-time type checks
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        load_config("smoke", [change])


def test_missing_or_invalid_file_is_reported(tmp_path):
    with pytest.raises(ConfigError, match="no such file, nor a packaged"):
        load_config(str(tmp_path / "none.toml"))
    (tmp_path / "broken.toml").write_text("[data\n")
    with pytest.raises(ConfigError, match="is not a TOML file"):
        load_config(str(tmp_path / "broken.toml"))
