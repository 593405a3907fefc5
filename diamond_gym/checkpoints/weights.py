"""Weights out of files, and agents out of weights. Nothing read here is ever executed.

Reads published `.pt` state dicts, tensors only, and says which file is wrong and how.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diamond_gym.checkpoints.infer import has_actor_critic_weights, infer_agent_config, with_our_names
from diamond_gym.errors import CheckpointError, CheckpointNotFoundError, first_line
from diamond_gym.world.models import Agent, AgentConfig

_NETWORKS = ("denoiser", "rew_end_model", "actor_critic")
_EXPECTED = "expected an agent's weights, named denoiser.*, rew_end_model.* and, optionally, actor_critic.*"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Weights of a published `.pt` file, on the CPU.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: It is truncated, holds code, or holds anything but the weights of an agent.
    """
    if not path.is_file():
        raise CheckpointNotFoundError(f"there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's doubts about files that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, error)) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a PyTorch file: {first_line(error)}. "
            "It is truncated, damaged or of another kind: copy or download it again"
        ) from error
    return checked_weights(path, content)


def build_agent(
    weights: Mapping[str, Tensor], source: Path, known: AgentConfig | None, *, is_complete: bool = False
) -> Agent:
    """The agent these weights belong to, on the CPU in float32, in eval mode.

    Args:
        weights: Its state dict; the actor-critic may be absent.
        source: The file, for error messages.
        known: What is known of its sizes beyond the shapes of the weights.
        is_complete: Whether `known` says all sizes, so that it must agree with the weights.

    Raises:
        CheckpointError: The weights are of another architecture than `known` says, or of none.
    """
    try:
        weights, known_or_ddpm = with_our_names(weights, known)
        config = infer_agent_config(weights, known_or_ddpm)
    except CheckpointError as error:
        raise CheckpointError(f"{source} cannot be used: {error}; {_EXPECTED}") from error
    if known is not None and is_complete:
        _check_same_sizes(config, known, source)
    # no memory, time or random numbers for weights that are about to be replaced
    with torch.device("meta"), _WithoutNormalInit():
        agent = Agent(config, with_actor_critic=has_actor_critic_weights(weights))
    _check_same_tensors(weights, agent.state_dict(), source)
    full_precision = {key: value.float() for key, value in weights.items()}
    agent.load_state_dict(full_precision, strict=True, assign=True)
    return agent.eval()


class _WithoutNormalInit(TorchFunctionMode):
    """Skips an initialisation that would, on the meta device, first import torch's compiler (seconds)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    names: list[str] = []
    with contextlib.suppress(Exception):  # a damaged file, or torch's older format, cannot be listed
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    is_pickle = "GLOBAL" in str(error) or path.read_bytes()[:1] == pickle.PROTO
    if not names and not is_pickle:
        return f"{path} is damaged, or no PyTorch file: {first_line(error)}"
    what = f"it refers to {', '.join(names)}" if names else "it is pickled Python"
    return (
        f"{path} holds more than tensors ({what}): loading it could run code, so it was not loaded and "
        f"nothing in it was run; {_EXPECTED}. Save the agent's state_dict() alone"
    )


def checked_weights(path: Path, content: Any) -> dict[str, Tensor]:
    """What was read from a file, once it is seen to be tensors of numbers under an agent's names.

    Raises:
        CheckpointError: It is something else.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; {_EXPECTED}")
    foreign = [
        str(key)
        for key, value in content.items()
        if not isinstance(value, Tensor) or str(key).partition(".")[0] not in _NETWORKS
    ]
    if foreign or not content:
        raise CheckpointError(
            f"{path} is not the checkpoint of an agent: it holds {_some(foreign)}; {_EXPECTED}. In a run "
            "folder those files are checkpoints/agent_versions/*.pt"
        )
    unusable = [str(key) for key, value in content.items() if not _holds_numbers(value)]
    if unusable:
        raise CheckpointError(f"{path}: {_some(unusable)} should be dense tensors of floating-point numbers")
    return dict(content)


def _holds_numbers(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.layout == torch.strided and not weight.is_meta


def _check_same_sizes(found: AgentConfig, stated: AgentConfig, source: Path) -> None:
    stated_sizes, differences = _flatten(asdict(stated)), []
    for name, value in _flatten(asdict(found)).items():
        said = stated_sizes.get(name)
        is_shared = name.endswith("num_actions") and said is None
        if said != value and not is_shared:
            differences.append(f"{name} is {value}, described as {said}")
    if differences:
        raise CheckpointError(
            f"{source}: the weights are of another architecture than their description says: "
            f"{'; '.join(differences)}"
        )


def _check_same_tensors(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path) -> None:
    missing = [key for key in expected if key not in weights]
    surplus = [key for key in weights if key not in expected]
    other_shapes = [
        f"{key} {list(weights[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    problems = {"missing": missing, "not known": surplus, "of another shape": other_shapes}
    if found := [f"{_some(names)} ({what})" for what, names in problems.items() if names]:
        raise CheckpointError(f"{source} is of no architecture this program knows: {'; '.join(found)}")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return flat


def _some(names: list[str], limit: int = 3) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest if names else "nothing"
