"""Tests that the table of published models is consistent with the families."""

import re

import pytest

from ecapa_jax.convert.published import PUBLISHED, find_published
from ecapa_jax.convert.remote import COMPANIONS
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.hub.address import parse

IDS = [f"{entry.family}-{index}" for index, entry in enumerate(PUBLISHED)]


@pytest.mark.parametrize("entry", PUBLISHED, ids=IDS)
def test_entry_is_consistent(entry):
    assert entry.family in FAMILIES
    for text in (entry.address, *entry.mirrors):
        address = parse(text)
        assert address.base == text
        assert address.revision is None
        assert find_published(text) is entry
    assert (entry.revision is not None) == (parse(entry.address).scheme == "modelscope")
    assert entry.files
    assert all("/" not in name for name in entry.files)
    assert all(name in COMPANIONS or "*" in name for name in entry.files[1:])
    assert entry.licence
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    for figure in entry.figures:
        assert 0 < figure.eer < 50
        assert (figure.min_dcf is None) == (figure.p_target is None)
        assert figure.min_dcf is None or (0 < figure.min_dcf < 1 and figure.p_target in (0.01, 0.05))
    if "*" not in entry.files[0]:
        assert entry.files[0] in FAMILIES[entry.family].files


def test_addresses_are_unique():
    addresses = [address for entry in PUBLISHED for address in (entry.address, *entry.mirrors)]
    assert len(addresses) == len(set(addresses))
    assert find_published("hf:nobody/nothing") is None


def test_table_has_every_family_with_published_weights():
    """Families without published weights are variants of others, and mvector, whose weights have no public address."""
    assert {family.name for family in FAMILIES.values() if family.published} <= {entry.family for entry in PUBLISHED}


def test_figures_equal_those_of_the_families():
    """The table and the family state the same figures for a published model."""
    for family in FAMILIES.values():
        table = {figure.eer for entry in PUBLISHED if entry.family == family.name for figure in entry.figures}
        stated = {value for model in family.published for key, value in model.figures.items() if "EER" in key}
        assert {value for value in stated if isinstance(value, float)} <= table
