import dataclasses
import inspect

import ml_dtypes
import numpy as np
import pytest

from ecapa_jax.bundle.bundle import load_bundle, save_bundle
from ecapa_jax.convert.run import convert
from ecapa_jax.convert.sources import speechbrain
from ecapa_jax.errors import ConversionError
from ecapa_jax.presets import PRESETS
from ecapa_jax.scoring.config import Scoring
from helpers.checkpoints import HYPERPARAMS, SB_CONFIG, embedding, tensors
from helpers.checkpoints import speechbrain as publish
from helpers.sounds import sound
from helpers.torch_zip_writer import Call
from helpers.trees import assert_same, assert_same_leaves
from helpers.weights import random_tensors, small_config, variables_of

MEAN = np.linspace(-1, 1, 192, dtype=np.float32)


def conversion_error(directory, **options):
    with pytest.raises(ConversionError) as error:
        convert(directory, **options)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_published_directory_is_converted(tmp_path):
    bundle = convert(publish(tmp_path))
    assert bundle.config == SB_CONFIG
    assert bundle.config.fbank == PRESETS["speechbrain"].fbank
    expected = variables_of(SB_CONFIG.ecapa, tensors())
    assert_same_leaves(bundle.variables, expected)
    assert_same(embedding(bundle.config, bundle.variables), embedding(SB_CONFIG, expected))
    assert bundle.provenance["family"] == "speechbrain"
    assert bundle.embedding_mean is None
    assert bundle.scoring == Scoring(threshold=0.25)  # the default of the toolkit's verify_batch
    assert_same_leaves(convert(tmp_path / "embedding_model.ckpt").variables, expected)


@pytest.mark.parametrize("shape", [(192,), (1, 192)])
def test_mean_embedding_is_stored_but_not_used(tmp_path, shape):
    old = {"spk_dict_mean": {3: MEAN}, "spk_dict_std": {}, "spk_dict_count": {3: 10}}
    saved = {"count": 12, "glob_mean": MEAN.reshape(shape), "glob_std": np.ones(192, np.float32), **old}
    bundle = convert(publish(tmp_path, mean=saved))
    assert_same(bundle.embedding_mean, MEAN)
    assert not bundle.scoring.subtract_mean
    save_bundle(bundle, tmp_path / "bundle")
    assert_same(np.load(tmp_path / "bundle" / "scoring.npz")["embedding_mean"], MEAN)
    assert_same(load_bundle(tmp_path / "bundle").embedding_mean, MEAN)


@pytest.mark.parametrize(
    ("mean", "words"),
    [
        (
            {"count": 0, "glob_mean": np.zeros(0, np.float32)},
            "expected a glob_mean of 192 values, found one of shape (0,)",
        ),
        ({"count": 3, "glob_mean": MEAN[:5]}, "found one of shape (5,)"),
        ({"count": 3, "glob_mean": MEAN.reshape(192, 1)}, "found one of shape (192, 1)"),
        ({"count": 3, "glob_mean": MEAN * np.nan}, "not finite floats"),
        ({"count": 3, "glob_mean": np.arange(192)}, "not finite floats"),
        ({"count": 3, "glob_mean": 0.0}, "found none"),
        ([MEAN], "found none"),
        (Call("os", "system", ("true",)), "names os.system"),
    ],
)
def test_file_without_a_mean_is_refused(tmp_path, mean, words):
    message = conversion_error(publish(tmp_path, mean=mean))
    assert message.startswith(str(tmp_path / "mean_var_norm_emb.ckpt"))
    assert words in message


def test_network_is_read_from_hyperparams(tmp_path):
    config = small_config("speechbrain", width=32, dilations=(3, 1, 5), n_mels=60, embedding_dim=64, res2_scale=4)
    changes = [
        ("n_mels: 80", "n_mels: 60"),
        ("[16, 16, 16, 16, 48]", "[32, 32, 32, 32, 96]"),
        ("[1, 2, 3, 4, 1]", "\n    - 1\n    - 3\n    - 1\n    - 5\n    - 1"),
        ("lin_neurons: 192", "lin_neurons: 64\n    res2net_scale: 4\n    device: !ref <nothing>\n    dropout: 0.1"),
    ]
    bundle = convert(publish(tmp_path, *changes, content=random_tensors(config.ecapa)))
    assert bundle.config == config


