"""The official lists of VoxCeleb1: their addresses, sizes, and published figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ecapa_jax.errors import TrialError
from ecapa_jax.evaluation.trials import Trials

PresetName = Literal["voxceleb1-o", "voxceleb1-e", "voxceleb1-h"]

_FOLDER = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta"


@dataclasses.dataclass(frozen=True)
class Preset:
    """An official list, in its cleaned version.

    Attributes:
      title: name of the list in papers, with which keys of published figures begin.
      url: address of the list.
      n_trials: number of trials.
      original: number of trials in the first version, which has wrong labels.
    """

    title: str
    url: str
    n_trials: int
    original: int


PRESETS: dict[PresetName, Preset] = {
    "voxceleb1-o": Preset("VoxCeleb1-O", f"{_FOLDER}/veri_test2.txt", 37_611, 37_720),
    "voxceleb1-e": Preset("VoxCeleb1-E", f"{_FOLDER}/list_test_all2.txt", 579_818, 581_480),
    "voxceleb1-h": Preset("VoxCeleb1-H", f"{_FOLDER}/list_test_hard2.txt", 550_894, 552_536),
}


def check_preset(name: PresetName, trials: Trials) -> Preset:
    """Returns the preset if the list has the right number of trials.

    Raises:
      TrialError: the list has another number of trials.
    """
    preset = PRESETS[name]
    if len(trials) == preset.n_trials:
        return preset
    what = "the original list, with wrong labels" if len(trials) == preset.original else "not that list"
    raise TrialError(
        f"{trials.path} has {len(trials)} trials, {preset.title} (cleaned) has {preset.n_trials}: this is {what}; "
        f"the list is at {preset.url}"
    )


def published_figures(preset: Preset, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the published figures on this list in the provenance of a bundle, with source and note; may be empty."""
    published = provenance.get("published") or {}
    figures = {key: value for key, value in published.items() if key.startswith(preset.title)}
    about = {key: published[key] for key in ("source", "note") if key in published}
    return {**figures, **about} if figures else {}
