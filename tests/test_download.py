"""Tests of `download.download` with a server that fails in many ways."""

import email.utils
import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from ecapa_jax.errors import DownloadError
from ecapa_jax.hub import download, http, progress
from helpers.hub_server import Fault, serving

CONTENT = bytes(range(256)) * 4000  # more than one block
HASH = hashlib.sha256(CONTENT).hexdigest()
FAST = download.Policy(timeout=2.0, pause=0.01, attempts=3, longest_pause=0.5)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    with serving() as running:
        running.plain["/a.bin"] = CONTENT
        yield running


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.bin"


def download_file(server, path, **options):
    return download.download(f"{server.url}/a.bin", path, policy=FAST, **options)


def download_error(server, path, **options):
    with pytest.raises(DownloadError) as error:
        download_file(server, path, **options)
    assert "\n" not in str(error.value)
    assert not path.exists()
    return str(error.value)


def file_names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_download_writes_only_the_complete_file(server, path):
    seen = []
    file = download_file(server, path, size=len(CONTENT), sha256=HASH.upper(), report=lambda *now: seen.append(now))
    assert file == download.File(len(CONTENT), HASH)
    assert path.read_bytes() == CONTENT
    assert file_names(path.parent) == ["a.bin"]
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert "Authorization" not in server.requests_to("a.bin")[0]


def test_download_resumes_after_a_closed_connection(server, path):
    server.faults["a.bin"] = [Fault(cut=400_000), Fault(cut=300_000)]
    assert download_file(server, path).sha256 == HASH
    tag = f'"{HASH}"'
    ranges = [(headers.get("Range"), headers.get("If-Range")) for headers in server.requests_to("a.bin")]
    assert ranges == [(None, None), ("bytes=400000-", tag), ("bytes=700000-", tag)]
    assert path.read_bytes() == CONTENT


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cuts=st.lists(st.integers(0, 300_000), max_size=6), tagged=st.booleans(), data=st.data())
def test_interrupted_downloads_give_the_complete_file(server, path, cuts, tagged, data):
    """The result is correct even if the file changes on the server between two attempts."""
    server.plain["/a.bin"] = CONTENT
    headers = {} if tagged else {"ETag": None}
    server.faults["a.bin"] = [Fault(cut=cut, headers=headers) for cut in cuts]
    policy = download.Policy(timeout=2.0, pause=0.0, attempts=1)
    for _ in cuts:
        with pytest.raises(DownloadError):
            download.download(f"{server.url}/a.bin", path, policy=policy)
        if data.draw(st.booleans()):
            server.plain["/a.bin"] = server.plain["/a.bin"][::-1]
    download.download(f"{server.url}/a.bin", path, policy=policy)
    assert path.read_bytes() == server.plain["/a.bin"]
    assert file_names(path.parent) == ["a.bin"]


def test_next_call_resumes_a_failed_download(server, path):
    server.faults["a.bin"] = [Fault(cut=1000)] * 3
    message = download_error(server, path)
    assert f"the connection closed after 3000 of {len(CONTENT)} bytes (tried 3 times); run again to continue" in message
    assert download_file(server, path).sha256 == HASH
    assert server.requests_to("a.bin")[-1]["Range"] == "bytes=3000-"
    assert file_names(path.parent) == ["a.bin"]


def test_download_restarts_if_the_file_changed(server, path):
    server.faults["a.bin"] = [Fault(cut=1000)] * 3
    download_error(server, path)
    server.plain["/a.bin"] = CONTENT[::-1]
    download_file(server, path)
    assert path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"other"'},
        {"Content-Range": "bytes 7-9/10"},
        {"Content-Range": "nonsense"},
        {"Content-Range": None},
    ],
)
def test_wrong_partial_response_is_discarded(server, path, headers):
    server.faults["a.bin"] = [Fault(cut=1000), Fault(headers=headers)]
    assert download_file(server, path).sha256 == HASH
    assert [headers.get("Range") for headers in server.requests_to("a.bin")] == [None, "bytes=1000-", None]


@pytest.mark.parametrize("how", ["no ranges", "no version", "weak version", "other address"])
def test_download_restarts_if_the_version_is_unknown(server, path, how):
    headers = {"no version": {"ETag": None}, "weak version": {"ETag": 'W/"x"'}}.get(how, {})
    server.ranges = how != "no ranges"
    server.faults["a.bin"] = [Fault(cut=1000, headers=headers)] * 3
    download_error(server, path)
    if how == "other address":
        server.plain["/b.bin"] = CONTENT
        download.download(f"{server.url}/b.bin", path, policy=FAST)
        assert "Range" not in server.requests_to("b.bin")[0]
    assert download_file(server, path).sha256 == HASH
    if how not in ("no ranges", "other address"):
        assert all("Range" not in headers for headers in server.requests_to("a.bin"))


