"""Table of the published ECAPA-TDNN models that this version converts, with the figures of the publishers.

This module contains only data. The publishers measured the figures, on the trial lists and with the scoring given
beside them; this project measured none of them. Digests are None, because no file could be downloaded where this table
was written. The library compares a downloaded file with the digest that the hub lists, and records the digest of the
file in the bundle.
"""

from __future__ import annotations

import dataclasses

WENET = "https://wenet.org.cn/downloads?models=wespeaker&version="


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedErrorRate:
    """A published error rate.

    Attributes:
      trials: name of the trial list.
      eer: equal error rate in percent.
      min_dcf: minimum detection cost at prior `p_target`, if published.
      p_target: prior of a target trial.
      scoring: scoring of the trials; by default the cosine of the embeddings.
    """

    trials: str
    eer: float
    min_dcf: float | None = None
    p_target: float | None = None
    scoring: str = "cosine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A published model of the table.

    Attributes:
      family: a key of `convert.sources.FAMILIES`.
      address: address for `ecapa_jax.load`.
      files: patterns of file names: first the weights, then their companions, which are optional.
      licence: published licence of the weights.
      mirrors: other addresses of the same files.
      revision: default revision; None is the newest.
      sha256: digest of the weights, if known.
      figures: error rates on trial lists.
      confirmed: whether address and file names come from the publisher's own source or documents.
      note: information for the user.
    """

    family: str
    address: str
    files: tuple[str, ...]
    licence: str
    mirrors: tuple[str, ...] = ()
    revision: str | None = None
    sha256: str | None = None
    figures: tuple[PublishedErrorRate, ...] = ()
    confirmed: bool = True
    note: str = ""


def _make_modelscope_entry(
    family: str, name: str, revision: str, file: str, *figures: PublishedErrorRate, note: str = ""
) -> PublishedModel:
    return PublishedModel(
        family=family,
        address=f"modelscope:{name}",
        files=(file, "configuration.json"),
        licence="Apache-2.0",
        revision=revision,
        figures=figures,
        note=note,
    )


def _make_wespeaker_entry(
    file: str, mirror: str | None, *figures: PublishedErrorRate, note: str = ""
) -> PublishedModel:
    return PublishedModel(
        family="wespeaker",
        address=f"{WENET}{file}.zip",
        files=("avg_model.pt", "config.yaml"),
        licence="CC-BY-4.0",
        mirrors=(f"hf:Wespeaker/{mirror}",) if mirror else (),
        figures=figures,
        note=note,
    )


def _make_wespeaker_figures(plain: tuple[float, ...], normalised: tuple[float, ...]) -> tuple[PublishedErrorRate, ...]:
    """Makes the figures on VoxCeleb1 O, E and H, in WeSpeaker's two ways of scoring."""
    ways = (("cosine, mean of VoxCeleb2 subtracted", plain), ("AS-norm", normalised))
    lists = ("VoxCeleb1-O", "VoxCeleb1-E", "VoxCeleb1-H")
    return tuple(
        PublishedErrorRate(trials=trials, eer=eer, scoring=way)
        for way, figures in ways
        for trials, eer in zip(lists, figures, strict=True)
    )


_SPEECHBRAIN_FILES = ("embedding_model.ckpt", "hyperparams.yaml", "mean_var_norm_emb.ckpt")

