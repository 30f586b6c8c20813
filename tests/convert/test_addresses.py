"""Models by address: from a server in the layouts of the hubs to a bundle in the cache."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile

import jax
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import ecapa_jax
from ecapa_jax import api
from ecapa_jax.convert import published, remote, run
from ecapa_jax.convert.rules import invert_rules
from ecapa_jax.convert.sources import FAMILIES, wespeaker
from ecapa_jax.errors import BundleError, ConversionError, DownloadError
from ecapa_jax.io import cache, huggingface, repository
from ecapa_jax.io.address import Address, is_address, parse
from ecapa_jax.io.bundle import load_bundle, save_bundle
from ecapa_jax.io.download import Policy
from ecapa_jax.presets import PRESETS
from helpers import families
from helpers.bundles import contents, make
from helpers.checkpoints import CONFIG, modelscope, speechbrain, tensors
from helpers.hub_server import COMMIT, Fault, serving
from helpers.privileges import unprivileged
from helpers.published import random_values, wespeaker_document, wespeaker_shapes
from helpers.torch_zip_writer import nemo_bytes, torch_zip_bytes
from helpers.trees import assert_same, assert_same_leaves
from helpers.weights import variables_of

SPEAKERLAB = "iic/speech_ecapa-tdnn_sv_en_voxceleb_16k"
SPEECHBRAIN = "speechbrain/spkrec-ecapa-voxceleb"
POLICY = Policy(timeout=5.0, attempts=3, pause=0.01, longest_pause=0.5)


def files_of(folder):
    return {name.as_posix(): content for name, content in contents(folder).items()}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    save_bundle(make(), root / "bundle")
    (root / "b").mkdir()
    return {
        SPEAKERLAB: files_of(modelscope(root / "a", name="ecapa_tdnn.bin")) | {"examples/a.wav": b"a"},
        SPEECHBRAIN: files_of(speechbrain(root / "b")) | {"classifier.ckpt": b"c", "README.md": b"r"},
        "me/bundle": files_of(root / "bundle") | {".gitattributes": b"", "extra/x": b"x"},
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
def no_probe(monkeypatch):
    """What is proven of a conversion is tested elsewhere; compiling for it takes seconds."""
    monkeypatch.setattr(run, "_probe", lambda *_: np.ones(192, np.float32))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def folder_of(name, root):
    return api.resolve(name, cache_dir=root)


def refused(name, root):
    with pytest.raises((DownloadError, ConversionError)) as error:
        folder_of(name, root)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert not list(root.glob("bundles/*/model.json"))
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf:org/name", Address("hf", "org/name")),
        ("HF:org/na.me_2-x", Address("hf", "org/na.me_2-x")),
        ("hf:org/name@refs/pr/1", Address("hf", "org/name", "refs/pr/1")),
        ("modelscope:iic/x@v1.0.1", Address("modelscope", "iic/x", "v1.0.1")),
        ("https://Host/x/y.zip?a=b@c#d", Address("https", "https://Host/x/y.zip?a=b@c")),
        ("http://host:80/x", Address("http", "http://host:80/x")),
    ],
)
def test_addresses(text, address):
    assert is_address(text)
    assert parse(text) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf:", "takes ORG/NAME"),
        ("hf:name", "takes ORG/NAME"),
        ("hf:/name", "takes ORG/NAME"),
        ("hf:org/", "takes ORG/NAME"),
        ("hf:org/name/x", "takes ORG/NAME"),
        ("hf:../name", "takes ORG/NAME"),
        ("hf:org/..", "takes ORG/NAME"),
        ("hf:org/a..b", "takes ORG/NAME"),
        ("hf:org/.hidden", "takes ORG/NAME"),
        ("hf:org/na me", "takes ORG/NAME"),
        ("hf:org/näme", "takes ORG/NAME"),
        ("hf:org/name?x=y", "takes ORG/NAME"),
        ("hf:org/name\n", "takes ORG/NAME"),
        ("modelscope:org\\name", "takes ORG/NAME"),
        ("hf:org/name@", "is no revision"),
        ("hf:org/name@../x", "is no revision"),
        ("hf:org/name@a//b", "is no revision"),
        ("hf:org/name@a b", "is no revision"),
        ("hf:org/name@-x", "is no revision"),
        ("ftp://host/x", "'ftp' is no known scheme"),
        ("file:///etc/passwd", "'file' is no known scheme"),
        ("ngc:x/y", "'ngc' is no known scheme"),
        ("https://host", "names no file"),
        ("https:///x", "names no file"),
        ("https://host/", "names no file"),
        ("https://user:word@host/x", "a user or password"),
        ("https://[::1/x", "is no address"),
        ("https://huggingface.co/org/name", "its address is hf:org/name"),
        ("https://www.modelscope.cn/models/iic/x/", "its address is modelscope:iic/x"),
    ],
)
def test_wrong_addresses(text, words, root):
    assert is_address(text)
    message = refused(text, root)
    assert words in message
    assert "word@" not in message
    assert not root.exists()


@given(
    st.text(st.characters(codec="utf-8"), max_size=30), st.sampled_from(["hf:", "modelscope:", "https://", "x:", ""])
)
def test_any_text_is_an_address_or_one_line(text, scheme):
    address = None
    with contextlib.suppress(DownloadError):
        address = parse(scheme + text)
    if address is None:
        with pytest.raises(DownloadError, match=r"^[^\n]*$"):
            parse(scheme + text)
        return
    assert address.folder().strip("-.abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == ""
    if address.scheme in ("hf", "modelscope"):
        assert parse(str(address)) == address
        assert address.name.count("/") == 1
        assert ".." not in str(address)


@pytest.mark.parametrize("text", ["org/name", "a/b.bin", "C:/x", "./hf:a/b", ""])
def test_paths_are_no_addresses(text):
    assert not is_address(text)


def test_addresses_have_folders_of_their_own():
    texts = ["hf:a/b", "hf:a/b@x", "hf:a/b-x", "hf:a-b/x", "modelscope:a/b", "https://h/a/b?x=1", "https://h/a/b?x=2"]
    folders = {parse(text).folder() for text in texts} | {parse("hf:a/b").folder(2)}
    assert len(folders) == len(texts) + 1
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in folders)


def test_modelscope_by_name(hub, root):
    folder = folder_of(f"modelscope:{SPEAKERLAB}", root)
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
    assert not hub.asked("examples")
    assert all("Revision=v1.0.1" in path for _, path, _ in hub.requests)
    assert folder_of(f"modelscope:{SPEAKERLAB}", root) == folder
    assert len(hub.requests) == 3


def test_hugging_face_by_name(hub, root):
    bundle = load_bundle(folder_of(f"hf:{SPEECHBRAIN}", root))
    assert bundle.provenance["family"] == "speechbrain"
    assert bundle.provenance["address"] == f"hf:{SPEECHBRAIN}"
    assert bundle.provenance["revision"] == COMMIT
    assert set(bundle.provenance["files"]) == {"embedding_model.ckpt", "hyperparams.yaml"}
    assert not hub.asked("classifier")
    asked = len(hub.requests)
    folder_of(f"hf:{SPEECHBRAIN}", root)
    assert len(hub.requests) == asked
    folder_of(f"hf:{SPEECHBRAIN}@{COMMIT}", root)
    assert len(list(root.glob("bundles/*/model.json"))) == 2


def test_a_bundle_is_read_from_the_hub(hub, root):
    encoder = ecapa_jax.load("hf:me/bundle", cache_dir=root)
    assert encoder.scoring.threshold == 0.25
    variables = load_bundle(folder_of("hf:me/bundle", root)).variables
    assert_same_leaves(jax.tree.map(np.asarray, variables), make().variables)
    assert not hub.asked("extra/")
    assert not list(root.glob("bundles/*"))
    assert load_bundle(folder_of("modelscope:me/bundle", root)).config == CONFIG
    with pytest.raises(ConversionError, match="hf:me/bundle holds a bundle already"):
        remote.convert_source("hf:me/bundle", cache_dir=root)


def zipped(files):
    import io

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"folder/{name}", content)
    return file.getvalue()


def test_plain_addresses(hub, root):
    hub.plain["/x/ecapa_tdnn.bin?key=secret"] = torch_zip_bytes(tensors())
    bundle = load_bundle(folder_of(f"{hub.url}/x/ecapa_tdnn.bin?key=secret", root))
    assert bundle.config == CONFIG
    assert bundle.provenance["address"] == f"{hub.url}/x/ecapa_tdnn.bin"
    assert not any(b"secret" in content for content in contents(root).values())


def test_archives(hub, root):
    hub.plain["/get?model=x.zip"] = zipped(hub.repositories[SPEAKERLAB])
    bundle = load_bundle(folder_of(f"{hub.url}/get?model=x.zip", root))
    assert bundle.scoring.threshold == 0.36
    assert set(bundle.provenance["files"]) == {"ecapa_tdnn.bin", "configuration.json"}
    hub.plain["/none.zip"] = zipped({"README.md": b"r"})
    assert "holds no model that this version knows (it holds: README.md)" in refused_more(f"{hub.url}/none.zip", root)


def test_a_wespeaker_archive(hub, root, monkeypatch):
    monkeypatch.setattr(wespeaker, "MODEL", re.compile(r"ECAPA_TDNN_(GLOB_)?c(16)"))  # the published ones are large
    ecapa = dataclasses.replace(PRESETS["wespeaker-c1024"].ecapa, channels=(16,) * 4, mfa_channels=48)
    weights = random_values(wespeaker_shapes(ecapa))
    document = {**wespeaker_document(), "model": "ECAPA_TDNN_GLOB_c16"}
    files = {"avg_model.pt": torch_zip_bytes(weights), "config.yaml": yaml.safe_dump(document).encode()}
    hub.plain["/downloads?version=ecapa.zip"] = zipped({**files, "readme.md": b"r"})
    bundle = load_bundle(folder_of(f"{hub.url}/downloads?version=ecapa.zip", root))
    assert bundle.config == dataclasses.replace(PRESETS["wespeaker-c1024"], ecapa=ecapa)
    assert bundle.provenance["family"] == "wespeaker"
    assert set(bundle.provenance["files"]) == set(files)
    back = invert_rules(FAMILIES["wespeaker"].rules(ecapa), bundle.variables)
    assert_same(back, {name: weights[name] for name in back})
    other = yaml.safe_dump({**document, "model": "ECAPA_TDNN_c16"}).encode()
    hub.plain["/other.zip"] = zipped({**files, "config.yaml": other})
    assert "config.yaml is of another network" in refused_more(f"{hub.url}/other.zip", root)


def test_a_nemo_archive(hub, root):
    config = families.config("nemo")
    hub.plain["/files/ecapa_tdnn.nemo"] = nemo_bytes(nemo_document(config.ecapa), families.tensors("nemo"))
    bundle = load_bundle(folder_of(f"{hub.url}/files/ecapa_tdnn.nemo", root))
    assert bundle.config == config
    assert bundle.provenance["family"] == "nemo"
    assert bundle.provenance["address"] == f"{hub.url}/files/ecapa_tdnn.nemo"
    assert_same_leaves(jax.tree.map(np.asarray, bundle.variables), families.variables("nemo"))


def nemo_document(ecapa):
    """model_config.yaml as NeMo writes it."""
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


def refused_more(name, root):
    with pytest.raises((DownloadError, ConversionError)) as error:
        folder_of(name, root)
    return str(error.value)


def test_the_files_of_an_entry():
    """Weights first; companions only beside weights."""
    espnet = remote._wanted(published.entry_of("hf:espnet/voxcelebs12_ecapa_mel"))
    names = ["README.md", "exp/spk/config.yaml", "exp/spk/10epoch.pth", "exp/spk/images/eer.png"]
    assert list(espnet(names)) == ["exp/spk/config.yaml", "exp/spk/10epoch.pth"]
    assert not espnet(["exp/spk/config.yaml"])
    wespeaker = remote._wanted(published.entry_of("hf:Wespeaker/wespeaker-ecapa-tdnn512-LM"))
    assert list(wespeaker(["avg_model.pt", "config.yaml", "voxceleb_ECAPA512_LM.onnx"])) == [
        "avg_model.pt",
        "config.yaml",
    ]
    assert not wespeaker(["voxceleb_ECAPA512_LM.onnx"])


def test_a_repository_outside_the_table(hub, root):
    hub.repositories["you/yours"] = hub.repositories[SPEAKERLAB]
    for scheme in ("hf", "modelscope"):
        bundle = load_bundle(folder_of(f"{scheme}:you/yours", root))
        assert bundle.provenance["family"] == "3dspeaker"
        assert bundle.provenance["address"] == f"{scheme}:you/yours"
    hub.repositories["you/unclear"] = {"embedding_model.ckpt": hub.repositories[SPEAKERLAB]["ecapa_tdnn.bin"]}
    message = refused_more("hf:you/unclear", root)
    assert message.startswith("hf:you/unclear: ")
    assert "pass --family" in message
    bundle = remote.convert_source("hf:you/unclear", family="speechbrain", cache_dir=root)
    assert bundle.provenance["family"] == "speechbrain"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:me/none", "holds no model that this version knows (it holds: README.md)"),
        ("modelscope:me/none", "holds no model that this version knows (it holds: README.md)"),
        ("hf:me/missing", "there is no such repository, or it is private"),
        ("modelscope:me/missing", "the server answered 404"),
        ("hf:me/bundle@v9", "it has no revision v9"),
        ("modelscope:me/bundle@v9", "the server answered 404"),
    ],
)
def test_what_is_not_there(hub, root, name, words):
    message = refused(name, root)
    assert words in message
    assert not list(root.glob("downloads/*/download.json"))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "checkpoint/../../x", "checkpoint//x", "checkpoint/a\\b"])
@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_unsafe_names_are_not_fetched(hub, root, scheme, name):
    files = {"model.json": b"{}", f"checkpoint/{name}" if name == "../x" else name: b"x"}
    hub.repositories["me/evil"] = files
    if name == "/etc/x":  # not wanted, so only left alone
        assert folder_of(f"{scheme}:me/evil", root).is_dir()
        assert not hub.asked("/etc/x")
        return
    assert "unsafe name" in refused(f"{scheme}:me/evil", root)


def test_a_digest_that_differs(hub, root, monkeypatch):
    name = f"modelscope:{SPEAKERLAB}"
    good = hub.repositories[SPEAKERLAB]["ecapa_tdnn.bin"]
    hub.faults["FilePath=ecapa"] = [Fault(location=f"{hub.url}/other")]
    hub.plain["/other"] = good[:-1] + b"?"
    assert "was expected" in refused(name, root)
    hub.faults["/resolve/"] = [Fault(location=f"{hub.url}/other")] * 9
    monkeypatch.setattr(huggingface, "listing", _listing_with("0" * 64))
    assert "the hub lists" in refused(f"hf:{SPEECHBRAIN}", root)
    monkeypatch.undo()


def _listing_with(digest):
    return lambda *_: huggingface.Listing(COMMIT, {"embedding_model.ckpt": digest, "hyperparams.yaml": None})


def test_a_known_digest_is_checked(hub, root, monkeypatch):
    entry = published.entry_of(f"modelscope:{SPEAKERLAB}")
    wrong = [published.dataclasses.replace(entry, sha256="0" * 64)]
    monkeypatch.setattr(published, "PUBLISHED", tuple(wrong))
    assert f"{'0' * 64} was published" in refused(f"modelscope:{SPEAKERLAB}", root)


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_faults_on_the_way(hub, root, scheme, monkeypatch, capsys):
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "DOWNLOAD_CHUNK_SIZE", 1000)
    name = {"hf": f"hf:{SPEECHBRAIN}", "modelscope": f"modelscope:{SPEAKERLAB}"}[scheme]
    weights = {"hf": "embedding_model.ckpt", "modelscope": "FilePath=ecapa_tdnn.bin"}[scheme]
    listing = {"hf": "/api/models/", "modelscope": "/repo/files"}[scheme]
    hub.faults = {
        listing: [Fault(status=503), Fault(status=429, headers={"Retry-After": "0"})],
        weights: [Fault(cut=20_000), Fault(status=429, headers={"Retry-After": "0"})],
    }
    assert load_bundle(folder_of(name, root)).config.ecapa == CONFIG.ecapa
    assert "bytes=20000-" in [headers.get("Range", headers.get("range")) for headers in hub.asked(weights)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_lasting_faults_are_told(hub, root, scheme):
    name = {"hf": f"hf:{SPEECHBRAIN}", "modelscope": f"modelscope:{SPEAKERLAB}"}[scheme]
    listing = {"hf": "/api/models/", "modelscope": "/repo/files"}[scheme]
    hub.faults[listing] = [Fault(status=503)] * 3
    message = refused(name, root)
    assert "503" in message
    assert "tried 3 times" in message
    hub.faults[listing] = [Fault(status=429, headers={"Retry-After": "999"})]
    assert "it asks to wait 999 s" in refused(name, root)


@pytest.mark.parametrize(
    "document",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"Code": 10010, "Message": "no\\nway"}',
        b'{"Code": 200, "Data": {"Files": [{"Path": "ecapa_tdnn.bin", "Size": "1"}]}}',
    ],
)
def test_a_listing_of_another_form(hub, root, document):
    hub.faults["/repo/files"] = [Fault(location="/x")]
    hub.plain["/x"] = document
    message = refused(f"modelscope:{SPEAKERLAB}", root)
    assert "is no JSON" in message or "of an unknown form" in message or "ModelScope says" in message


def test_no_network(root, monkeypatch, hub):
    name = f"modelscope:{SPEAKERLAB}"
    kept = folder_of(name, root)
    for scheme in ("hf", "modelscope"):
        nowhere = repository.Hubs(modelscope="http://127.0.0.1:1", huggingface="http://127.0.0.1:1", policy=POLICY)
        monkeypatch.setattr(repository, "HUBS", nowhere)
        assert "can't be reached" in refused_more(f"{scheme}:me/bundle", root)
    assert folder_of(name, root) == kept  # what was fetched is used without it
    (kept / "model.json").unlink()
    assert load_bundle(folder_of(name, root)).config == CONFIG  # converted again, from the download


def test_without_huggingface_hub(hub, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = refused("hf:me/bundle", root)
    assert message.endswith("hf: addresses need huggingface_hub: pip install 'ecapa-jax[hub]'")


def test_a_hub_that_is_set_offline(hub, root, monkeypatch):
    kept = folder_of("hf:me/bundle", root)
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    importlib.import_module("huggingface_hub").close_session()
    assert folder_of("hf:me/bundle", root) == kept
    assert "is set to offline, and this was not fetched before" in refused(f"hf:{SPEECHBRAIN}", root)
    monkeypatch.undo()
    importlib.import_module("huggingface_hub").close_session()


@pytest.fixture
def small_disk(tmp_path):
    """Half of what the checkpoint needs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", [f"hf:{SPEECHBRAIN}", f"modelscope:{SPEAKERLAB}"])