@pytest.mark.parametrize(
    "change",
    [
        ("std_norm: False\n\nembedding", "std_norm: false\n    mean_norm: True\n    avg_factor: null\n\nembedding"),
        ("n_mels: !ref <n_mels>\n\nmean", "n_mels: !copy <n_mels>\n    f_max: 8e3\n    deltas: False\n\nmean"),
        ("lin_neurons: 192", 'lin_neurons: 192\n    activation: !name:torch.nn.ReLU\n    "global_context": True'),
        ("modules:", "unused:"),
        ("wav_augment: !name:", "wav_augment: !new:"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_accepted(tmp_path, change):
    assert convert(publish(tmp_path, change)).config == SB_CONFIG


FBANK = "n_mels: !ref <n_mels>\n\nmean_var_norm:"
ECAPA = "lin_neurons: 192"
MODULE = "    embedding_model: !ref <embedding_model>\n    mean"
NORM = "norm_type: sentence\n    std_norm: False"


def fbank(argument):
    return FBANK, f"n_mels: !ref <n_mels>\n    {argument}\n\nmean_var_norm:"


def ecapa(argument):
    return ECAPA, f"lin_neurons: 192\n    {argument}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fbank("deltas: True"), "compute_features: deltas True is not supported"),
        (fbank("context: True"), "compute_features: context True"),
        (fbank("requires_grad: True"), "compute_features: requires_grad True"),
        (fbank("n_fft: 512"), "compute_features: n_fft 512"),
        (fbank("win_length: 32"), "compute_features: win_length 32"),
        (fbank("hop_length: 12.5"), "compute_features: hop_length 12.5"),
        (fbank("sample_rate: 8000"), "compute_features: sample_rate 8000"),
        (fbank("filter_shape: gaussian"), "compute_features: filter_shape 'gaussian'"),
        (fbank("f_max: 9000"), "need 0 <= f_min < f_max <= half the sample rate"),
        (fbank("f_min: low"), "f_min is 'low'"),
        (fbank("f_min: 010"), "f_min is '010'"),
        (fbank("f_max: .inf"), "f_max is '.inf'"),
        (fbank("deltas: no"), "deltas is 'no'"),
        (fbank("top_db: 60"), "has the argument 'top_db', which this converter does not know"),
        ((FBANK, "n_mels: 80\n    n_mels: 60\n\nmean_var_norm:"), "n_mels, a merge, a repeated or a nameless argument"),
        ((FBANK, "<<: {n_mels: 80}\n\nmean_var_norm:"), "<<, a merge"),
        ((FBANK, "[1]: 80\n\nmean_var_norm:"), "a key that is not text"),
        ((FBANK, "f_min: 0\n\nmean_var_norm:"), "the front end gives 40 mel bands, the network takes 80"),
        (("lobes.features.Fbank", "lobes.features.MFCC"), "is !new:speechbrain.lobes.features.MFCC, which is not supp"),
        (("lobes.features.Fbank", "integrations.huggingface.wavlm.WavLM"), "WavLM, which is not supported"),
        (
            ("!new:speechbrain.lobes.features.Fbank", "!name:speechbrain.lobes.models.HifiGAN.mel_spectogram"),
            "compute_features is !name:speechbrain.lobes.models.HifiGAN.mel_spectogram",
        ),
        (("!new:speechbrain.lobes.features.Fbank", "!new:my.features.Fbank"), "is !new:my.features.Fbank"),
        ((NORM, "norm_type: global\n    std_norm: False"), "mean_var_norm: norm_type 'global' is not supported"),
        ((NORM, "std_norm: False"), "mean_var_norm: norm_type 'global' is not supported"),
        ((NORM, "norm_type: sentence"), "mean_var_norm: std_norm True is not supported"),
        ((NORM, NORM + "\n    mean_norm: False"), "mean_var_norm: mean_norm False is not supported"),
        ((NORM, NORM + "\n    length_dim: 2"), "mean_var_norm: length_dim 2 is not supported"),
        (ecapa("groups: [1, 2, 2, 2, 1]"), "embedding_model: groups [1, 2, 2, 2, 1] is not supported"),
        (ecapa("activation: !name:torch.nn.PReLU"), "activation !name:torch.nn.PReLU is not supported"),
        (ecapa("activation: !name:torch.nn.LeakyReLU {negative_slope: 0.2}"), "activation a mapping"),
        (ecapa("activation: !name:torch.nn.LeakyReLU\n        negative_slope: 0.2"), "a mapping"),
        (ecapa("context_window: 3"), "has the argument 'context_window', which this converter does not know"),
        (ecapa("se_channels: !ref <n_mels> * 2"), "se_channels is !ref <n_mels> * 2: replace it by its value"),
        (ecapa("se_channels: !ref <nowhere>"), "se_channels is !ref <nowhere>: replace"),
        (ecapa("se_channels: [128]"), "se_channels is [128], which is not of the type"),
        (ecapa("se_channels: '128'"), "se_channels is '128', which is not of the type"),
        (ecapa("se_channels: 1e2"), "se_channels is 100.0, which is not of the type"),
        (ecapa("global_context: 1"), "global_context is 1, which is not of the type"),
        (ecapa("groups: [[1]]"), "groups is a list"),
        (("[1, 2, 3, 4, 1]", "[2, 2, 3, 4, 1]"), "dilations [2, 2, 3, 4, 1] is not supported"),
        (("[1, 2, 3, 4, 1]", "[1, 2, 3, 1]"), "must have one length of at least three"),
        (("[1, 2, 3, 4, 1]", "[1, 2.5, 3, 4, 1]"), "dilations is [1, 2.5, 3, 4, 1], which is not of the type"),
        (("[5, 3, 3, 3, 1]", "[4, 3, 3, 3, 1]"), "kernel sizes must be odd"),
        (("    input_size: !ref <n_mels>\n", ""), "embedding_model: input_size is missing"),
        (("input_size: !ref <n_mels>", "input_size: 60"), "the front end gives 80 mel bands, the network takes 60"),
        (("lin_neurons: 192", "lin_neurons: -1"), "sizes must be positive"),
        (("ECAPA_TDNN.ECAPA_TDNN", "Xvector.Xvector"), "is !new:speechbrain.lobes.models.Xvector.Xvector"),
        (("n_mels: 80\n", "n_mels: !ref <n_mels>\n"), "is circular"),
        (("n_mels: 80\n", "n_mels: 80\nn_mels: 60\n"), "!ref <n_mels>"),
        (("n_mels: 80\n", "n_mels: 80\nmodules: {}\n"), "modules is defined more than once"),
        ((MODULE, "    embedding_model: [1]\n    mean"), "positional arguments"),
        ((MODULE, "    embedding_model: net\n    mean"), "net, which is not"),
    ],
)  # fmt: skip
def test_error_names_the_unsupported_setting(tmp_path, change, words):
    message = conversion_error(publish(tmp_path, change))
    assert message.startswith(f"{tmp_path / 'hyperparams.yaml'}: ")
    assert words in message


def test_error_names_missing_parts(tmp_path):
    publish(tmp_path)
    for part in ("compute_features", "mean_var_norm", "embedding_model"):
        text = HYPERPARAMS.replace(f"\n{part}:", f"\nmy_{part}:").replace(f"    {part}: !ref <{part}>\n", "")
        (tmp_path / "hyperparams.yaml").write_text(text)
        assert f"it defines no {part} (!new:speechbrain." in conversion_error(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embedding_dim": 64}, "lin_neurons gives embedding_dim 192, but the tensors give 64"),
        ({"n_mels": 60}, "n_mels gives n_mels 80, but the tensors give 60"),
        ({"mfa_channels": 56}, "channels gives mfa_channels 48, but the tensors give 56"),
        (
            {"channels": (24, 16, 16, 16)},
            "channels gives channels (16, 16, 16, 16), but the tensors give (24, 16, 16, 16)",
        ),
        (
            {"kernel_sizes": (5, 5, 3, 3)},
            "kernel_sizes gives kernel_sizes (5, 3, 3, 3), but the tensors give (5, 5, 3, 3)",
        ),
        ({"mfa_kernel_size": 3}, "kernel_sizes gives mfa_kernel_size 1, but the tensors give 3"),
        (
            {"attention_channels": 64, "se_channels": 32},
            "se_channels 128, but the tensors give 32; attention_channels gives",
        ),
        ({"res2_scale": 4}, "res2net_scale gives res2_scale 8, but the tensors give 4"),
        ({"global_context": False}, "global_context gives global_context True, but the tensors give False"),
    ],
)
def test_tensors_that_do_not_fit_hyperparams_are_refused(tmp_path, change, words):
    config = dataclasses.replace(SB_CONFIG.ecapa, **change)
    message = conversion_error(publish(tmp_path, content=random_tensors(config)))
    assert message.startswith(f"{tmp_path / 'embedding_model.ckpt'}: hyperparams.yaml describes another network: ")
    assert words in message