def test_last_modified_identifies_the_version_without_an_etag(server, path):
    date = {"ETag": None, "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    server.etags["/a.bin"] = date["Last-Modified"]
    server.faults["a.bin"] = [Fault(cut=1000, headers=date), Fault(headers=date)]
    assert download_file(server, path).sha256 == HASH
    assert server.requests_to("a.bin")[1]["If-Range"] == date["Last-Modified"]


def test_complete_partial_file_is_not_downloaded_again(server, path):
    """This happens if the process is killed after the last byte and before the file is renamed."""
    server.faults["a.bin"] = [Fault(cut=1000)] * 3
    download_error(server, path)
    path.with_name(".a.bin.partial").write_bytes(CONTENT)
    assert download_file(server, path).sha256 == HASH
    assert server.requests_to("a.bin")[-1]["Range"] == f"bytes={len(CONTENT)}-"
    assert len(server.requests_to("a.bin")) == 4


def test_partial_file_longer_than_the_file_is_discarded(server, path):
    server.faults["a.bin"] = [Fault(cut=1000)] * 3
    download_error(server, path)
    path.with_name(".a.bin.partial").write_bytes(CONTENT + b"more")
    assert download_file(server, path).sha256 == HASH


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_temporary_errors_are_retried(server, path, status):
    server.faults["a.bin"] = [Fault(status=status)] * 2
    assert download_file(server, path).sha256 == HASH
    server.faults["a.bin"] = [Fault(status=status)] * 3
    path.unlink()
    assert f"the server is busy or faulty ({status}" in download_error(server, path)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_permanent_errors_are_not_retried(server, path, status):
    server.faults["a.bin"] = [Fault(status=status)]
    assert f"the server answered {status}" in download_error(server, path)
    assert len(server.requests) == 1
    assert file_names(path.parent) == []


def test_retry_after_is_respected(server, path):
    server.faults["a.bin"] = [Fault(status=429, headers={"Retry-After": "0"})]
    download_file(server, path)
    path.unlink()
    date = email.utils.formatdate(time.time() + 1.5, usegmt=True)  # whole seconds, so the wait is at least 0.5 s
    policy = download.Policy(timeout=2.0, pause=0.01, longest_pause=5.0)
    server.faults["a.bin"] = [Fault(status=503, headers={"Retry-After": date})]
    began = time.monotonic()
    download.download(f"{server.url}/a.bin", path, policy=policy)
    assert 0.3 < time.monotonic() - began < 5
    path.unlink()
    server.faults["a.bin"] = [Fault(status=429, headers={"Retry-After": "3600"})]
    assert "it asks to wait 3600 s" in download_error(server, path)


@pytest.mark.parametrize("text", ["", "soon", "-3", "Mon, 99 Foo 2000", "1e9"])
def test_invalid_retry_after_is_ignored(text):
    assert http.retry_after({"Retry-After": text}) == 0


def test_stalled_connection_times_out_and_is_retried(server, path):
    server.faults["a.bin"] = [Fault(cut=1000, slow=1.0)]
    policy = download.Policy(timeout=0.3, pause=0.01, attempts=2)
    assert download.download(f"{server.url}/a.bin", path, policy=policy).sha256 == HASH
    assert server.requests_to("a.bin")[1]["Range"] == "bytes=1000-"


def test_wrong_size_is_refused(server, path):
    assert f"the server has {len(CONTENT)} bytes, 5 were expected" in download_error(server, path, size=5)
    server.faults["a.bin"] = [Fault(headers={"Content-Length": None})]
    assert f"is {len(CONTENT)} bytes, 5 were expected" in download_error(server, path, size=5)
    assert file_names(path.parent) == []


def test_wrong_digest_is_refused_and_the_file_is_removed(server, path):
    assert f"its sha256 is {HASH}, {'0' * 64} was expected" in download_error(server, path, sha256="0" * 64)
    assert file_names(path.parent) == []


@pytest.mark.parametrize("declared", [True, False])
def test_file_larger_than_the_limit_is_refused(server, path, declared):
    server.faults["a.bin"] = [] if declared else [Fault(headers={"Content-Length": None})]
    policy = download.Policy(max_bytes=300_000)
    with pytest.raises(DownloadError, match=r"is larger than 0\.3 MB"):
        download.download(f"{server.url}/a.bin", path, policy=policy)
    assert not path.exists()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_redirect_to_another_scheme_is_refused(server, path, target):
    server.faults["a.bin"] = [Fault(location=target)]
    assert "only http and https" in download_error(server, path)


def test_http_redirects_are_followed(server, path):
    server.plain["/elsewhere?signed=secret"] = CONTENT
    server.faults["a.bin"] = [Fault(location="/elsewhere?signed=secret")] * 2
    server.faults["elsewhere"] = [Fault(cut=1000)]
    assert download_file(server, path).sha256 == HASH
    assert server.requests_to("elsewhere")[1]["Range"] == "bytes=1000-"
    path.unlink()
    server.faults["a.bin"] = [Fault(location="/missing?signed=secret")]
    assert "secret" not in download_error(server, path)


def test_redirect_from_https_to_http_is_refused():
    http.check_redirect("https://a/x", "https://b/x")
    http.check_redirect("http://a/x", "https://b/x")
    with pytest.raises(DownloadError, match="not encrypted"):
        http.check_redirect("https://a/x?secret", "http://b/x?secret")


def test_unreachable_server_is_reported(path):
    policy = download.Policy(pause=30.0)  # a second attempt would exceed the time of the test
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:1/a: can't be reached .*check address and network"):
        download.download("http://127.0.0.1:1/a?token=secret", path, policy=policy)
    assert file_names(path.parent) == []


def test_full_disk_is_reported_and_the_partial_file_is_kept(server, path, monkeypatch):
    small, opened = 300_000, Path.open

    class FullDiskFile(io.FileIO):
        def write(self, block):
            if self.tell() + len(block) > small:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(block)

    def open_(self, mode="r", *rest, **options):
        return FullDiskFile(self, "a") if mode == "ab" else opened(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", open_)
    message = download_error(server, path)
    assert message == f"{path.parent} can't be written: No space left on device; make room and run again to continue"
    monkeypatch.undo()
    assert download_file(server, path).sha256 == HASH
    assert int(server.requests_to("a.bin")[-1]["Range"].removeprefix("bytes=").removesuffix("-")) > 0


SCRIPT = """
import sys
from pathlib import Path
from ecapa_jax.hub.download import download
download(sys.argv[1], Path(sys.argv[2]))
"""


def test_download_resumes_after_the_process_is_killed(server, path):
    server.faults["a.bin"] = [Fault(cut=500_000, slow=20.0)]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, f"{server.url}/a.bin", str(path)])
    part = path.with_name(".a.bin.partial")
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size >= 262_144):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not path.exists()
    had = part.stat().st_size
    assert download_file(server, path).sha256 == HASH
    assert server.requests_to("a.bin")[-1]["Range"] == f"bytes={had}-"