def test_a_full_disk(hub, small_disk, name):
    assert len(hub.repositories[SPEAKERLAB]["ecapa_tdnn.bin"]) > 300_000
    message = refused(name, small_disk)
    assert "can't be written: No space left on device; make room and run again" in message
    assert str(small_disk) in message
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert load_bundle(folder_of(name, small_disk)).config.ecapa == CONFIG.ecapa


def test_a_disk_that_fills_up_while_converting(hub, small_disk):
    size = len(hub.repositories[SPEAKERLAB]["ecapa_tdnn.bin"]) // 1000 + 100
    subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
    process = start(hub, small_disk)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    [line] = [line for line in err.splitlines() if line.startswith("ecapa_jax.errors.")]
    assert line.startswith("ecapa_jax.errors.BundleError: the weights can't be written (RESOURCE_EXHAUSTED")
    assert not [path for path in small_disk.glob("bundles/*") if path.is_dir()]
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert load_bundle(folder_of(f"modelscope:{SPEAKERLAB}", small_disk)).config == CONFIG


def test_tokens_go_to_the_hub_alone(hub, root, monkeypatch):
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_TOKEN_PATH", os.devnull)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    with serving() as other:
        other.url = other.url.replace("127.0.0.1", "localhost")
        weights = hub.repositories[SPEECHBRAIN]["embedding_model.ckpt"]
        other.plain["/cdn"] = weights
        hub.faults["embedding_model.ckpt"] = [Fault(location=f"{other.url}/cdn")]
        assert load_bundle(folder_of(f"hf:{SPEECHBRAIN}", root)).config.ecapa == CONFIG.ecapa
        assert "secretsecret" in str(hub.requests)
        assert other.asked("/cdn")
        assert "secretsecret" not in str(other.requests)
    hub.faults["/api/models/"] = [Fault(status=401)] * 3
    assert "secretsecret" not in refused_more("hf:me/bundle", root)
    assert not any(b"secretsecret" in content for content in contents(root).values())


