"""Fixtures: a server with published repositories, and a separate cache for each test."""

import numpy as np
import pytest

from ecapa_jax.bundle.bundle import save_bundle
from ecapa_jax.convert import run
from ecapa_jax.hub import repository
from helpers.addresses import POLICY, SPEAKERLAB, SPEECHBRAIN, repository_files
from helpers.bundles import make
from helpers.checkpoints import modelscope, speechbrain
from helpers.hub_server import serving


@pytest.fixture(scope="session")
def repositories(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    save_bundle(make(), root / "bundle")
    (root / "b").mkdir()
    return {
        SPEAKERLAB: repository_files(modelscope(root / "a", name="ecapa_tdnn.bin")) | {"examples/a.wav": b"a"},
        SPEECHBRAIN: repository_files(speechbrain(root / "b")) | {"classifier.ckpt": b"c", "README.md": b"r"},
        "me/bundle": repository_files(root / "bundle") | {".gitattributes": b"", "extra/x": b"x"},
        "me/none": {"README.md": b"r"},
    }


@pytest.fixture
def hub(repositories, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        server.repositories |= {name: dict(files) for name, files in repositories.items()}
        monkeypatch.setattr(
            repository, "HUBS", repository.Hubs(modelscope=server.url, huggingface=server.url, policy=POLICY)
        )
        yield server


@pytest.fixture(autouse=True)
def skip_probe(monkeypatch):
    """Replaces the check of the converted model, which other tests cover and which compiles for seconds."""
    monkeypatch.setattr(run, "_probe", lambda *_: np.ones(192, np.float32))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"
