"""Tests of fetching models from a server with the layouts of the hubs, and converting them into the cache."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import yaml

import ecapa_jax
from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.convert import remote
from ecapa_jax.convert.rules import invert_rules
from ecapa_jax.convert.sources import FAMILIES, wespeaker
from ecapa_jax.errors import ConversionError
from ecapa_jax.presets import PRESETS
from helpers import families
from helpers.addresses import SPEAKERLAB, SPEECHBRAIN, resolve, resolve_error_keeping_cache, zip_bytes
from helpers.bundles import contents, make
from helpers.checkpoints import CONFIG, tensors
from helpers.hub_server import COMMIT
from helpers.published import random_values, wespeaker_document, wespeaker_shapes
from helpers.torch_zip_writer import nemo_bytes, torch_zip_bytes
from helpers.trees import assert_same, assert_same_leaves
from helpers.weights import variables_of


def test_modelscope_model_is_fetched_and_converted(hub, root):
    folder = resolve(f"modelscope:{SPEAKERLAB}", root)
    bundle = load_bundle(folder)
    assert bundle.config == CONFIG
    assert_same_leaves(jax.tree.map(np.asarray, bundle.variables), variables_of(CONFIG.ecapa, tensors()))
    assert bundle.scoring.threshold == 0.36
    provenance = bundle.provenance
    assert provenance["address"] == f"modelscope:{SPEAKERLAB}@v1.0.1"
    assert provenance["revision"] == "v1.0.1"
    assert set(provenance["files"]) == {"ecapa_tdnn.bin", "configuration.json"}
    assert provenance["files"]["ecapa_tdnn.bin"] == provenance["sha256"]
    assert provenance["licence"] == "Apache-2.0"
    assert provenance["published"]["VoxCeleb1-O, cosine: EER %"] == 0.862
    [record] = root.glob("downloads/*/download.json")
    record = json.loads(record.read_text())
    assert record["address"] == provenance["address"]
    assert {name: file["sha256"] for name, file in record["files"].items()} == provenance["files"]
    assert len(hub.requests) == 3  # the listing and two files
    assert not hub.requests_to("examples")
    assert all("Revision=v1.0.1" in path for _, path, _ in hub.requests)
    assert resolve(f"modelscope:{SPEAKERLAB}", root) == folder
    assert len(hub.requests) == 3


def test_hugging_face_model_is_fetched_and_converted(hub, root):
    bundle = load_bundle(resolve(f"hf:{SPEECHBRAIN}", root))
    assert bundle.provenance["family"] == "speechbrain"
    assert bundle.provenance["address"] == f"hf:{SPEECHBRAIN}"
    assert bundle.provenance["revision"] == COMMIT
    assert set(bundle.provenance["files"]) == {"embedding_model.ckpt", "hyperparams.yaml"}
    assert not hub.requests_to("classifier")
    asked = len(hub.requests)
    resolve(f"hf:{SPEECHBRAIN}", root)
    assert len(hub.requests) == asked
    resolve(f"hf:{SPEECHBRAIN}@{COMMIT}", root)
    assert len(list(root.glob("bundles/*/model.json"))) == 2


def test_bundle_is_fetched_from_the_hub(hub, root):
    encoder = ecapa_jax.load("hf:me/bundle", cache_dir=root)
    assert encoder.scorer.scoring.threshold == 0.25
    variables = load_bundle(resolve("hf:me/bundle", root)).variables
    assert_same_leaves(jax.tree.map(np.asarray, variables), make().variables)
    assert not hub.requests_to("extra/")
    assert not list(root.glob("bundles/*"))
    assert load_bundle(resolve("modelscope:me/bundle", root)).config == CONFIG
    with pytest.raises(ConversionError, match="hf:me/bundle already holds a bundle"):
        remote.convert_source("hf:me/bundle", cache_dir=root)


def test_plain_url_is_fetched_and_converted(hub, root):
    hub.plain["/x/ecapa_tdnn.bin?key=secret"] = torch_zip_bytes(tensors())
    bundle = load_bundle(resolve(f"{hub.url}/x/ecapa_tdnn.bin?key=secret", root))
    assert bundle.config == CONFIG
    assert bundle.provenance["address"] == f"{hub.url}/x/ecapa_tdnn.bin"
    assert not any(b"secret" in content for content in contents(root).values())


def test_zip_archive_is_fetched_and_converted(hub, root):
    hub.plain["/get?model=x.zip"] = zip_bytes(hub.repositories[SPEAKERLAB])
    bundle = load_bundle(resolve(f"{hub.url}/get?model=x.zip", root))
    assert bundle.scoring.threshold == 0.36
    assert set(bundle.provenance["files"]) == {"ecapa_tdnn.bin", "configuration.json"}
    hub.plain["/none.zip"] = zip_bytes({"README.md": b"r"})
    assert "holds no model that this version knows (it holds: README.md)" in resolve_error_keeping_cache(
        f"{hub.url}/none.zip", root
    )


def test_wespeaker_archive_is_fetched_and_converted(hub, root, monkeypatch):
    monkeypatch.setattr(wespeaker, "MODEL", re.compile(r"ECAPA_TDNN_(GLOB_)?c(16)"))  # the published models are large
    ecapa = dataclasses.replace(PRESETS["wespeaker-c1024"].ecapa, channels=(16,) * 4, mfa_channels=48)
    weights = random_values(wespeaker_shapes(ecapa))
    document = {**wespeaker_document(), "model": "ECAPA_TDNN_GLOB_c16"}
    files = {"avg_model.pt": torch_zip_bytes(weights), "config.yaml": yaml.safe_dump(document).encode()}
    hub.plain["/downloads?version=ecapa.zip"] = zip_bytes({**files, "readme.md": b"r"})
    bundle = load_bundle(resolve(f"{hub.url}/downloads?version=ecapa.zip", root))
    assert bundle.config == dataclasses.replace(PRESETS["wespeaker-c1024"], ecapa=ecapa)
    assert bundle.provenance["family"] == "wespeaker"
    assert set(bundle.provenance["files"]) == set(files)
    back = invert_rules(FAMILIES["wespeaker"].rules(ecapa), bundle.variables)
    assert_same(back, {name: weights[name] for name in back})
    other = yaml.safe_dump({**document, "model": "ECAPA_TDNN_c16"}).encode()
    hub.plain["/other.zip"] = zip_bytes({**files, "config.yaml": other})
    assert "config.yaml describes another network" in resolve_error_keeping_cache(f"{hub.url}/other.zip", root)


def test_nemo_archive_is_fetched_and_converted(hub, root):
    config = families.config("nemo")
    hub.plain["/files/ecapa_tdnn.nemo"] = nemo_bytes(nemo_document(config.ecapa), families.tensors("nemo"))
    bundle = load_bundle(resolve(f"{hub.url}/files/ecapa_tdnn.nemo", root))
    assert bundle.config == config
    assert bundle.provenance["family"] == "nemo"
    assert bundle.provenance["address"] == f"{hub.url}/files/ecapa_tdnn.nemo"
    assert_same_leaves(jax.tree.map(np.asarray, bundle.variables), families.variables("nemo"))


def nemo_document(ecapa):
    """Returns model_config.yaml as NeMo writes it."""
    modules = "nemo.collections.asr.modules"
    preprocessor = {"normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01, "window": "hann"}
    encoder = {
        "filters": [*ecapa.channels, ecapa.mfa_channels],
        "kernel_sizes": [*ecapa.kernel_sizes, ecapa.mfa_kernel_size],
        "dilations": [1] * 5,
        "scale": ecapa.res2_scale,
    }
    parts = {
        "preprocessor": {
            "_target_": f"{modules}.AudioToMelSpectrogramPreprocessor",
            **{**preprocessor, "features": 80, "n_fft": 512, "frame_splicing": 1, "dither": 1e-5, "sample_rate": 16000},
        },
        "encoder": {"_target_": f"{modules}.ECAPAEncoder", "feat_in": 80, **encoder},
        "decoder": {"_target_": f"{modules}.SpeakerDecoder", "emb_sizes": ecapa.embedding_dim, "angular": True},
    }
    return yaml.safe_dump(parts)


def test_unlisted_repository_is_converted_or_refused(hub, root):
    hub.repositories["you/yours"] = hub.repositories[SPEAKERLAB]
    for scheme in ("hf", "modelscope"):
        bundle = load_bundle(resolve(f"{scheme}:you/yours", root))
        assert bundle.provenance["family"] == "3dspeaker"
        assert bundle.provenance["address"] == f"{scheme}:you/yours"
    hub.repositories["you/unclear"] = {"embedding_model.ckpt": hub.repositories[SPEAKERLAB]["ecapa_tdnn.bin"]}
    message = resolve_error_keeping_cache("hf:you/unclear", root)
    assert message.startswith("hf:you/unclear: ")
    assert "pass --family" in message
    bundle = remote.convert_source("hf:you/unclear", family="speechbrain", cache_dir=root)
    assert bundle.provenance["family"] == "speechbrain"
