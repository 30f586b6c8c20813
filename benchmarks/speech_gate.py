"""Measures the speech gate: how often it rejects speech, and how often it rejects other sounds.

    python benchmarks/speech_gate.py --data DATA [DATA ...] [--generated 40] [--soundfont FILE.sf2] [--wrong wrong.txt]

DATA are folders with a MANIFEST.tsv (columns corpus, speaker, path). Corpora whose names begin with `aug_` contain no
speech. The script adds generated sounds and, with a soundfont, a melody and chords for each of the 128 instruments of
General MIDI (rendered by fluidsynth). The files are split into two halves, speech by speaker. The constants of
`ecapa_jax.vad.gate` were chosen on the first half, and results are reported on the second half.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ecapa_jax.audio.load import load_audio
from ecapa_jax.audio.prefetch import map_ahead
from ecapa_jax.vad.gate import holds_speech
from ecapa_jax.vad.network import RATE

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.nonspeech import SOUNDS, nonspeech

HUMAN = ("Baby_cry", "Person_sneeze", "Lets_Go_Fishin")
"""Sounds of people who do not speak, and a song; they are counted separately."""

VOICES = (52, 53, 54, 85, 91)
"""Instruments of General MIDI that imitate voices."""


@dataclasses.dataclass(frozen=True)
class Sound:
    """A sound for the gate.

    Attributes:
      group: the row of the table.
      name: the name of the file, or of the generator and its seed. It determines the half; for speech, the speaker's
        folder does.
      speech: whether somebody speaks in it.
      path: the file, or None for a generated sound.
      gain: the gain in dB that is applied before the gate.
    """

    group: str
    name: str
    speech: bool
    path: Path | None = None
    gain: float = 0.0

    @property
    def half(self) -> int:
        key = self.name.rpartition("/")[0] if self.speech else self.name
        return zlib.crc32(key.encode()) % 2

    def samples(self) -> np.ndarray:
        if self.path is None:
            kind, _, seed = self.name.partition("/")
            return nonspeech(kind, int(seed), 1.5 + int(seed) % 4)
        samples = load_audio(self.path, sample_rate=None, target_rate=RATE, channel="first")
        return (samples * 10 ** (self.gain / 20)).astype(np.float32)


def recordings(folder: Path, gain: float) -> Iterator[Sound]:
    with (folder / "MANIFEST.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            corpus, path = row.get("corpus", folder.name), row["path"]
            speech = not corpus.startswith("aug_")
            kind = corpus if speech else f"{corpus} {row['speaker'].removeprefix('esc10_')}"
            human = not speech and any(name in path for name in HUMAN)
            group = "people who do not speak" if human else kind
            if speech:
                yield Sound(group, path, speech, folder / path)
                yield Sound(f"all speech at {gain:g} dB", path, speech, folder / path, gain)
            else:
                yield Sound(group, path, speech, folder / path)


def midi(instrument: int, intervals: tuple[int, ...]) -> bytes:
    """Returns a MIDI file with eight seconds of random notes of a major scale, each with its chord."""
    rng = np.random.default_rng(instrument)
    events = bytearray([0, 0xC0, instrument])
    for _ in range(24):
        note = 48 + int(rng.choice([0, 2, 4, 5, 7, 9, 11, 12, 14, 16])) + int(rng.integers(-4, 13))
        for status, delay in ((0x90, 0), (0x80, int(rng.choice([60, 90, 120])))):  # below 128, so that each is one byte
            for index, interval in enumerate(intervals):
                events += bytes([delay if index == 0 else 0, status, min(note + interval, 127), 96])
    events += b"\0\xff\x2f\0"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 240)
    return header + b"MTrk" + struct.pack(">I", len(events)) + bytes(events)


def instruments(soundfont: Path, folder: Path) -> Iterator[Sound]:
    for instrument in range(128):
        for style, intervals in (("melody", (0,)), ("chords", (0, 4, 7))):
            score = folder / f"{instrument}_{style}.mid"
            score.write_bytes(midi(instrument, intervals))
            path = score.with_suffix(".wav")
            command = [
                "fluidsynth",
                "-ni",
                "-q",
                "-g",
                "0.6",
                "-r",
                "48000",
                "-F",
                str(path),
                str(soundfont),
                str(score),
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            group = "instruments that imitate voices" if instrument in VOICES else f"instruments, {style}"
            yield Sound(group, f"{instrument}_{style}", False, path)


def judge_sounds(sounds: list[Sound]) -> Iterator[tuple[Sound, bool]]:
    """Yields each sound and whether the gate detects speech."""
    for index, (sound, samples) in enumerate(zip(sounds, map_ahead(Sound.samples, sounds), strict=True), 1):
        if index % 500 == 0:
            print(f"{index} of {len(sounds)}", file=sys.stderr)
        yield sound, holds_speech(samples, RATE)


def make_table(answers: list[tuple[Sound, bool]]) -> str:
    """Returns a table of the share of wrong decisions in each group, speech first."""
    groups: dict[tuple[int, str], list[tuple[int, bool]]] = collections.defaultdict(list)
    for sound, heard in answers:
        aside = sound.gain != 0 or sound.group.startswith(("people", "instruments that"))
        rank = (0 if sound.speech else 2) + aside
        groups[rank, sound.group].append((sound.half, heard != sound.speech))
        if rank in (0, 2):
            groups[rank, "**all**"].append((sound.half, heard != sound.speech))
    lines = ["| | sounds | judged wrongly | first half | second half |", "|---|--:|--:|--:|--:|"]
    for rank, group in sorted(groups, key=lambda key: (key[0], key[1] != "**all**", key[1])):
        rows = groups[rank, group]
        shares = [[wrong for half, wrong in rows if half in halves] for halves in ((0, 1), (0,), (1,))]
        cells = [f"{100 * np.mean(share):.2f} %" if share else "-" for share in shares]
        kind = "speech" if rank < 2 else "no speech"
        lines.append(f"| {kind}: {group} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--generated", type=int, default=40, help="sounds of each kind that are generated")
    parser.add_argument("--soundfont", type=Path)
    parser.add_argument("--gain", type=float, default=-30.0, help="dB at which all speech is judged once more")
    parser.add_argument("--wrong", type=Path, help="write the names of what is judged wrongly there")
    options = parser.parse_args()
    sounds = [sound for folder in options.data for sound in recordings(folder, options.gain)]
    sounds += [
        Sound(f"generated, {kind}", f"{kind}/{seed}", False) for kind in SOUNDS for seed in range(options.generated)
    ]
    with tempfile.TemporaryDirectory() as folder:
        if options.soundfont:
            sounds += instruments(options.soundfont, Path(folder))
        answers = list(judge_sounds(sounds))
    print(make_table(answers))
    if options.wrong:
        wrong = [f"{sound.group}\t{sound.name}\n" for sound, heard in answers if heard != sound.speech]
        options.wrong.write_text("".join(wrong))


if __name__ == "__main__":
    main()
