import json
import shutil

import numpy as np
import pytest

from ecapa_jax.bundle.bundle import load_bundle, save_bundle
from ecapa_jax.errors import BundleError
from helpers.bundles import POINT, contents, make
from helpers.checkpoints import CONFIG


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_bundle(make(), tmp_path_factory.mktemp("saved") / "bundle")


@pytest.fixture
def bundle_copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "bundle")


def load_error(path):
    with pytest.raises(BundleError) as error:
        load_bundle(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def truncate(data):
    return data[: len(data) // 2]


def flip_byte(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


DAMAGES = {"removed": None, "empty": lambda data: b"", "cut off": truncate, "flipped": flip_byte}
NOT_READ = {"README.md", "source_extra.safetensors"}
OPTIONAL = {"scoring.npz", "operating_points.json", "parity.json", "source.json"} | NOT_READ


@pytest.mark.parametrize("damage", DAMAGES)
def test_error_names_the_damaged_file(bundle_copy, damage):
    for name, data in contents(bundle_copy).items():
        path = bundle_copy / name
        if DAMAGES[damage] is None:
            path.unlink()
        else:
            path.write_bytes(DAMAGES[damage](data))
        if str(name) in (OPTIONAL if damage == "removed" else NOT_READ):
            assert load_bundle(bundle_copy).config == CONFIG
        else:
            message = load_error(bundle_copy)
            assert str(path) in message or (name.name == "model.json" and f"{bundle_copy} is not a whole" in message)
            assert "convert the model again" in message
        path.write_bytes(data)
    shutil.rmtree(bundle_copy / "checkpoint")
    assert f"{bundle_copy / 'checkpoint'}/" in load_error(bundle_copy)


def test_path_without_a_bundle_is_refused(tmp_path):
    assert "is not a bundle directory" in load_error(tmp_path / "missing")
    assert "no model.json" in load_error(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "is not a bundle directory" in load_error(tmp_path / "file")


def edit_json(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema=2), "has schema 2, this version reads 1"),
        (lambda d: d.pop("schema"), "has schema None"),
        (lambda d: d.update(colour="red"), "colour is unknown"),
        (lambda d: d.pop("scoring"), "scoring is missing"),
        (lambda d: d["config"].update(colour="red"), "config: unknown key colour"),
        (lambda d: d["config"]["ecapa"].update(colour="red"), "config.ecapa: unknown key colour"),
        (lambda d: d["config"]["ecapa"].pop("n_mels"), "config.ecapa: missing key n_mels"),
        (lambda d: d["config"]["ecapa"].update(n_mels="80"), "config.ecapa.n_mels is '80'"),
        (lambda d: d["config"]["ecapa"].update(n_mels=81), "front end gives 80 mel bands, the network takes 81"),
        (lambda d: d["config"]["fbank"].update(window="kaiser"), "config.fbank.window is 'kaiser'"),
        (lambda d: d["scoring"].update(threshold="0.5"), "scoring.threshold is '0.5'"),
        (lambda d: d["scoring"].update(threshold=1.5), "threshold is 1.5; the score is a cosine"),
        (lambda d: d["scoring"].update(threshold=float("nan")), "scoring.threshold is nan"),
        (lambda d: d["scoring"].update(subtract_mean=1), "scoring.subtract_mean is 1"),
        (lambda d: d["scoring"].update(colour="red"), "scoring: unknown key colour"),
        (lambda d: d.update(provenance=[]), "provenance, or published in it, is not an object"),
        (lambda d: d["provenance"].update(published=[1]), "provenance, or published in it, is not an object"),
        (lambda d: d.update(checkpoint={}), "checkpoint names no files"),
        (lambda d: d.update(checkpoint=["d/1"]), "checkpoint names no files"),
    ],
)
def test_invalid_model_json_is_refused(bundle_copy, change, words):
    edit_json(bundle_copy / "model.json", change)
    message = load_error(bundle_copy)
    assert message.startswith(str(bundle_copy / "model.json"))
    assert words in message


@pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 100_000])
@pytest.mark.parametrize("name", ["model.json", "operating_points.json", "parity.json", "source.json"])
def test_json_file_of_the_wrong_type_is_refused(bundle_copy, name, text):
    text = "{}" if (name, text) == ("operating_points.json", "[]") else text
    (bundle_copy / name).write_text(text)
    assert f"{bundle_copy / name} is damaged" in load_error(bundle_copy)


