"""Helpers for tests of models by address: contents of the server, and results of resolving a name."""

import subprocess
import sys
import zipfile

import pytest

from ecapa_jax import api
from ecapa_jax.errors import ConversionError, DownloadError
from ecapa_jax.hub.download import Policy
from helpers.bundles import contents

SPEAKERLAB = "iic/speech_ecapa-tdnn_sv_en_voxceleb_16k"


SPEECHBRAIN = "speechbrain/spkrec-ecapa-voxceleb"


POLICY = Policy(timeout=5.0, attempts=3, pause=0.01, longest_pause=0.5)


def repository_files(folder):
    return {name.as_posix(): content for name, content in contents(folder).items()}


def resolve(name, root):
    return api.resolve(name, cache_dir=root)


def resolve_error(name, root):
    """Checks that resolving fails with one line and makes no bundle; returns the message."""
    with pytest.raises((DownloadError, ConversionError)) as error:
        resolve(name, root)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert not list(root.glob("bundles/*/model.json"))
    return str(error.value)


def resolve_error_keeping_cache(name, root):
    """Checks that resolving fails, in a cache that may already contain bundles; returns the message."""
    with pytest.raises((DownloadError, ConversionError)) as error:
        resolve(name, root)
    return str(error.value)


def zip_bytes(files):
    import io

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"folder/{name}", content)
    return file.getvalue()


SCRIPT = """
import sys, time
from pathlib import Path
from ecapa_jax.convert import remote, run
from ecapa_jax.hub import cache, repository
from ecapa_jax.hub.download import Policy
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


def start_resolving(hub, root, pause=0.0):
    command = [sys.executable, "-c", SCRIPT, hub.url, f"modelscope:{SPEAKERLAB}", str(root), str(pause), f"{root}.log"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
