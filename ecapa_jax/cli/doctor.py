"""`ecapa-jax doctor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ecapa_jax.cli.common import Output, OutputOptions, count_of


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Check the installation: versions, devices, audio formats, and the packaged model end to end."""

    output: OutputOptions = Output()

    def run(self) -> None:
        """Prints what was found, and which check failed."""
        from ecapa_jax.errors import EcapaError
        from ecapa_jax.runtime import machine

        checks = {"jax and flax": _check_pair, "audio": _check_audio, "default model": _check_model}
        results = {name: _attempt(check) for name, check in checks.items()}
        report = {
            "versions": machine.versions(),
            "environment": machine.settings(),
            **({"machine": machine.machine()} if results["jax and flax"][0] else {}),
            "checks": {name: text for name, (_, text) in results.items()},
        }
        lines = []
        for part, values in report.items():
            lines.append(part)
            lines += [f"  {key:<32} {value}" for key, value in values.items()]
        self.output.result(report, "\n".join(lines))
        if failed := [name for name, (good, _) in results.items() if not good]:
            raise EcapaError(f"doctor found a fault in: {', '.join(failed)}")


def _attempt(check: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, check()
    except Exception as error:  # a report must survive whatever is broken
        return False, f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _check_pair() -> str:
    try:
        import flax.nnx  # noqa: F401
        import jax  # noqa: F401

        from ecapa_jax.runtime.machine import find_devices
    except AttributeError as error:
        raise RuntimeError(
            f"these versions of flax and jax do not work together ({error}): install a pair from "
            f"constraints-*.txt, such as pip install -U jax flax"
        ) from error
    devices = find_devices()
    return f"import together; {devices[0].platform} backend, {count_of(len(devices), 'device')}"


def _check_audio() -> str:
    import io
    import wave

    from ecapa_jax.audio.load import load_audio

    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(range(250)) * 32)
    samples = load_audio(file.getvalue(), sample_rate=None, target_rate=16000, channel="first")
    return f"decodes and resamples ({len(samples)} samples)"


def _check_model() -> str:
    import time

    import numpy as np

    from ecapa_jax import api

    start = time.perf_counter()
    encoder = api.load()
    noise = 0.1 * np.random.default_rng(0).standard_normal(encoder.sample_rate).astype(np.float32)
    score = encoder.score(*encoder.embed([noise, noise]))
    if not abs(score - 1) < 1e-5:
        raise RuntimeError(f"a recording scores {score} with itself")
    return f"loads and scores in {time.perf_counter() - start:.1f} s"