@pytest.mark.parametrize("points", [[3], [{}], [{**POINT, "far": "1 %"}], [{**POINT, "threshold": None}]])
def test_invalid_operating_points_are_refused(bundle_copy, points):
    (bundle_copy / "operating_points.json").write_text(json.dumps(points))
    assert "lacks one of threshold, far, frr, trials" in load_error(bundle_copy)


@pytest.mark.parametrize(
    "mean", [np.zeros(5, np.float32), np.full(192, np.nan), np.zeros(192, int), np.full(192, "a"), np.zeros((192, 1))]
)
def test_invalid_mean_embedding_is_refused(bundle_copy, mean):
    np.savez(bundle_copy / "scoring.npz", embedding_mean=mean)
    assert f"{bundle_copy / 'scoring.npz'} holds no embedding mean of 192" in load_error(bundle_copy)
    np.savez(bundle_copy / "scoring.npz", other=mean)
    assert f"{bundle_copy / 'scoring.npz'} holds an array other" in load_error(bundle_copy)
    np.savez(bundle_copy / "scoring.npz", embedding_mean=np.array([{}]))
    assert "is damaged (ValueError: Object arrays" in load_error(bundle_copy)


ROWS = np.ones((3, 192), np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"cohort": ROWS}, "one speaker for each row of the cohort"),
        ({"cohort_speakers": np.array(["a", "b", "c"])}, "one speaker for each row of the cohort"),
        ({"cohort": ROWS, "cohort_speakers": np.array([1, 2, 3])}, "one speaker for each row of the cohort"),
        ({"cohort": ROWS, "cohort_speakers": np.array(["a", "b"])}, "no cohort of 2 x 192 finite values"),
        ({"cohort": ROWS[:, 1:], "cohort_speakers": np.array(["a", "b", "c"])}, "no cohort of 3 x 192"),
        ({"cohort": ROWS * np.inf, "cohort_speakers": np.array(["a", "b", "c"])}, "no cohort of 3 x 192"),
    ],
)
def test_invalid_cohort_is_refused(bundle_copy, arrays, words):
    np.savez(bundle_copy / "scoring.npz", **arrays)
    assert words in load_error(bundle_copy)


CALIBRATION = {"offset": 1.0, "weight": 2.0, "measures": [], "measure_weights": []}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalisation": "t_norm"}, "scoring.normalisation is 't_norm'; it must be one of: none, s_norm"),
        ({"top_n": 300}, "top_n is 300; it must be at least 2, and needs"),
        ({"normalisation": "s_norm", "top_n": 1}, "at least 2"),
        ({"normalisation": "s_norm", "top_n": 2.5}, "scoring.top_n is 2.5"),
        ({"normalisation": "s_norm", "score_map": "half"}, "is for cosines only"),
        ({"normalisation": "s_norm", "views": "whole_and_windows"}, "scores of whole recordings"),
        ({"calibration": {**CALIBRATION, "weight": 0}}, "weight of the score positive"),
        ({"calibration": {**CALIBRATION, "measures": ["duration"]}}, "not 2 each"),
        ({"calibration": {**CALIBRATION, "measures": [3]}}, "scoring.calibration.measures[0] is 3"),
        ({"calibration": {**CALIBRATION, "colour": 1}}, "scoring.calibration: unknown key colour"),
        ({"calibration": 1.0}, "scoring.calibration must be a table"),
    ],
)
def test_invalid_scoring_is_refused(bundle_copy, change, words):
    edit_json(bundle_copy / "model.json", lambda document: document["scoring"].update(change))
    message = load_error(bundle_copy)
    assert message.startswith(str(bundle_copy / "model.json"))
    assert words in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    variables = make().variables
    variables["params"]["mfa"]["conv"]["bias"][3] = value
    save_bundle(make(variables=variables), tmp_path / "b")
    assert load_error(tmp_path / "b").endswith("params/mfa/conv/bias holds NaN or infinity: convert the model again")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["params"]["mfa"]["conv"].pop("bias"), "params/mfa/conv/bias is missing, expected (48,)"),
        (lambda v: v["params"].update(x=np.ones(3)), "params/x is (3,), expected absent"),
        (lambda v: v["params"]["mfa"]["conv"].update(bias=np.ones(47)), "mfa/conv/bias is (47,), expected (48,)"),
        (lambda v: v.update(params={}), "(and 137 more)"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, words):
    variables = make().variables
    change(variables)
    save_bundle(make(variables=variables), tmp_path / "b")
    assert f"{tmp_path / 'b' / 'checkpoint'} does not fit model.json" in load_error(tmp_path / "b")
    assert words in load_error(tmp_path / "b")
