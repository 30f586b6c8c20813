"""Fixtures and hooks for all tests.

This file makes `helpers` importable (pytest's importlib mode does not change sys.path) and keeps hypothesis from
importing speechbrain's optional dependencies. It shares compiled programs between the workers of a run, and clears
JAX's caches before a worker that compiles thousands of programs runs out of memory maps.
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
    "cli/test_whiten.py::test_whitening_is_merged_into_the_network",
    "convert/addresses/test_processes.py",
    "convert/test_export.py",
    "convert/test_footprint.py",
    "convert/test_reader_fuzz.py",
    "convert/test_rules.py::test_rules_cover_every_leaf_and_invert_bit_for_bit",
    "convert/test_shared_golden.py",
    "convert/test_torch_zip_hostile.py",
    "corpus/test_cli.py::test_full_disk_is_reported_and_finished_shards_are_kept",
    "corpus/test_cli.py::test_sigterm_saves_the_state_and_exits_with_75",
    "corpus/test_manifest.py::test_manifest_with_more_rows_than_a_block",
    "corpus/test_ray.py",
    "corpus/test_ten_thousand.py",
    "deploy/test_encoder.py::test_export_contains_the_scoring_of_the_bundle",
    "deploy/test_examples.py",
    "deploy/test_families.py",
    "deploy/test_quantize.py::test_model_card_states_the_effect_of_quantization",
    "deploy/test_quantize.py::test_models_with_feature_input_are_calibrated_on_features",
    "deploy/test_quantize.py::test_nemo_features_for_sherpa",
    "diarization/test_published.py",
    "docs",
    "faults/test_host_programs.py",
    "identify/test_store_damaged.py::test_killed_writers_lose_no_reported_enrolment",
    "identify/test_store_damaged.py::test_two_processes_create_one_store",
    "serve/test_fetch_tls.py",
    "serve/test_load.py",
    "serve/test_page.py",
    "serve/test_page_talk.py",
    "serve/test_schema.py",
    "serve/test_server.py::test_concurrent_requests_share_batches_and_are_exact",
    "test_audio_damaged.py::test_damaged_files_raise_audio_error_or_decode_to_finite_samples",
    "test_bundle.py::test_bundle_loads_on_another_number_of_devices",
    "test_dist.py",
    "test_encoder.py::test_200_lengths_compile_one_program_per_bucket",
    "test_encoder.py::test_packaged_model_loads_without_a_warning",
    "test_fbank.py",
    "test_fold.py",
    "test_functional.py::test_eight_devices_give_the_embeddings_of_one_device",
    "test_functional.py::test_export_lowers_for_cpu_cuda_and_tpu",
    "test_functional.py::test_float32_embedding_in_a_padded_batch_is_within_the_bounds",
    "test_functional.py::test_gradients_are_zero_in_the_padding_and_finite",
    "test_functional.py::test_init_has_the_shapes_of_abstract_and_gives_finite_embeddings",
    "test_functional.py::test_padding_and_other_rows_do_not_change_the_embedding[speechbrain]",
    "test_functional.py::test_shard_map_equals_the_batch",
    "test_functional.py::test_vmap_equals_the_batch",
    "test_golden.py::test_embedding_of_one_utterance_is_within_the_bounds",
    "test_golden_families.py",
    "test_long.py",
    "test_memory.py",
    "test_mutations.py",
    "test_network.py",
    "test_programs.py",
    "test_programs.py::test_other_config_dtype_or_shape_compiles_another_program",
    "test_scorer.py::test_embed_views_equals_embeddings_of_single_views",
    "test_windows.py",
    "train/test_augment.py",
    "train/test_cluster.py",
    "train/test_distillation.py",
    "train/test_faults.py",
    "train/test_loop.py",
    "train/test_mesh.py",
    "train/test_plan.py",
    "train/test_processes.py",
    "vad/test_network.py::test_jit_vmap_and_grad_work",
    "vad/test_network.py::test_padded_batch_does_not_change_the_probabilities",
    "vad/test_silence.py::test_embeddings_equal_those_of_the_cut_recording",
)
"""Files, folders and tests that `make test` skips and `make test-all` runs; a test can also carry the marker itself.

For each of them, a quicker test covers the same code less deeply: the golden values test features and network, one
family tests that batches are exact, and a run that is killed tests training.
"""
ALWAYS = (
    "test_chunked_embedding_equals_one_pass[3dspeaker]",
    "test_folded_embeddings_equal_unfolded_ones[3dspeaker]",
    "test_run_killed_during_a_save_resumes_exactly",
    "test_second_encoder_uses_kept_programs",
)
"""Tests in those files that `make test` runs nevertheless, so that it reaches every module: a training run that is
killed, a long recording, folded variables, and compiled programs that are kept on disk."""

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
"""The slowest files, which run first. A worker runs whole files, so the last files must be short to end together."""


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
    """Removes speechbrain's lazy modules, which import optional packages when hypothesis reads their attributes."""
    for name, module in list(sys.modules.items()):
        if type(module).__module__ == "speechbrain.utils.importutils":
            del sys.modules[name]


@pytest.fixture(autouse=True, scope="session")
def _share_compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Lets the workers of a run share compiled programs, because compiling takes most of the run's time.

    Each run has its own folder: JAX writes files in place, so a run that is killed may leave a partial file. JAX locks
    the folder while it reads and writes because a maximum size is set.
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
    """Makes the speech gate accept the synthetic sounds that tests generate."""
    from ecapa_jax.vad import gate

    monkeypatch.setattr(gate, "_speaks", lambda *_: True)


@pytest.fixture(autouse=True, scope="module")
def _limit_memory_maps() -> Iterator[None]:
    """Clears JAX's caches after a module if the process has many memory maps.

    Linux allows a process 65 530 maps. Each compiled program uses some, and the compiler crashes when none are left.
    """
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        sys.modules["jax"].clear_caches()
        gc.collect()
