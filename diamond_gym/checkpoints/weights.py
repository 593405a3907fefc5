"""Read weights from files, and build agents from weights. Nothing read here is ever executed.

Published `.pt` state dicts are read as tensors only. Errors say which file is wrong and how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diamond_gym import untrusted
from diamond_gym.checkpoints.infer import has_actor_critic_weights, infer_agent_config, with_our_names
from diamond_gym.errors import CheckpointError, CheckpointNotFoundError
from diamond_gym.world.models import Agent, AgentConfig

_NETWORKS = ("denoiser", "rew_end_model", "actor_critic")
_EXPECTED = "expected an agent's weights, named denoiser.*, rew_end_model.* and, optionally, actor_critic.*"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the weights of a published `.pt` file, on the CPU.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: It is truncated, holds code, or holds anything but the weights of an agent.
    """
    if not path.is_file():
        raise CheckpointNotFoundError(f"there is no file {path}")
    return checked_weights(path, untrusted.read_torch(path, CheckpointError, "a PyTorch file of weights"))


def build_agent(
    weights: Mapping[str, Tensor], source: Path, known: AgentConfig | None, *, is_complete: bool = False
) -> Agent:
    """Build the agent that these weights belong to, on the CPU in float32, in eval mode.

    Args:
        weights: Its state dict; the actor-critic may be absent.
        source: The file, for error messages.
        known: Sizes that are known beside the shapes of the weights.
        is_complete: Whether `known` states all sizes, so that it must agree with the weights.

    Raises:
        CheckpointError: The weights are of another architecture than `known` says, or of none.
    """
    with untrusted.reading(source, CheckpointError, f"the weights of an agent ({_EXPECTED})"):
        weights, known_or_ddpm = with_our_names(weights, known)
        config = infer_agent_config(weights, known_or_ddpm)
        if known is not None and is_complete:
            _check_same_sizes(config, known, source)
        # weights that are about to be replaced take no memory, time or random numbers
        with torch.device("meta"), _WithoutNormalInit():
            agent = Agent(config, with_actor_critic=has_actor_critic_weights(weights))
        _check_same_tensors(weights, agent.state_dict(), source)
        full_precision = {key: value.float() for key, value in weights.items()}
        agent.load_state_dict(full_precision, strict=True, assign=True)
    return agent.eval()


class _WithoutNormalInit(TorchFunctionMode):
    """Skips an initialisation that, on the meta device, would import torch's compiler (slow)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def checked_weights(path: Path, content: Any) -> dict[str, Tensor]:
    """Check that the content of a file is finite tensors under an agent's names, and return it as a dict.

    Raises:
        CheckpointError: It is anything else.
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
    with untrusted.reading(path, CheckpointError, "the weights of an agent"):
        untrusted.check_finite(content)
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
