"""Where a run begins: its own checkpoint, another run, a bundle, or random weights - in this order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from ecapa_jax.config import ModelConfig
from ecapa_jax.errors import TrainingError
from ecapa_jax.functional import Variables
from ecapa_jax.io.bundle import load_bundle
from ecapa_jax.io.run_checkpoints import RunCheckpoints
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.data.manifest import Manifest
from ecapa_jax.train.settings import build_config, config_document
from ecapa_jax.train.state import State, init_state

RUN_FILE, CHECKPOINTS = "run.json", "checkpoints"

FREE = {("data", "threads"), ("data", "prefetch"), ("data", "cache_gigabytes"), ("run", "keep"), ("data", "manifest")}
FREE |= {("run", "dev_root"), ("augment", "musan"), ("augment", "rirs")}
"""What may change between an interrupted run and its continuation: how fast, and where the same files are."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The state to go on from.

    Attributes:
      state: on the default device.
      step: steps done.
      best: the checkpoint document's record of the best dev result so far; None before the first.
      notes: what happened, one line each, for the log.
    """

    state: State
    step: int
    best: dict[str, Any] | None
    notes: tuple[str, ...]


def claim(directory: Path, config: TrainConfig, manifest: Manifest) -> None:
    """Writes down what the run in this directory is, or checks that it is still the same.

    Raises:
      TrainingError: the directory holds a run of another configuration or other data, or something else.
    """
    path = directory / RUN_FILE
    document = {"config": config_document(config), "data": manifest.fingerprint, "speakers": list(manifest.speakers)}
    if not path.exists():
        foreign = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
        if foreign:
            raise TrainingError(f"{directory} holds {foreign[0]} and is no run directory: choose another")
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        temporary.replace(path)
        return
    before = _document(directory)
    # Read and written again: what a later version can set besides has the value that it had.
    if differs := _difference(config_document(build_config(before["config"])), document["config"]):
        raise TrainingError(
            f"{directory} is a run with another {differs}: go on with that one, or choose another place"
        )
    if before["data"] != document["data"]:
        raise TrainingError(f"{directory} is a run on other data than {config.data.manifest}: choose another place")


def _document(directory: Path) -> dict[str, Any]:
    path = directory / RUN_FILE
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{directory} is no run directory that can be read ({path.name}: {error})") from error


def _difference(before: Any, after: Any, where: tuple[str, ...] = ()) -> str:
    """The first value that is another and may not be, as `section.key`."""
    if where in FREE or before == after:
        return ""
    if not isinstance(before, dict) or not isinstance(after, dict):
        same = isinstance(before, list | tuple) and list(before) == list(after or ())
        return "" if same else f"{'.'.join(where)} ({before!r}, now {after!r})"
    keys = sorted(before.keys() | after.keys())
    return next(filter(None, (_difference(before.get(key), after.get(key), (*where, key)) for key in keys)), "")


def start(config: TrainConfig, manifest: Manifest, checkpoints: RunCheckpoints) -> Start:
    """Finds where to begin.

    Raises:
      TrainingError: another run or a bundle is named that does not fit this one.
      BundleError: the bundle can't be read.
    """
    n_classes = len(manifest.speakers) * len(config.data.class_speeds)
    abstract = _placement(jax.eval_shape(lambda: init_state(config, n_classes)))
    found, problems = checkpoints.newest(abstract)
    notes = [f"{problem}: going back to the one before" for problem in problems]
    if found is not None:
        step, state, document = found
        return Start(state, step, document.get("best"), (*notes, f"resumed at step {step}"))
    if config.start.run:
        state, note = _from_run(config, manifest, n_classes), f"weights and classifier of {config.start.run}"
    elif config.start.bundle:
        variables = _bundle_variables(config.start.bundle, config.model)
        state, note = init_state(config, n_classes, variables), f"weights of {config.start.bundle}"
    else:
        state, note = init_state(config, n_classes), "random weights"
    return Start(placed(state), 0, None, (*notes, note))


def placed(state: Any) -> Any:
    """The arrays committed to the device, as restored ones are: a step is compiled once for both."""
    return jax.device_put(state, jax.local_devices()[0])


def _placement(abstract: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)


def _bundle_variables(name: str, model: ModelConfig) -> Variables:
    bundle = load_bundle(name)
    if bundle.config != model:
        raise TrainingError(f"start.bundle: {name} is another model than [model] says; give its configuration there")
    return bundle.variables


def _from_run(config: TrainConfig, manifest: Manifest, n_classes: int) -> State:
    """Network of another run's newest checkpoint, and the classifier rows of the speakers that are still there."""
    directory = Path(config.start.run)
    before = _document(directory)
    other = build_config(before["config"])
    if other.model != config.model:
        raise TrainingError(f"start.run: {directory} trains another model than [model] says")
    old_speakers, old_speeds = before["speakers"], other.data.class_speeds
    abstract = _placement(jax.eval_shape(lambda: init_state(other, len(old_speakers) * len(old_speeds))))
    with RunCheckpoints(directory / CHECKPOINTS, other.run.keep) as checkpoints:
        found, problems = checkpoints.newest(abstract, remove=False)
    if found is None:
        raise TrainingError(f"start.run: {directory} holds no whole checkpoint {'; '.join(problems)}".rstrip())
    state = found[1]
    variables = {"params": state["params"]["network"], **{k: state[k] for k in ("batch_stats", "constants")}}
    drawn = init_state(config, n_classes, variables)
    old = np.asarray(state["params"]["centres"])
    rows = {
        (speaker, speed): old[place * len(old_speakers) + index]
        for place, speed in enumerate(old_speeds)
        for index, speaker in enumerate(old_speakers)
    }
    return {**drawn, "params": {**drawn["params"], "centres": _kept(config, manifest, rows, drawn)}}


def _kept(
    config: TrainConfig, manifest: Manifest, rows: dict[tuple[str, float], np.ndarray], drawn: State
) -> Float32[jax.Array, "speakers sub_centres embedding"]:
    """The new classifier: a row of the same speaker and speed where there was one, else the drawn one."""
    centres = np.array(drawn["params"]["centres"])
    for place, speed in enumerate(config.data.class_speeds):
        for index, speaker in enumerate(manifest.speakers):
            row = rows.get((speaker, speed))
            if row is not None and row.shape == centres.shape[1:]:
                centres[place * len(manifest.speakers) + index] = row
    return jax.numpy.asarray(centres)
