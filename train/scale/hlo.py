"""Reads from the text of a compiled program its messages between devices and the dtypes of its products."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

BITS = re.compile(r"(\d+)")

_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<kind>[a-z][\w\-]*)\((?P<operands>.*)$"
)
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<shape>[\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=\{\{(?P<first>[\d,]+)\}|replica_groups=\[(?P<rows>\d+),(?P<columns>\d+)\]")
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
HOP_SECONDS = 1e-6


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The messages of one kind among groups of one size.

    Attributes:
      kind: name of the operation in HLO.
      group: number of chips in a group.
      number: number of messages.
      n_bytes: sum of the sizes of the whole arrays.
    """

    kind: str
    group: int
    number: int
    n_bytes: int

    def seconds(self, link_speed: float) -> float:
        """Estimates the time with links of so many bytes/s per chip: that of a ring, and 1 us per hop on a torus."""
        rounds = 2 if self.kind == "all-reduce" else 1
        sent = rounds * self.n_bytes * (self.group - 1) / self.group
        return sent / link_speed + rounds * self.number * math.sqrt(self.group) * HOP_SECONDS


def find_collectives(hlo: str) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """Yields kind, shape, bytes and group size of each array that a program exchanges.

    Sizes are those of the whole array: the result of an all-gather, the operand of a reduce-scatter. Messages in a loop
    count once.
    """
    for line in hlo.splitlines():
        found = _INSTRUCTION.match(line)
        kind = found["kind"].removesuffix("-start") if found else ""
        if not found or kind not in _KINDS:
            continue
        arrays = [_parse_array(array) for array in _ARRAY.finditer(found["type"])]
        if found["kind"] == "all-gather-start":
            arrays = arrays[len(arrays) // 2 :]  # operands, then results
        elif found["kind"] == "collective-permute-start":
            arrays = arrays[:1]
        group = _parse_group(line)
        for shape, n_bytes in arrays:
            yield kind, shape, n_bytes * (group if kind == "reduce-scatter" else 1), group


def _parse_array(found: re.Match[str]) -> tuple[tuple[int, ...], int]:
    shape = tuple(int(size) for size in found["shape"].split(",") if size)
    bits = BITS.search(found["dtype"])
    return shape, math.prod(shape) * (max(int(bits[1]) // 8, 1) if bits else 1)


def _parse_group(line: str) -> int:
    found = _GROUPS.search(line)
    if not found:
        return 1
    return int(found["columns"]) if found["columns"] else len(found["first"].split(","))


def traffic(hlo: str, n_devices: int) -> tuple[Traffic, ...]:
    """Sums up the messages of a program by kind and group; a combined message counts once."""
    numbers: collections.Counter[tuple[str, int]] = collections.Counter()
    n_bytes: collections.Counter[tuple[str, int]] = collections.Counter()
    for line in hlo.splitlines():
        arrays = list(find_collectives(line))
        for kind, _, size, group in arrays:
            n_bytes[kind, group if group > 1 else n_devices] += size
        if arrays:
            kind, _, _, group = arrays[0]
            numbers[kind, group if group > 1 else n_devices] += 1
    return tuple(
        Traffic(kind, group, number, n_bytes[kind, group]) for (kind, group), number in sorted(numbers.items())
    )


def count_products(hlo: str) -> dict[str, int]:
    """Counts the matrix products and convolutions with two, one or no bfloat16 operand."""
    types: dict[str, str] = {}
    counts = dict.fromkeys(("bfloat16", "mixed", "float32"), 0)
    for line in hlo.splitlines():
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        array = _ARRAY.search(found["type"])
        types[found["name"]] = array["dtype"] if array else ""
        if found["kind"] in ("convolution", "dot"):
            operands = re.findall(r"%([\w.\-]+)", found["operands"])[:2]
            low = [types.get(operand) == "bf16" for operand in operands]
            counts["bfloat16" if all(low) else "mixed" if any(low) else "float32"] += 1
    return counts
