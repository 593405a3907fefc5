"""Load a custom world model, which a function of the user's code builds: checkpoint="model:package:factory".

The function is imported and called, so such text must come from the user, as in a call or on a command line.
It is never taken from a file that was downloaded.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from diamond_gym.checkpoints import start_contexts
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.checkpoints.description import num_action_names
from diamond_gym.errors import DiamondGymError, InvalidInputError, WorldModelError, first_line
from diamond_gym.registration import CUSTOM_PREFIX
from diamond_gym.world.custom import AdaptedWorldModel

_FORM = f"'{CUSTOM_PREFIX}package.module:factory'"


def is_custom(checkpoint: object) -> bool:
    """Whether a `checkpoint` names a function that builds a world model."""
    return isinstance(checkpoint, str) and checkpoint.startswith(CUSTOM_PREFIX)


def build(checkpoint: str, device: torch.device) -> AdaptedWorldModel:
    """Import the function and call it with the device, `factory(device=torch.device(...))`.

    Raises:
        InvalidInputError: The text has another form, or names nothing that can be imported and called.
        WorldModelError: The function failed, or its model has no usable spaces.
    """
    factory = _import(checkpoint)
    try:
        model = factory(device=device)
    except DiamondGymError:
        raise
    except Exception as error:  # any error of the user's own code
        raise WorldModelError(f"{checkpoint}: {type(error).__name__}: {first_line(error)}") from error
    return AdaptedWorldModel(model, device)


def _import(checkpoint: str) -> Callable[..., Any]:
    module, _, name = checkpoint.removeprefix(CUSTOM_PREFIX).partition(":")
    if not module or not name:
        raise InvalidInputError(f"a custom world model is named by {_FORM}, got {checkpoint!r}")
    try:
        factory = importlib.import_module(module)
        for part in name.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInputError(f"{checkpoint!r} cannot be imported: {first_line(error)}") from error
    if not callable(factory):
        raise InvalidInputError(f"{checkpoint!r} is not a function but a {type(factory).__name__}")
    return factory


def find_contexts(model: AdaptedWorldModel, given: str | os.PathLike[str] | None) -> ContextBank:
    """Return the contexts that games start from: the given ones, else the model's own.

    Raises:
        InvalidInputError: There are none, or `given` is not a path.
        WorldModelError: They do not fit the model.
        CheckpointError, DatasetError: The file or folder is damaged.
    """
    n = model.num_steps_conditioning
    own = getattr(model.model, "contexts", None)
    if given is not None:
        bank, source = start_contexts.read(given, n), str(given)
    elif own is not None:
        bank, source = _as_bank(own), "the model's contexts"
    else:
        raise InvalidInputError(
            "this world model brings no start contexts: give contexts='path of contexts or recorded "
            "episodes', "
            'or let it have an attribute `contexts`, {"obs": uint8 (k, n, h, w, c), "act": (k, n)}'
        )
    space = model.action_space
    act = space.convert(bank.act)
    if bank.num_steps_conditioning < n or bank.obs.shape[2:] != model.frame_shape or act is None:
        raise WorldModelError(
            f"{source}: contexts need {n} uint8 frames of shape {model.frame_shape} and actions that are "
            f"{space.accepted()}; they have {bank.num_steps_conditioning} frames of {bank.obs.shape[2:]} and "
            f"actions {bank.act.dtype} {bank.act.shape[2:]} from {bank.act.min()} to {bank.act.max()}"
        )
    return ContextBank(bank.obs, act).latest(n)


def action_meanings(model: AdaptedWorldModel) -> list[str]:
    """Return the names of the model's actions, ACTION_0 and so on where it names none.

    Raises:
        WorldModelError: Their number is not that of the actions.
    """
    count = num_action_names(model.action_space)
    names = getattr(model.model, "action_meanings", None)
    if names is None:
        return [f"ACTION_{i}" for i in range(count)]
    if len(names) != count or not all(isinstance(name, str) for name in names):
        raise WorldModelError(f"action_meanings must be {count} texts, got {names!r}")
    return list(names)


def refuse_sampler(*numbers: float | None) -> None:
    """Check that no number of a sampler is given, which only DIAMOND's models have.

    Raises:
        InvalidInputError: One is given.
    """
    if any(number is not None for number in numbers):
        raise InvalidInputError(
            "num_denoising_steps, order and s_churn are of diffusion models: a custom world model takes none"
        )


def refuse_backend(dtype: str, backend: str) -> None:
    """Check that neither a precision nor a backend is given: a custom world model chooses its own.

    Raises:
        InvalidInputError: One is given.
    """
    if dtype != "auto" or backend not in ("auto", "eager"):
        raise InvalidInputError(
            f"a custom world model chooses its own dtype and backend: leave out dtype={dtype!r} and "
            f"backend={backend!r}"
        )


def _as_bank(contexts: Any) -> ContextBank:
    if isinstance(contexts, ContextBank):
        return contexts
    if not isinstance(contexts, Mapping) or set(contexts) != {"obs", "act"}:
        raise WorldModelError('contexts must be {"obs": uint8 (k, n, h, w, c), "act": (k, n)}')
    obs, act = (np.asarray(torch.as_tensor(contexts[name]).cpu()) for name in ("obs", "act"))
    try:
        return ContextBank(obs, act if act.dtype.kind != "f" else act.astype(np.float32))
    except InvalidInputError as error:
        raise WorldModelError(f"the model's contexts: {error}") from error