def test_other_number_of_blocks_is_refused(tmp_path):
    publish(tmp_path, ("[1, 2, 3, 4, 1]", "[1, 2, 3, 1]"), ("[5, 3, 3, 3, 1]", "[5, 3, 3, 1]"), ("[16, 16,", "[16,"))
    assert "has 3 SE-Res2 blocks, but 2 dilations are known (2,3)" in conversion_error(tmp_path)
    # The dilations option does not make the other settings fit.
    assert "hyperparams.yaml describes another network: channels gives" in conversion_error(
        tmp_path, dilations=(2, 3, 4)
    )


def test_dilations_option_overrides_hyperparams(tmp_path):
    assert convert(publish(tmp_path), dilations=(1, 1, 2)).config.ecapa.dilations == (1, 1, 2)


def test_error_names_the_damaged_tensor(tmp_path):
    content = tensors()
    content["fc.conv.weight"] = content["fc.conv.weight"].transpose(1, 0, 2)
    message = conversion_error(publish(tmp_path, content=content))
    assert "fc.conv.weight has shape (96, 192, 1), expected" in message


def test_half_precision_tensors_are_converted(tmp_path):
    content = {name: a.astype(ml_dtypes.bfloat16) if a.dtype == np.float32 else a for name, a in tensors().items()}
    bundle = convert(publish(tmp_path, content=content))
    assert_same_leaves(
        bundle.variables, variables_of(SB_CONFIG.ecapa, {name: a.astype(np.float32) for name, a in content.items()})
    )


