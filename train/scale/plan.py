"""Plans a step on TPUs that are not here: compiles the real training step with the TPU compiler and reads its cost.

The TPU compiler (`pip install ecapa-jax[tpu]`) runs on Linux x86-64 without a TPU.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from ecapa_jax.errors import ConfigError, TrainingError
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.rooms import SECONDS
from ecapa_jax.train.scale.hlo import Traffic, count_products, traffic
from ecapa_jax.train.scale.mesh import BATCH, EVERYWHERE, make_mesh, mesh_size
from ecapa_jax.train.schedules import Clock
from ecapa_jax.train.start import abstract_state
from ecapa_jax.train.step import StepSetup, compiled_step

GIB = 2**30
_DOUBLINGS = 4


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a TPU: memory for programs (GiB), bfloat16 peak (FLOP/s), bytes/s of memory and of links.

    Reference: cloud.google.com/tpu/docs, the page of each version. The speed of links is the sum over all links of a
      chip.
    """

    memory: float
    peak: float
    memory_speed: float
    link_speed: float


CHIPS = {
    "v4": Chip(30.75, 275e12, 1228e9, 300e9),
    "v5e": Chip(15.75, 197e12, 819e9, 200e9),
    "v5p": Chip(94.75, 459e12, 2765e9, 600e9),
    "v6e": Chip(31.25, 918e12, 1640e9, 448e9),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
      batch: utterances per step, over all chips.
      chips: number of chips.
      arguments, temporaries, total: bytes on a chip; the state is donated, so that it counts only once.
      flops: floating-point operations of a chip.
      accessed: bytes that a chip reads and writes in its memory, as counted by the compiler.
      traffic: messages between chips by kind.
      products: matrix products and convolutions by the dtype of their operands, as `hlo.count_products` counts them.
    """

    batch: int
    chips: int
    arguments: int
    temporaries: int
    total: int
    flops: float
    accessed: float
    traffic: tuple[Traffic, ...]
    products: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Limit:
    """The largest batch that fits, extrapolated from two programs; `confirmed` if this batch was compiled too."""

    batch: int
    confirmed: bool


@functools.cache
def topology(name: str) -> tuple[Chip, tuple[Any, ...]]:
    """Returns the chip and the devices of a topology such as `v5e:16x16`.

    Raises:
      ConfigError: the compiler is not installed, or does not know the name.
    """
    from jax.experimental import topologies

    from ecapa_jax.runtime.machine import has_tpu_compiler

    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not shape:
        raise ConfigError(f"--topology {name}: write it as KIND:SHAPE, as in v5e:16x16; kinds: {', '.join(CHIPS)}")
    if not has_tpu_compiler():
        raise ConfigError("the TPU compiler is not installed: pip install 'ecapa-jax[tpu]' (Linux x86-64)")
    # A machine has four chips by default, but there are machines with one chip.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if set(shape.split("x")) == {"1"} else {}
    try:
        devices = tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **alone).devices)
    except Exception as error:  # the plug-in's errors have no common type
        raise ConfigError(f"--topology {name}: the TPU compiler does not know it ({_shorten_error(error)})") from error
    return CHIPS[kind], devices


def compile_step(config: TrainConfig, devices: tuple[Any, ...], n_speakers: int) -> Program:
    """Compiles the step of a run for devices that need not exist here.

    Args:
      config: configuration of the run; `mesh.model` is kept, and the data axis takes the rest of the devices.
      devices: devices of a topology.
      n_speakers: number of classes, including speed-perturbed speakers.

    Raises:
      TrainingError: the devices can't be divided by `mesh.model`, or the program does not fit in the memory of a chip.
    """
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=0))
    if len(devices) % config.mesh.model:
        raise TrainingError(f"{len(devices)} chips can't be divided by mesh.model {config.mesh.model}")
    mesh = make_mesh(config, devices)
    plan = StepSetup(config, Clock(1, 10**6), mesh, n_speakers)
    arguments = _make_arguments(config, mesh, devices[0], n_speakers)
    try:
        compiled = compiled_step(plan).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TrainingError(
            f"data.batch_size {config.data.batch_size} does not fit ({_shorten_error(error)})"
        ) from error
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + kept
    return Program(
        config.data.batch_size,
        mesh_size(mesh),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        total,
        float(cost["flops"]),
        float(cost["bytes accessed"]),
        traffic(text, mesh_size(mesh)),
        count_products(text),
    )


def _make_arguments(config: TrainConfig, mesh: Mesh | None, device: Any, n_speakers: int) -> tuple[Any, Any, Any]:
    """Makes banks, state and batch as shapes."""
    alone = SingleDeviceSharding(device)
    everywhere, split = (
        (alone, alone) if mesh is None else (NamedSharding(mesh, EVERYWHERE), NamedSharding(mesh, BATCH))
    )
    state = abstract_state(config, n_speakers, mesh)
    if mesh is None:
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=alone), state)
    size, augment = config.data.batch_size, config.augment
    samples = round(config.data.crop_seconds * config.model.fbank.sample_rate)
    shapes = {
        "waveforms": ((size, samples), jnp.int16),
        "lengths": ((size,), jnp.int32),
        "labels": ((size,), jnp.int32),
    }
    if augment.musan:
        shapes |= {"noise": ((size, samples), jnp.int16), "noise_kind": ((size,), jnp.int32)}
    batch = {name: jax.ShapeDtypeStruct(*shape, sharding=split) for name, shape in shapes.items()}
    banks = {}
    if augment.probability and (augment.reverberation or augment.reverberation_noise):
        response = round(SECONDS * config.model.fbank.sample_rate)
        banks["rooms"] = jax.ShapeDtypeStruct((augment.rooms, response), jnp.float32, sharding=everywhere)
    return banks, state, batch


def largest_batch(config: TrainConfig, chip: Chip, devices: tuple[Any, ...], n_speakers: int, known: Program) -> Limit:
    """Finds the largest batch that fits in the memory of the chips.

    Two programs give memory as a straight line over the batch size. A third program, at the batch where the line meets
    the memory of a chip, confirms it. If it does not fit, because the compiler arranges large programs differently,
    nine tenths of this batch are tried. If the line is nearly level, for example with a classifier of a million
    speakers, the largest of a few doublings of the batch that fits is taken instead.
    """
    quantum = len(devices) * config.step.micro_batches
    each = known.batch // quantum
    other = max(each // 2, 1) if each > 1 else 2
    second = _compile_batch(config, devices, n_speakers, other * quantum)
    if second is None:
        return Limit(known.batch, True)
    slope = (known.total - second.total) / (each - other)
    room = chip.memory * GIB - known.total
    if slope <= 0 or slope * each * 2**_DOUBLINGS < room:
        return _double_batch(config, chip, devices, n_speakers, max((known, second), key=lambda found: found.batch))
    estimate = max(int(each + room / slope), 1)
    for candidate in (estimate, int(0.9 * estimate)):
        found = _compile_batch(config, devices, n_speakers, max(candidate, 1) * quantum)
        if found is not None and found.total <= chip.memory * GIB:
            return Limit(found.batch, True)
    return Limit(max(int(0.8 * estimate), 1) * quantum, False)


def _double_batch(
    config: TrainConfig, chip: Chip, devices: tuple[Any, ...], n_speakers: int, largest: Program
) -> Limit:
    """Looks for the largest batch that fits among the batch's first doublings.

    It halves the interval of candidates and begins with the largest, so that it compiles at most three programs.
    """
    batch, confirmed = largest.batch, largest.total <= chip.memory * GIB
    fits, least_unfit, doublings = 0, _DOUBLINGS + 1, _DOUBLINGS
    while fits < doublings < least_unfit:
        found = _compile_batch(config, devices, n_speakers, largest.batch << doublings)
        if found is None or found.total > chip.memory * GIB:
            least_unfit = doublings
        else:
            fits, batch, confirmed = doublings, found.batch, True
        doublings = (fits + least_unfit) // 2
    return Limit(batch, confirmed)


def _compile_batch(config: TrainConfig, devices: tuple[Any, ...], n_speakers: int, batch: int) -> Program | None:
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch))
    try:
        return compile_step(changed, devices, n_speakers)
    except TrainingError:
        return None


@dataclasses.dataclass(frozen=True)
class Times:
    """Lower bounds of the seconds of a step, by published figures, for products, memory and links."""

    products: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """Seconds of a step in which products and memory overlap fully and messages don't overlap."""
        return max(self.products, self.memory) + self.links


def times(program: Program, chip: Chip, dtype: str) -> Times:
    """Computes a lower bound of the time of a step, which is not a measurement.

    A float32 product counts as six bfloat16 products. For messages see `hlo.Traffic.seconds`.
    """
    peak = chip.peak / (6 if dtype == "float32" else 1)
    links = sum(kind.seconds(chip.link_speed) for kind in program.traffic)
    return Times(program.flops / peak, program.accessed / chip.memory_speed, links)


def plan_step(config: TrainConfig, name: str, n_speakers: int, *, limit: bool = True) -> dict[str, Any]:
    """Returns what the step of a run needs on a topology, as plain types.

    Args:
      config: configuration of the run; `mesh.data` is set from the number of chips.
      name: name of the topology.
      n_speakers: number of classes, including speed-perturbed speakers.
      limit: whether to find the largest batch that fits, which compiles two more programs.

    Raises:
      ConfigError, TrainingError: as `topology` and `compile_step`.
    """
    chip, devices = topology(name)
    program = compile_step(config, devices, n_speakers)
    took = times(program, chip, config.step.dtype)
    found = largest_batch(config, chip, devices, n_speakers, program) if limit else None
    return {
        "topology": name,
        "chips": len(devices),
        "mesh": {"data": len(devices) // config.mesh.model, "model": config.mesh.model},
        "dtype": config.step.dtype,
        "speakers": n_speakers,
        "batch": program.batch,
        "micro_batches": config.step.micro_batches,
        "memory": {
            "arguments": program.arguments,
            "temporaries": program.temporaries,
            "total": program.total,
            "available": round(chip.memory * GIB),
        },
        "flops": {"chip": program.flops, "step": program.flops * program.chips},
        "accessed": program.accessed,
        "collectives": [dataclasses.asdict(kind) for kind in program.traffic],
        "products": program.products,
        "seconds": {**dataclasses.asdict(took), "step": took.step},
        "largest_batch": None if found is None else dataclasses.asdict(found),
    }


def _shorten_error(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
