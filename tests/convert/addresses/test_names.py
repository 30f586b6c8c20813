"""Tests of parsing addresses, and of choosing the files of a repository."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ecapa_jax
from ecapa_jax import api
from ecapa_jax.bundle.bundle import save_bundle
from ecapa_jax.convert import published, remote
from ecapa_jax.errors import BundleError, DownloadError
from ecapa_jax.hub import cache
from ecapa_jax.hub.address import Address, is_address, parse
from helpers.addresses import resolve_error
from helpers.bundles import make


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
def test_addresses_are_parsed(text, address):
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
def test_invalid_addresses_are_refused(text, words, root):
    assert is_address(text)
    message = resolve_error(text, root)
    assert words in message
    assert "word@" not in message
    assert not root.exists()


@given(
    st.text(st.characters(codec="utf-8"), max_size=30), st.sampled_from(["hf:", "modelscope:", "https://", "x:", ""])
)
def test_any_text_is_parsed_or_refused_in_one_line(text, scheme):
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
def test_paths_are_not_addresses(text):
    assert not is_address(text)


def test_each_address_has_its_own_cache_folder():
    texts = ["hf:a/b", "hf:a/b@x", "hf:a/b-x", "hf:a-b/x", "modelscope:a/b", "https://h/a/b?x=1", "https://h/a/b?x=2"]
    folders = {parse(text).folder() for text in texts} | {parse("hf:a/b").folder(2)}
    assert len(folders) == len(texts) + 1
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in folders)


def test_chooser_selects_weights_and_their_companions():
    """Companion files are selected only if the repository has weights."""
    espnet = remote._make_chooser(published.find_published("hf:espnet/voxcelebs12_ecapa_mel"))
    names = ["README.md", "exp/spk/config.yaml", "exp/spk/10epoch.pth", "exp/spk/images/eer.png"]
    assert list(espnet(names)) == ["exp/spk/config.yaml", "exp/spk/10epoch.pth"]
    assert not espnet(["exp/spk/config.yaml"])
    wespeaker = remote._make_chooser(published.find_published("hf:Wespeaker/wespeaker-ecapa-tdnn512-LM"))
    assert list(wespeaker(["avg_model.pt", "config.yaml", "voxceleb_ECAPA512_LM.onnx"])) == [
        "avg_model.pt",
        "config.yaml",
    ]
    assert not wespeaker(["voxceleb_ECAPA512_LM.onnx"])


def test_existing_path_is_not_an_address(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_bundle(make(), tmp_path / "hf:x")
    assert str(api.resolve("hf:x")) == "hf:x"
    with pytest.raises(BundleError, match="is not a bundle directory"):
        ecapa_jax.load(tmp_path / "nothing")
    assert not hub.requests


def test_default_cache_folder_is_in_xdg_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "ecapa-jax"
