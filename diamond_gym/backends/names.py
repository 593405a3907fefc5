"""The names of the backends, and the mapping of the deprecated argument `compile` to them."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

from diamond_gym.errors import InvalidInputError

Backend = Literal["auto", "eager", "inductor", "openvino", "cuda_graph"]
BACKENDS: tuple[Backend, ...] = ("auto", "eager", "inductor", "openvino", "cuda_graph")
"""The accepted values of `backend`; see `diamond_gym.backends.choose`."""

WHY_NO_INT8 = (
    "worlds get worse: embedded Breakout has 45.6 instead of 47.3 dB after a step, 36.3 instead of 37.7 dB "
    "after 15, and 93 instead of 98 % of the balls right at bricks (docs/experiments.md)"
)
"""What quantised networks cost, measured with ONNX Runtime."""

_BACKEND_OF_COMPILE: dict[object, Backend] = {
    True: "inductor",
    False: "eager",
    "auto": "auto",
    "openvino": "openvino",
    "true": "inductor",
    "false": "eager",
}
_NOT_THE_CALLER = ("diamond_gym", "trainers", "benchmarks", "gymnasium")

_P = ParamSpec("_P")
_T = TypeVar("_T")


def backend_of_compile(compile: object) -> Backend:
    """Return the backend that a value of the deprecated argument `compile` means, with a warning.

    Args:
        compile: True, False, "auto" or "openvino"; on command lines also "true" and "false".

    Raises:
        InvalidInputError: Another value.
    """
    known = isinstance(compile, bool | str) and compile in _BACKEND_OF_COMPILE
    if not known:
        accepted = 'True (now backend="inductor"), False ("eager"), "openvino" and "auto"'
        raise InvalidInputError(
            f"compile={compile!r} is not accepted: pass backend=... instead, one of {', '.join(BACKENDS)}. "
            f"The deprecated compile still takes {accepted}"
        )
    backend = _BACKEND_OF_COMPILE[compile]
    warn_deprecated(f'compile={compile!r} is deprecated: pass backend="{backend}"')
    return backend


def accepts_compile(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function with the keyword `backend` accept the deprecated keyword `compile` instead."""

    @functools.wraps(function)
    def accepting(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if "compile" in kwargs:
            if "backend" in kwargs:
                raise InvalidInputError("pass backend=..., without the deprecated compile=...")
            kwargs["backend"] = backend_of_compile(kwargs.pop("compile"))
        return function(*args, **kwargs)

    return accepting


def warn_deprecated(message: str) -> None:
    """Warn of a deprecation, at the line of the nearest caller outside this project and Gymnasium.

    Python shows deprecations only where they are the program's own; `gymnasium.make` lies in between.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] in _NOT_THE_CALLER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, DeprecationWarning, stacklevel=level)