def test_get_json_refuses_other_content(server):
    server.plain |= {"/list": b'{"a": 1}', "/page": b"<html>", "/deep": b"[" * 100_000}
    server.faults["list"] = [Fault(status=503)]
    assert download.get_json(f"{server.url}/list", FAST) == {"a": 1}
    for name in ("page", "deep"):
        with pytest.raises(DownloadError, match="the answer is no JSON"):
            download.get_json(f"{server.url}/{name}", FAST)


def test_progress_bar_is_shown_on_terminals_only(capsys, monkeypatch):
    with progress.bar("a.bin", shown=True) as report:
        report(1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    with progress.bar("a.bin", shown=False) as report:
        report(1, 2)
    assert capsys.readouterr() == ("", "")
    with progress.bar("a.bin", shown=True) as report:
        report(1, 2)
        report(2, None)
    out, err = capsys.readouterr()
    assert out == ""
    assert "a.bin" in err


def test_partial_download_note_does_not_contain_the_address(server, path):
    server.plain["/a.bin?token=secret"] = CONTENT
    server.faults["secret"] = [Fault(cut=1000)] * 3
    with pytest.raises(DownloadError) as error:
        download.download(f"{server.url}/a.bin?token=secret", path, policy=FAST)
    assert "secret" not in str(error.value)
    note = path.with_name(".a.bin.partial.json").read_text()
    assert "secret" not in note
    assert json.loads(note)["version"] == f'"{HASH}"'
