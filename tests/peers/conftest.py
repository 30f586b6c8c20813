"""Prints the results of the parity tests, in one table for each family, after any run that included them.

For features, the table has the worst and the RMS distance from float64 in nepers, for this library and the original.
For layers and embeddings, it has the worst distance from the original, divided by the original's largest value.
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
    """Reads the rows from the properties of the tests, which xdist's workers transfer."""
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
