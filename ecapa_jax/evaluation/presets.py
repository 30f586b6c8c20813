"""VoxCeleb1's official lists: where they are, what is in them, and what was published on them."""

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
    """One official list, cleaned version.

    Attributes:
      title: as papers call it, and as keys of published figures begin.
      url: of the list.
      n_trials: trials in it.
      original: trials in the first version, with wrong labels, which is told apart.
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
    """The preset, if the list has its number of trials.

    Raises:
      TrialError: it has another.
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
    """What a bundle's provenance has about this list, with source and note; empty where it has nothing."""
    published = provenance.get("published") or {}
    figures = {key: value for key, value in published.items() if key.startswith(preset.title)}
    about = {key: published[key] for key in ("source", "note") if key in published}
    return {**figures, **about} if figures else {}