def test_preset_is_used_without_hyperparams(tmp_path):
    publish(tmp_path)
    (tmp_path / "hyperparams.yaml").unlink()
    assert "pass --family" in conversion_error(tmp_path)
    assert convert(tmp_path, family="speechbrain").config == SB_CONFIG


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "name", "known", "unused"),
    [
        ("lobes.models.ECAPA_TDNN", "ECAPA_TDNN", speechbrain.ECAPA_DEFAULTS, speechbrain.ECAPA_UNUSED),
        ("lobes.features", "Fbank", speechbrain.FBANK_DEFAULTS, speechbrain.FBANK_UNUSED),
        (
            "processing.features",
            "InputNormalization",
            speechbrain.NORMALIZATION_DEFAULTS,
            speechbrain.NORMALIZATION_UNUSED - {"requires_grad"},  # until version 1.0
        ),
    ],
)
def test_arguments_and_defaults_equal_those_of_the_package(module, name, known, unused):
    pytest.importorskip("torch")
    cls = getattr(pytest.importorskip(f"speechbrain.{module}"), name)
    assert f"!new:{cls.__module__}.{cls.__name__}" in (speechbrain.ECAPA, speechbrain.FBANK, speechbrain.NORMALIZATION)
    theirs = dict(inspect.signature(cls).parameters)
    assert theirs.keys() == known.keys() | unused
    for argument, default in known.items():
        expected = theirs[argument].default
        assert default == (0 if expected is inspect.Parameter.empty else expected)
    if name == "ECAPA_TDNN":
        assert f"{theirs['activation'].default.__module__}.ReLU" in speechbrain.RELU


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_package_builds_the_same_model_from_the_directory(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("speechbrain.lobes.features")
    load = pytest.importorskip("hyperpyyaml").load_hyperpyyaml
    text = (publish(tmp_path) / "hyperparams.yaml").read_text()
    theirs = load(text[: text.index("wav_augment:")])
    network = theirs["modules"]["embedding_model"].eval()
    network.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors().items()})
    waveform, full = torch.tensor(sound(1.0))[None], torch.ones(1)
    with torch.no_grad():
        features = theirs["modules"]["mean_var_norm"](theirs["modules"]["compute_features"](waveform), full)
        expected = network(features, full)[0, 0].numpy()
    mean = theirs["modules"]["mean_var_norm_emb"]
    mean.count, mean.glob_mean = 3, torch.tensor(expected)[None]
    mean._save(str(tmp_path / "mean_var_norm_emb.ckpt"))
    bundle = convert(tmp_path)
    ours = embedding(bundle.config, bundle.variables)
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    assert_same(bundle.embedding_mean, expected)


@pytest.mark.parametrize("name", ["!name:torch.nn.LeakyReLU", "torch.nn.LeakyReLU"])
def test_language_identification_is_recognized_by_its_activation(tmp_path, name):
    network = {"n_mels": 60, "embedding_dim": 256, "activation": "leaky_relu", "activation_scope": "outer"}
    config = small_config("speechbrain", width=16, **network)
    changes = [("n_mels: 80", "n_mels: 60"), ("lin_neurons: 192", f"lin_neurons: 256\n    activation: {name}")]
    directory = publish(tmp_path, *changes, content=random_tensors(config.ecapa))
    bundle = convert(directory)
    assert bundle.provenance["family"] == "speechbrain-langid"
    assert bundle.config == config
    assert PRESETS["speechbrain-langid"].ecapa == dataclasses.replace(
        config.ecapa, channels=(1024,) * 4, mfa_channels=3072
    )
    (directory / "hyperparams.yaml").unlink()
    assert convert(directory, family="speechbrain-langid").config == config
