"""Evaluates the packaged model, or another, on open trial lists, with and without AS-norm, as a Markdown table.

    python benchmarks/evaluation.py --data DATA [--model BUNDLE] [--cache FILE] [-o DIR]

DATA contains `lists/*.txt`, the audio that they name, `SPLIT.tsv` (corpus, speaker, split) and `MANIFEST.tsv` (corpus,
speaker, path). The cohort of AS-norm is the mean embedding of each training speaker. `ecapa-jax evaluate` checks that
no speaker of the cohort is in a list.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

from ecapa_jax.cli.main import main as ecapa_jax_command

LISTS = ("dev_speechocean762_same_gender_age", "eval_librispeech_test_other", "eval_speechocean762_same_gender_age")


def main() -> int:
    """Writes the list of the cohort and runs `ecapa-jax evaluate`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--cache")
    parser.add_argument("--top-n", type=int, default=300)
    parser.add_argument("-o", "--output")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cohort = Path(folder) / "cohort.txt"
        cohort.write_text("".join(f"{path} {speaker}\n" for path, speaker in training_files(arguments.data)), "utf-8")
        command = ["evaluate", "--audio-root", str(arguments.data), "--cohort", str(cohort)]
        command += ["--top-n", str(arguments.top_n), "--trials"]
        command += [str(arguments.data / "lists" / f"{name}.txt") for name in LISTS]
        for option in ("model", "cache", "output"):
            if value := getattr(arguments, option):
                command += [f"--{option}", value]
        return ecapa_jax_command(command)


def training_files(data: Path) -> list[tuple[str, str]]:
    """Returns path and speaker of each recording in the training split; speakers have the names of their folders."""
    training = {(row["corpus"], row["speaker"]) for row in read_tsv(data / "SPLIT.tsv") if row["split"] == "train"}
    return [
        (row["path"], f"{row['corpus']}/{row['speaker']}")
        for row in read_tsv(data / "MANIFEST.tsv")
        if (row["corpus"], row["speaker"]) in training
    ]


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Reads rows as dicts with the names of the header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


if __name__ == "__main__":
    sys.exit(main())
