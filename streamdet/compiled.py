"""Plain loops over arrays, compiled by numba: where order matters, simpler than vectorised tricks, and faster."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from numba import njit

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile on first use and keep the machine code beside the source; the type stays the function's own.

    Other threads run meanwhile: a fine-tune gets on while a batch is judged, and judging while a forest grows.
    """
    return cast("Callable[Parameters, Result]", njit(cache=True, nogil=True)(function))


def inlined(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile it into the loops that call it: for small steps of a hot loop, where handing over arrays costs more."""
    return cast("Callable[Parameters, Result]", njit(cache=True, nogil=True, forceinline=True)(function))
