"""Prints what the parity tests measured, one table a family, after any run that included them.

Features: worst and RMS distance from float64 in nepers, ours and the original's. Layer and embedding: worst distance
from the original over its largest value.
"""

from __future__ import annotations

import pytest

COLUMNS = (
    ("width", "width"),
    ("frames", "T"),
    ("signal", "signal"),
    ("features", "features"),
    ("their_features", "theirs"),
    ("features_rms", "RMS"),
    ("their_features_rms", "theirs"),
    ("worst_layer", "worst layer"),
    ("layer", "its error"),
    ("alone", "embedding"),
    ("padded", "in a batch"),
    ("cosine", "1 - cosine"),
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Rows travel as the tests' properties, so that they also come back from xdist's workers."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    rows = [value for report in reports for name, value in report.user_properties if name == "parity"]
    for family in dict.fromkeys(row["family"] for row in rows):
        terminalreporter.section(f"parity with {family}")
        cells = [[_cell(row.get(key, "")) for key, _ in COLUMNS] for row in rows if row["family"] == family]
        lines = [[title for _, title in COLUMNS], *cells]
        widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
        for line in lines:
            padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
            terminalreporter.write_line("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value)