def test_a_cache_that_can_not_be_written(hub, tmp_path, root):
    kept = folder_of(f"modelscope:{SPEAKERLAB}", root)
    tmp_path.chmod(0o755)
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for above in list(tmp_path.parents)[:3]:
        above.chmod(above.stat().st_mode | 0o055)
    with unprivileged():
        assert folder_of(f"modelscope:{SPEAKERLAB}", root) == kept
        message = refused_more("hf:me/bundle", root)
    assert message.startswith(f"the cache {root / 'downloads'} can't be written: Permission denied; pass cache_dir")
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_path_that_exists_is_no_address(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_bundle(make(), tmp_path / "hf:x")
    assert str(api.resolve("hf:x")) == "hf:x"
    with pytest.raises(BundleError, match="is not a bundle directory"):
        ecapa_jax.load(tmp_path / "nothing")
    assert not hub.requests


SCRIPT = """
import sys, time
from pathlib import Path
from ecapa_jax.convert import remote, run
from ecapa_jax.io import cache, repository
from ecapa_jax.io.download import Policy
url, name, root, pause, log = sys.argv[1:]
convert = remote.convert
def slow(*arguments, **options):
    with open(log, "a") as file:
        file.write("converted\\n")
    time.sleep(float(pause))
    return convert(*arguments, **options)
remote.convert = slow
run._probe = lambda *_: 1.0  # compiles for seconds
cache._SAY_AFTER = 0.1
repository.HUBS = repository.Hubs(modelscope=url, huggingface=url, policy=Policy(pause=0.05))
print(remote.bundle_folder(name, cache_dir=root, patience=60.0))
"""


def start(hub, root, pause=0.0):
    command = [sys.executable, "-c", SCRIPT, hub.url, f"modelscope:{SPEAKERLAB}", str(root), str(pause), f"{root}.log"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def converted(root):
    try:
        return (root.parent / f"{root.name}.log").read_text().count("converted")
    except FileNotFoundError:
        return 0


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_two_processes_one_converts(hub, root):
    both = [start(hub, root, pause=1.0), start(hub, root, pause=1.0)]
    outputs = [process.communicate(timeout=90) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert converted(root) == 1
    assert outputs[0][0] == outputs[1][0]
    assert len(hub.asked("FilePath=ecapa_tdnn.bin")) == 1
    waited = [err for _, err in outputs if "waiting for process" in err]
    assert len(waited) == 1
    assert str(both[1].pid if waited[0] == outputs[0][1] else both[0].pid) in waited[0]
    assert not list(root.glob("*/*.owner.json"))


def test_a_killed_conversion_leaves_nothing_half(hub, root):
    process = start(hub, root, pause=60.0)
    until(lambda: converted(root) == 1)
    [half] = [path.with_name(f".{path.name.removesuffix('.lock')}.partial-x") for path in root.glob("bundles/*.lock")]
    half.mkdir()
    with (
        pytest.warns(UserWarning, match=f"waiting for process {process.pid} on "),
        pytest.raises(DownloadError, match=rf"is still being made by process {process.pid} on .* wait for it, or end"),
    ):
        remote.bundle_folder(f"modelscope:{SPEAKERLAB}", cache_dir=root, patience=0.2)
    process.kill()
    process.communicate()
    assert not list(root.glob("bundles/*/model.json"))
    folder = folder_of(f"modelscope:{SPEAKERLAB}", root)
    assert load_bundle(folder).config == CONFIG
    assert not half.exists()
    assert len(hub.asked("FilePath=ecapa_tdnn.bin")) == 1


def test_a_killed_download_leaves_nothing_half(hub, root):
    size = len(hub.repositories[SPEAKERLAB]["ecapa_tdnn.bin"])
    hub.faults["FilePath=ecapa_tdnn.bin"] = [Fault(cut=size - 1000, slow=30.0)]
    process = start(hub, root)
    until(lambda: any(path.stat().st_size for path in root.glob("downloads/*/files/.*.partial")))
    process.kill()
    process.communicate()
    assert not list(root.glob("downloads/*/download.json"))
    assert load_bundle(folder_of(f"modelscope:{SPEAKERLAB}", root)).config == CONFIG
    assert hub.asked("FilePath=ecapa_tdnn.bin")[-1]["Range"].startswith("bytes=")


def test_what_an_earlier_attempt_left_does_not_stay(hub, root):
    hub.faults["FilePath=ecapa"] = [Fault(status=404)]
    refused(f"modelscope:{SPEAKERLAB}", root)
    [folder] = root.glob("downloads/*.partial/files")
    (folder / "other.bin").write_bytes(b"left")
    (folder / "configuration.json").write_bytes(b"left")
    assert load_bundle(folder_of(f"modelscope:{SPEAKERLAB}", root)).config == CONFIG
    [files] = root.glob("downloads/*/files")
    assert sorted(path.name for path in files.iterdir()) == ["configuration.json", "ecapa_tdnn.bin"]
    assert not list(root.glob("downloads/*.partial"))


def test_an_incomplete_download_is_fetched_again(hub, root):
    folder_of(f"modelscope:{SPEAKERLAB}", root)
    [weights] = root.glob("downloads/*/files/ecapa_tdnn.bin")
    weights.write_bytes(b"cut")
    shutil.rmtree(root / "bundles")
    assert load_bundle(folder_of(f"modelscope:{SPEAKERLAB}", root)).config == CONFIG


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "ecapa-jax"
