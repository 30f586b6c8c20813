"""The recordings that the page offers; synthetic voices, as in the repository's `examples/audio`."""

from __future__ import annotations

SAMPLES = {
    "slt_1.flac": "Woman, sentence 1",
    "slt_2.flac": "Woman, sentence 2",
    "rms_1.flac": "Man, sentence 1",
    "rms_2.flac": "Man, sentence 2",
    "awb_1.flac": "Scottish man, sentence 1",
    "awb_2.flac": "Scottish man, sentence 2",
}
"""File name and title of each."""
