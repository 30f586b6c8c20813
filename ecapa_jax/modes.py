"""The modes of JAX that a program may set for its own code, kept away from this library's.

A program that raises on rank promotion, enables 64 bits, or looks for NaN in every result means its own functions. Ours
broadcast, compute in the dtype that the model is configured for, and give NaN for an utterance that has no embedding.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax

Function = TypeVar("Function", bound=Callable[..., Any])


def allow_rank_promotion(function: Function) -> Function:
    """Decorates a pure function that broadcasts, so that it can be traced where `jax_numpy_rank_promotion` raises."""

    @functools.wraps(function)
    def traced(*arguments: Any, **options: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*arguments, **options)

    return cast("Function", traced)


@contextlib.contextmanager
def library_modes() -> Iterator[None]:
    """The modes in which the library computes, in this thread: JAX's defaults, whatever the program has set.

    Do not yield to a caller inside it: the modes would be the caller's, too.
    """
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.enable_x64(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.disable_jit(False),
        jax.transfer_guard("allow"),
    ):
        yield


def in_library_modes(function: Function) -> Function:
    """Decorates a function that computes, so that it does so in `library_modes`."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with library_modes():
            return function(*arguments, **options)

    return cast("Function", run)
