"""Finds the processes of a distributed run, and the address at which the first process listens."""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import re
from collections.abc import Mapping

from ecapa_jax.errors import ConfigError

LAUNCHED = "ECAPA_JAX_LAUNCHED"
"""Variable that `--processes` sets for the processes it starts on one machine: a loopback address is right for them."""

LOOPBACK = re.compile(r"(localhost|ip6-localhost|127\.\d+\.\d+\.\d+|\[?::1\]?|0\.0\.0\.0)(:\d+)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How a process finds the other processes of its run.

    Attributes:
      source: where this information comes from: flags, Slurm, GKE, TPU-VM or the variables of JAX.
      coordinator: `host:port` of process 0; None lets JAX ask the metadata server of the TPU-VM.
      n_processes, process: number of processes, and index of this one.
      n_hosts: number of machines, as far as it is known.
      device: the device of this process if several processes share the GPUs of a machine; None takes all devices.
    """

    source: str
    coordinator: str | None = None
    n_processes: int = 1
    process: int = 0
    n_hosts: int = 1
    device: int | None = None


def find_cluster(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    n_processes: int | None = None,
    process: int | None = None,
) -> Cluster | None:
    """Finds the run that this process belongs to, from flags or from the environment; None if it runs alone.

    Args:
      environment: environment variables of this process.
      coordinator, n_processes, process: flags; give all of them or none.

    Raises:
      ConfigError: some flags are missing or out of range, or other machines can't reach the address.
    """
    flags = {"--coordinator": coordinator, "--process-count": n_processes, "--process-index": process}
    if all(value is None for value in flags.values()):
        found = _read_environment(environment)
        if found is not None and found.coordinator is not None:
            _check_reachable(found, found.n_hosts > 1)
        return found
    if missing := [name for name, value in flags.items() if value is None]:
        raise ConfigError(f"{', '.join(missing)} must be given too: all three of {', '.join(flags)}, or none")
    assert coordinator is not None
    assert n_processes is not None
    assert process is not None
    launched = bool(environment.get(LAUNCHED))
    found = Cluster("flags", coordinator, n_processes, process, 1 if launched else n_processes)
    found = dataclasses.replace(found, device=process if launched else None)
    if not 0 <= process < n_processes or ":" not in coordinator:
        raise ConfigError(
            f"--coordinator {coordinator} --process-count {n_processes} --process-index {process}: the first is "
            "HOST:PORT, and the index lies between 0 and the count minus 1"
        )
    _check_reachable(found, n_processes > 1 and not launched)
    return found


def _read_environment(environment: Mapping[str, str]) -> Cluster | None:
    try:
        return (
            _find_slurm(environment)
            or _find_gke(environment)
            or _find_jax_variables(environment)
            or _find_tpu_vm(environment)
        )
    except ValueError as error:
        raise ConfigError(
            f"an environment variable that should number this process is not a whole number ({error}): "
            "correct it, or give --coordinator, --process-count and --process-index"
        ) from error


def _check_reachable(cluster: Cluster, others: bool) -> None:
    if others and LOOPBACK.fullmatch(cluster.coordinator or ""):
        raise ConfigError(
            f"other machines can't reach the coordinator {cluster.coordinator} ({cluster.source}), which is a loopback "
            "address: give the name or network address of process 0; for several processes on one machine use "
            "--processes"
        )


def _find_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """Finds the processes of a step that `srun` started; a shell of `salloc` or `sbatch` runs alone."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if not all(environment.get(name) for name in names):
        return None
    job, nodes, n_tasks, task = (environment[name] for name in names)
    if int(n_tasks) < 2:
        return None
    first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).split(",")[0]
    n_hosts = int(environment.get("SLURM_STEP_NUM_NODES", n_tasks))
    shared = int(n_tasks) > n_hosts and "SLURM_LOCALID" in environment
    device = int(environment["SLURM_LOCALID"]) if shared else None
    return Cluster("Slurm", f"{first}:{61440 + int(job) % 4096}", int(n_tasks), int(task), n_hosts, device)


def _find_gke(environment: Mapping[str, str]) -> Cluster | None:
    """Finds the TPU hosts of a GKE job; with several slices, MEGASCALE_COORDINATOR_ADDRESS names the coordinator."""
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    n_slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    if len(hosts) * n_slices < 2 or not environment.get("TPU_WORKER_ID"):
        return None
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).split(":")[0]
    place = int(environment["TPU_WORKER_ID"]) + len(hosts) * int(environment.get("MEGASCALE_SLICE_ID") or 0)
    return Cluster("GKE", f"{first}:8482", len(hosts) * n_slices, place, len(hosts) * n_slices)


def _find_jax_variables(environment: Mapping[str, str]) -> Cluster | None:
    """Reads the variables of JAX; in an indexed Kubernetes job, the index of the pod is the index of the process."""
    process = environment.get("JAX_PROCESS_ID") or environment.get("JOB_COMPLETION_INDEX")
    number, coordinator = environment.get("JAX_NUM_PROCESSES"), environment.get("JAX_COORDINATOR_ADDRESS")
    if not (number and coordinator and process) or int(number) < 2:
        return None
    return Cluster("JAX_COORDINATOR_ADDRESS", coordinator, int(number), int(process), int(number))


def _find_tpu_vm(environment: Mapping[str, str]) -> Cluster | None:
    """Finds out whether this machine is a TPU-VM; its metadata server knows the other machines."""
    wanted = environment.get("JAX_PLATFORMS", "tpu")
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    # These variables say that the machine is a GKE host, or that libtpu only compiles.
    is_other = environment.get("TPU_SKIP_MDS_QUERY") or environment.get("TPU_WORKER_HOSTNAMES")
    if "tpu" not in wanted or is_other or not chips:
        return None
    return Cluster("TPU-VM") if importlib.util.find_spec("libtpu") else None
