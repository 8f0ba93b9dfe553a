"""Decorator of compiled functions that only compiled functions call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.registry import CPUDispatcher


class _Inner(CPUDispatcher):
    # Without the wrapper there is nothing to jump to: the plain dispatcher would end the process.
    def __call__(self, *args, **kwargs):
        raise TypeError(f"{self.py_func.__name__} is for compiled functions only; njit makes others")


def inner(**options: Any) -> Callable[[Callable], Any]:
    """Compile a function without its entries from Python and C.

    Those unpack every array of every named tuple that a function takes, and take a third of the time of
    compiling functions like the reference's.

    Parameters
    ----------
    **options
        More options of `numba.njit`.
    """
    settings: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **options}
    compile_: Any = njit(cache=True, nogil=True, **settings)

    def decorate(function: Callable) -> Any:
        compiled = compile_(function)
        # With NUMBA_DISABLE_JIT it stays the function itself.
        if isinstance(compiled, CPUDispatcher):
            compiled.__class__ = _Inner
        return compiled

    return decorate
