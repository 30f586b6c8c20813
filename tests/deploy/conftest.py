"""Fixtures for the tests of exported files."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs pip install ecapa-jax[onnx]")
pytest.importorskip("onnxruntime", reason="needs pip install ecapa-jax[onnx]")

from ecapa_jax.api import default_bundle
from ecapa_jax.bundle.bundle import Bundle, load_bundle
from ecapa_jax.convert.onnx.export import export_onnx


@pytest.fixture(scope="session")
def packaged() -> Bundle:
    """The packaged model."""
    return load_bundle(default_bundle())


@pytest.fixture(scope="session")
def exported(packaged: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model, exported as an ONNX file with waveform input."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    path.write_bytes(export_onnx(packaged).SerializeToString())
    return path


@pytest.fixture(autouse=True)
def _accept_synthetic_sounds(every_sound_is_speech: None) -> None:
    """Makes the speech gate accept the synthetic sounds of these tests."""
