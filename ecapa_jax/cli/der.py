"""`ecapa-jax der REF.rttm HYP.rttm`: error rates of a diarization."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ecapa_jax.cli.common import Output, OutputOptions

if TYPE_CHECKING:
    from ecapa_jax.diarization.error_rate import ErrorRate
    from ecapa_jax.diarization.turns import Turn


@dataclasses.dataclass(frozen=True)
class Der:
    """Compare turns with a reference: diarization error rate and its parts, Jaccard error rate, number of speakers."""

    reference: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REF.rttm")]
    """The reference: an RTTM file, or a folder of them."""
    hypothesis: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="HYP.rttm")]
    """The turns to compare with it: an RTTM file, or a folder of them."""
    collar: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 0.0
    """Time on each side of a boundary in the reference that is not scored."""
    uem: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: first to last turn)")] = None
    """Parts of the recordings that are scored: a UEM file, or a folder of them."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Prints one line for each recording, and one for all of them."""
        from ecapa_jax.diarization.error_rate import error_rates
        from ecapa_jax.diarization.rttm import read_uem

        parts = None
        if self.uem is not None:
            parts = {name: found for file in _files(self.uem, ".uem") for name, found in read_uem(file).items()}
        overall, each = error_rates(_turns(self.reference), _turns(self.hypothesis), collar=self.collar, parts=parts)
        rows = [*each.items(), ("all", overall)] if len(each) > 1 else list(each.items())
        width = max(len(name) for name, _ in rows)
        head = f"{'':{width}}   DER %   miss  false   conf  JER %  speakers found"
        lines = [head, *(f"{name:{width}}  {_row(rate)}" for name, rate in rows)]
        if overall.low is not None and overall.high is not None:
            lines.append(
                f"DER between {100 * overall.low:.1f} and {100 * overall.high:.1f} % (95 %, recordings resampled)"
            )
        if len(each) > 1:
            lines.append(f"number of speakers right in {overall.counts_right} of {overall.recordings}")
        value = {
            "collar": self.collar,
            "all": dataclasses.asdict(overall),
            "recordings": {name: dataclasses.asdict(rate) for name, rate in each.items()},
        }
        self.output.result(value, "\n".join(lines))


def _row(rate: ErrorRate) -> str:
    shares = (rate.der, rate.miss, rate.false_alarm, rate.confusion, rate.jer)
    return " ".join(f"{100 * share:6.2f}" for share in shares) + f" {rate.speakers:9d} {rate.found:5d}"


def _turns(name: str) -> dict[str, list[Turn]]:
    from ecapa_jax.diarization.rttm import read_rttm
    from ecapa_jax.errors import DiarizationError

    found: dict[str, list[Turn]] = {}
    for file in _files(name, ".rttm"):
        for recording, turns in read_rttm(file).items():
            if recording in found:
                raise DiarizationError(f"{file}: {recording!r} is also in another file of {name}; keep one of them")
            found[recording] = turns
    return found


def _files(name: str, suffix: str) -> list[Path]:
    from ecapa_jax.errors import DiarizationError

    path = Path(name)
    if not path.is_dir():
        return [path]
    found = sorted(path.glob(f"*{suffix}"))
    if not found:
        raise DiarizationError(f"{name}: no {suffix} files in this folder")
    return found