PUBLISHED: tuple[PublishedModel, ...] = (
    _make_modelscope_entry(
        "3dspeaker", "iic/speech_ecapa-tdnn_sv_en_voxceleb_16k", "v1.0.1", "ecapa_tdnn.bin",
        PublishedErrorRate(trials="VoxCeleb1-O", eer=0.862, min_dcf=0.094, p_target=0.01),
        note="model card; the recipe's README says 0.866 % and 0.116",
    ),
    _make_modelscope_entry(
        "3dspeaker", "iic/speech_ecapa-tdnn_sv_zh-cn_cnceleb_16k", "v1.0.0", "ecapa-tdnn.ckpt",
        PublishedErrorRate(trials="CN-Celeb", eer=8.01, min_dcf=0.445, p_target=0.01),
    ),
    _make_modelscope_entry(
        "3dspeaker", "iic/speech_ecapa-tdnn_sv_zh-cn_3dspeaker_16k", "v1.0.0", "ecapa-tdnn.ckpt",
        PublishedErrorRate(trials="3D-Speaker, cross-device", eer=9.07),
        PublishedErrorRate(trials="3D-Speaker, cross-distance", eer=12.71),
        PublishedErrorRate(trials="3D-Speaker, cross-dialect", eer=14.90),
        note="model card; the recipe's README says 8.87, 12.26 and 14.53 %",
    ),
    _make_modelscope_entry(
        "rdino", "damo/speech_rdino_ecapa_tdnn_sv_en_voxceleb_16k", "v1.0.2", "pretrained_rdino.pth",
        PublishedErrorRate(trials="VoxCeleb1-O", eer=3.16, min_dcf=0.223, p_target=0.05),
        note="trained without speaker labels",
    ),
    _make_modelscope_entry(
        "rdino", "damo/speech_rdino_ecapa_tdnn_sv_zh-cn_3dspeaker_16k", "v1.0.1", "rdino.pth",
        note="trained without speaker labels",
    ),
    _make_modelscope_entry(
        "sdpn", "iic/speech_sdpn_ecapa_tdnn_sv_en_voxceleb_16k", "v1.0.0", "sdpn.pth",
        PublishedErrorRate(trials="VoxCeleb1-O", eer=1.80, min_dcf=0.139, p_target=0.05),
        note="trained without speaker labels",
    ),
    PublishedModel(
        family="speechbrain",
        address="hf:speechbrain/spkrec-ecapa-voxceleb",
        files=_SPEECHBRAIN_FILES,
        licence="Apache-2.0",
        figures=(
            PublishedErrorRate(trials="VoxCeleb1-O", eer=0.90),
            PublishedErrorRate(trials="VoxCeleb1-O", eer=0.80, scoring="s-norm"),
        ),
        note="also trained on VoxCeleb 1, so the lists E and H don't test it",
    ),
    PublishedModel(
        family="speechbrain-langid",
        address="hf:speechbrain/lang-id-voxlingua107-ecapa",
        files=_SPEECHBRAIN_FILES,
        licence="Apache-2.0",
        note="recognises languages, not speakers, so no trial list applies",
    ),
    _make_wespeaker_entry(
        "voxceleb_ECAPA512", "wespeaker-voxceleb-ecapa-tdnn512",
        *_make_wespeaker_figures((1.069, 1.209, 2.310), (0.957, 1.128, 2.105)),
    ),
    _make_wespeaker_entry(
        "voxceleb_ECAPA512_LM", "wespeaker-ecapa-tdnn512-LM",
        *_make_wespeaker_figures((0.878, 1.072, 2.007), (0.782, 1.005, 1.824)),
        note="large-margin fine-tuning",
    ),
    _make_wespeaker_entry(
        "voxceleb_ECAPA1024", "wespeaker-voxceleb-ecapa-tdnn1024",
        *_make_wespeaker_figures((0.856, 1.072, 2.059), (0.808, 0.990, 1.874)),
    ),
    _make_wespeaker_entry(
        "voxceleb_ECAPA1024_LM", "wespeaker-voxceleb-ecapa-tdnn1024-LM",
        *_make_wespeaker_figures((0.798, 0.993, 1.883), (0.728, 0.929, 1.721)),
        note="large-margin fine-tuning",
    ),
    _make_wespeaker_entry(
        "voxceleb_ecapa512_dino", None, note="trained without speaker labels; batch norm after the embedding"
    ),
    PublishedModel(
        family="taoruijie",
        address="https://github.com/TaoRuijie/ECAPA-TDNN/raw/main/exps/pretrain.model",
        files=("pretrain.model",),
        licence="MIT",
        figures=(
            PublishedErrorRate(trials="VoxCeleb1-O", eer=0.96, scoring="mean of two views"),
            PublishedErrorRate(trials="VoxCeleb1-O", eer=0.86, min_dcf=0.0686, p_target=0.05, scoring="AS-norm"),
            PublishedErrorRate(trials="VoxCeleb1-E", eer=1.18, min_dcf=0.0765, p_target=0.05, scoring="AS-norm"),
            PublishedErrorRate(trials="VoxCeleb1-H", eer=2.17, min_dcf=0.1295, p_target=0.05, scoring="AS-norm"),
        ),
        confirmed=False,
        note="the path of the file in the repository is known, and the address is derived from this path",
    ),
    PublishedModel(
        family="nemo",
        address="https://api.ngc.nvidia.com/v2/models/nvidia/nemo/ecapa_tdnn/versions/1.16.0/files/ecapa_tdnn.nemo",
        files=("ecapa_tdnn.nemo",),
        licence="see the NGC model card",
        figures=(PublishedErrorRate(trials="VoxCeleb1-O", eer=0.92),),
    ),
    PublishedModel(
        family="espnet",
        address="hf:espnet/voxcelebs12_ecapa_mel",
        files=("*.pth", "*config.yaml"),
        licence="see the model card",
        figures=(
            PublishedErrorRate(
                trials="VoxCeleb1-O", eer=0.978, min_dcf=0.0686, p_target=0.05, scoring="several crops of 3 s"
            ),
        ),
        confirmed=False,
        note="the repository is known, but the names of its files are not",
    ),
)  # fmt: skip
"""One entry for each model. The weights of mvector are missing, because they have no public address."""


def find_published(address: str) -> PublishedModel | None:
    """Finds the entry of an address (without revision) in the table; returns None if the table has no such entry."""
    return next((entry for entry in PUBLISHED if address in (entry.address, *entry.mirrors)), None)
