"""Models by address, for tests: what the server has, and what resolving gives."""

import zipfile

import pytest

from ecapa_jax import api
from ecapa_jax.errors import ConversionError, DownloadError
from ecapa_jax.io.download import Policy
from helpers.bundles import contents

SPEAKERLAB = "iic/speech_ecapa-tdnn_sv_en_voxceleb_16k"


SPEECHBRAIN = "speechbrain/spkrec-ecapa-voxceleb"


POLICY = Policy(timeout=5.0, attempts=3, pause=0.01, longest_pause=0.5)


def files_of(folder):
    return {name.as_posix(): content for name, content in contents(folder).items()}


def folder_of(name, root):
    return api.resolve(name, cache_dir=root)


def refused(name, root):
    with pytest.raises((DownloadError, ConversionError)) as error:
        folder_of(name, root)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert not list(root.glob("bundles/*/model.json"))
    return str(error.value)


def refused_more(name, root):
    with pytest.raises((DownloadError, ConversionError)) as error:
        folder_of(name, root)
    return str(error.value)


def zipped(files):
    import io

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"folder/{name}", content)
    return file.getvalue()
