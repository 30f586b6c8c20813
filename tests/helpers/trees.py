"""Comparisons of unpickled trees."""

import numpy as np


def assert_same(ours, theirs):
    """Checks that types, keys, order, shapes, dtypes and bytes are equal in the whole tree."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes()
    else:
        assert ours == theirs


def assert_same_leaves(ours, theirs):
    """Checks the same as `assert_same` for nested dicts, but ignores the order of keys."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert sorted(ours) == sorted(theirs)
        for key in theirs:
            assert_same_leaves(ours[key], theirs[key])
    else:
        assert_same(ours, theirs)
