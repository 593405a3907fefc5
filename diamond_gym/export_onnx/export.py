"""Write a world model as a folder of ONNX files, start contexts and one description; see `docs/onnx.md`."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diamond_gym import files as disk
from diamond_gym.checkpoints import World
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.checkpoints.description import finite_or_text
from diamond_gym.envs.rendering import RENDER_FPS
from diamond_gym.errors import InvalidInputError
from diamond_gym.export_onnx.graphs import GAMES, NextFrame, Policy, RewardAndEnd, require_onnx, to_onnx
from diamond_gym.play.keys import GameKeys
from diamond_gym.world.noise import Draw
from diamond_gym.world.world_model import WorldModel

if TYPE_CHECKING:
    import onnx

FORMAT = "diamond_gym.onnx"
FORMAT_VERSION = 1
DESCRIPTION_FILE = "world.json"
DENOISER_FILE, REW_END_FILE, CONTEXTS_FILE = "denoiser.onnx", "rew_end_model.onnx", "contexts.bin"
ACTOR_CRITIC_FILE = "actor_critic.onnx"
_SMALLEST_HALVED = 1024
"""Smaller constants stay in float32: they are no part of a file's size, and some are not weights."""
_ROWS_FIRST = (2, 0, 1, 3, 4)


def export_world(world: World, out: Path, *, dtype: str, opset: int) -> dict[str, int]:
    """Write a world model into a new folder.

    Args:
        world: The world model, on the CPU in float32, by PyTorch's own operators.
        out: The folder, which must not exist or be empty.
        dtype: How weights are stored: "float32" or "float16". Computations are in float32.
        opset: Version of ONNX's operators.

    Returns:
        Bytes of each file.

    Raises:
        CacheError: The folder exists and is not empty, or cannot be written.
        CheckpointError: A network has an operator that ONNX lacks.
        InvalidInputError: A weight is too large for float16, it is not a world model of DIAMOND's, or its
            actions are not discrete.
        MissingDependencyError: ONNX is not installed.
    """
    require_onnx()
    model, agent = world.diffusion_model, world.agent
    assert agent is not None
    if not world.action_space.is_discrete:
        raise InvalidInputError(
            f"{world.source} has actions {world.action_space}: only worlds of discrete ones are exported"
        )
    with disk.new_folder(out) as folder:
        h, w = world.contexts.obs.shape[2:4]
        next_frame = NextFrame(model)
        models = {
            DENOISER_FILE: to_onnx(next_frame.graph(h, w), opset, world.source),
            REW_END_FILE: to_onnx(RewardAndEnd(agent.rew_end_model).graph(), opset, world.source),
        }
        if agent.actor_critic is not None:
            models[ACTOR_CRITIC_FILE] = to_onnx(Policy(agent.actor_critic).graph(), opset, world.source)
        for name, model in models.items():
            content = stored_as(model, dtype).SerializeToString()
            disk.write_file(folder / name, content)
        disk.write_file(folder / CONTEXTS_FILE, compressed(world.contexts))
        about = describe(world, models, next_frame.draws, dtype, opset)
        disk.write_file(folder / DESCRIPTION_FILE, json.dumps(about, allow_nan=False).encode())
    return {file.name: file.stat().st_size for file in disk.visible(out)}


def stored_as(model: onnx.ModelProto, dtype: str) -> onnx.ModelProto:
    """Return a model with its large weights stored in a precision, and cast to float32 where they are used.

    A runtime casts them once, when it loads the model. So half the bytes cost no accuracy but that of the
    weights themselves, and none at all where those were float16 in the checkpoint.

    Raises:
        InvalidInputError: A weight is too large for float16.
    """
    if dtype == "float32":
        return model
    onnx = require_onnx()
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    casts: dict[str, onnx.NodeProto] = {}
    for tensor in halved.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _SMALLEST_HALVED:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise InvalidInputError(
                f"the world cannot be stored in float16: a weight of {tensor.name} is "
                f"{np.abs(values).max():g}, and the largest float16 is 65504; give dtype=float32"
            )
        name = f"w{len(casts)}"
        casts[tensor.name] = onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for node in halved.graph.node:
        node.input[:] = [casts[name].output[0] if name in casts else name for name in node.input]
    nodes = list(halved.graph.node)
    del halved.graph.node[:]
    halved.graph.node.extend([*casts.values(), *nodes])
    return halved


def compressed(contexts: ContextBank) -> bytes:
    """Return the frames as a zlib stream, which browsers read as "deflate", in the order (h k n w c)."""
    return zlib.compress(contexts.obs.transpose(_ROWS_FIRST).tobytes(), 9)


def describe(
    world: World, models: dict[str, onnx.ModelProto], draws: list[int], dtype: str, opset: int
) -> dict[str, Any]:
    """Return the description of a world's folder, as `docs/onnx.md` explains it, for JSON."""
    keys = GameKeys.of(world.action_meanings)
    held: list[list[str]] = [[] for _ in world.action_meanings]
    for combination, action in keys.combinations.items():
        held[action] = sorted(combination)
    contexts = world.contexts
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "game": world.game,
        "dtype": dtype,
        "opset": opset,
        "fps": RENDER_FPS,
        "num_steps_conditioning": world.world_model.num_steps_conditioning,
        "frame": dict(zip(("height", "width", "channels"), contexts.obs.shape[2:], strict=True)),
        "actions": [
            {"name": name, "keys": names} for name, names in zip(world.action_meanings, held, strict=True)
        ],
        "idle": keys.idle,
        "sampler": _sampler(world.diffusion_model),
        "noise": {"generator": "philox4x32-10", "frame": draws, "rew_end": int(Draw.REW_END)},
        "denoiser": signature(DENOISER_FILE, models[DENOISER_FILE]),
        "rew_end_model": signature(REW_END_FILE, models[REW_END_FILE]),
        "actor_critic": signature(ACTOR_CRITIC_FILE, models.get(ACTOR_CRITIC_FILE)),
        "contexts": {
            "file": CONTEXTS_FILE,
            "compression": "deflate",
            "shape": list(contexts.obs.shape),
            "order": "hknwc",
            "act": contexts.act.tolist(),
        },
    }


def _sampler(world_model: WorldModel) -> dict[str, Any]:
    """What is already part of the graph, for information."""
    values = {name: finite_or_text(value) for name, value in vars(world_model.config).items()}
    num_steps = values.pop("num_steps_denoising")
    objective = world_model.denoiser.config.objective
    return {"objective": objective, "num_denoising_steps": num_steps, **values, "levels": world_model.levels}


def signature(file: str, model: onnx.ModelProto | None) -> dict[str, Any] | None:
    """Return the file of a model, and the type and shape of its inputs and outputs; "games" is any number."""
    return (
        None
        if model is None
        else {
            "file": file,
            "inputs": {value.name: _kind(value) for value in model.graph.input},
            "outputs": {value.name: _kind(value) for value in model.graph.output},
        }
    )


def _kind(value: onnx.ValueInfoProto) -> dict[str, Any]:
    onnx = require_onnx()
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return {"dtype": dtype, "shape": [GAMES if d.dim_param else d.dim_value for d in kind.shape.dim]}
