"""Makes `helpers` importable (pytest's importlib mode leaves sys.path alone) and hypothesis safe from speechbrain; has
no program compiled twice in a process, nor a process that compiles thousands run out of memory maps.
"""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

THOROUGH = (
    "bench",
    "cli/test_whiten.py::test_the_network_takes_the_whitening_up",
    "convert/addresses/test_processes.py",
    "convert/test_export.py",
    "convert/test_footprint.py",
    "convert/test_reader_fuzz.py",
    "convert/test_rules.py::test_the_table_is_total_and_its_inverse_gives_back_every_bit",
    "convert/test_shared_golden.py",
    "convert/test_torch_zip_hostile.py",
    "corpus/test_cli.py::test_sigterm_saves_the_state_and_exits_with_75",
    "corpus/test_ray.py",
    "corpus/test_ten_thousand.py",
    "deploy/test_examples.py",
    "deploy/test_families.py",
    "docs",
    "faults/test_host_programs.py",
    "serve/test_fetch_tls.py",
    "serve/test_load.py",
    "serve/test_page.py",
    "serve/test_page_talk.py",
    "serve/test_schema.py",
    "serve/test_server.py::test_concurrent_requests_share_batches_and_are_exact",
    "test_bundle.py::test_any_number_of_devices_reads_what_any_other_wrote",
    "test_dist.py",
    "test_encoder.py::test_200_lengths_compile_no_more_than_there_are_buckets",
    "test_encoder.py::test_the_packaged_model_loads_without_a_warning",
    "test_fbank.py",
    "test_fold.py",
    "test_functional.py::test_eight_devices_give_one_devices_embeddings",
    "test_functional.py::test_export_lowers_for_cpu_cuda_and_tpu",
    "test_functional.py::test_float32_in_a_padded_batch_is_within_the_bounds[speechbrain]",
    "test_functional.py::test_gradients_reach_the_samples_and_not_the_padding",
    "test_functional.py::test_init_is_abstracts_shape_and_a_working_model",
    "test_functional.py::test_shard_map",
    "test_functional.py::test_vmap_is_the_batch",
    "test_functional.py::test_waveform_padding_and_batch_mates_change_nothing[speechbrain]",
    "test_golden_families.py",
    "test_long.py",
    "test_memory.py",
    "test_mutations.py",
    "test_network.py",
    "test_programs.py",
    "test_programs.py::test_another_model_dtype_or_shape_has_its_own_program",
    "test_scorer.py::test_two_views_from_recordings",
    "test_windows.py",
    "train/test_augment.py",
    "train/test_cluster.py",
    "train/test_distillation.py",
    "train/test_faults.py",
    "train/test_loop.py",
    "train/test_mesh.py",
    "train/test_plan.py",
    "train/test_processes.py",
    "vad/test_network.py::test_a_recording_in_a_padded_batch_has_the_probabilities_it_has_alone",
    "vad/test_network.py::test_jit_vmap_and_grad_go_through",
    "vad/test_silence.py::test_embeddings_are_those_of_what_was_cut",
)
"""Files, folders and tests that `make test` leaves to `make test-all`; a test can also carry the marker itself.

Whatever they examine is examined by a quicker test, too, if less deeply: features and network by the golden values,
exact batches by one family, training by a run that is killed.
"""
ALWAYS = (
    "test_chunks_give_what_the_whole_gives[3dspeaker]",
    "test_folded_equals_unfold_and_multiply[3dspeaker]",
    "test_killed_in_the_middle_of_a_save",
    "test_the_next_encoder_compiles_nothing",
)
"""Tests of those files that `make test` runs all the same, so that it reaches every module: a training run that is
killed, a long recording, folded variables, kept programs."""

FIRST = (
    "train/test_faults.py",
    "test_functional.py",
    "cli/test_verbs.py",
    "test_golden.py",
    "convert/test_speechbrain.py",
    "test_encoder.py",
    "cli/test_evaluate.py",
    "convert/test_convert.py",
    "vad/test_gate.py",
    "test_long.py",
    "test_fold.py",
    "test_programs.py",
)
"""The files that take longest. A worker takes a whole file, so the last files must be short for all to end together."""


def _is_thorough(item: pytest.Item) -> bool:
    path = item.path.relative_to(TESTS)
    names = {f"{path.as_posix()}::{name}" for name in (item.name, item.name.partition("[")[0])}
    return any(path.is_relative_to(name) or name in names for name in THOROUGH)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _forget_lazy_modules()
    for item in items:
        if item.name not in ALWAYS and _is_thorough(item):
            item.add_marker(pytest.mark.thorough)
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    path = item.path.relative_to(TESTS).as_posix()
    return FIRST.index(path) if path in FIRST else len(FIRST)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _forget_lazy_modules()


def _forget_lazy_modules() -> None:
    """speechbrain leaves modules that import optional packages when touched; hypothesis touches whatever is loaded."""
    for name, module in list(sys.modules.items()):
        if type(module).__module__ == "speechbrain.utils.importutils":
            del sys.modules[name]


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiling is most of a run's time: what one worker has compiled, the others read.

    The folder belongs to this run, because JAX writes its files in place, and a run that is killed may leave half a
    file. With a largest size given, JAX locks the folder while it reads and writes.
    """
    import jax

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", 1 << 30)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture
def every_sound_is_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the sounds that tests make pass as speech."""
    from ecapa_jax.vad import gate

    monkeypatch.setattr(gate, "_speaks", lambda *_: True)


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps() -> Iterator[None]:
    """Linux gives a process 65 530 maps; each compiled program takes some, and past the last the compiler crashes."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        sys.modules["jax"].clear_caches()
        gc.collect()
