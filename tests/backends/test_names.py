"""The keyword `backend` everywhere; the deprecated `compile` is mapped to it with a warning."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle

import gymnasium
import pytest

import diamond_gym  # noqa: F401  registers the games
from benchmarks.rows import WorldSettings
from diamond_gym.backends.build import backend_of
from diamond_gym.backends.names import BACKENDS, backend_of_compile
from diamond_gym.errors import InvalidInputError
from diamond_gym.play.settings import WorldOptions
from tests.worlds import save_tiny_world

FORMER = [(True, "inductor"), (False, "eager"), ("auto", "auto"), ("openvino", "openvino")]
FORMER_TEXTS = [("true", "inductor"), ("false", "eager"), *FORMER[2:]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return save_tiny_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(("former", "backend"), FORMER)
def test_the_former_argument_is_mapped_with_a_warning_that_names_the_new_one(former, backend):
    with pytest.warns(
        DeprecationWarning, match=f'compile={former!r} is deprecated: pass backend="{backend}"'
    ):
        assert backend_of_compile(former) == backend


@pytest.mark.parametrize("wrong", ["maybe", "True", None, 1, 0, [True]])
def test_other_values_list_what_is_accepted(wrong):
    with pytest.raises(InvalidInputError, match=rf"{', '.join(BACKENDS)}\. .*\"openvino\" and \"auto\""):
        backend_of_compile(wrong)


@pytest.mark.parametrize(("former", "backend"), FORMER_TEXTS)
@pytest.mark.parametrize("settings", [WorldOptions, WorldSettings])
def test_the_former_key_of_command_lines(settings, former, backend):
    with pytest.warns(DeprecationWarning, match=f'pass backend="{backend}"'):
        assert settings(compile=former).backend == backend


@pytest.mark.parametrize("settings", [WorldOptions, WorldSettings])
def test_wrong_keys_of_command_lines(settings):
    for name in ("backend", "compile"):
        with pytest.raises(InvalidInputError, match="auto, eager, inductor, openvino, cuda_graph"):
            settings(**{name: "maybe"})


@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
def test_environments_take_either_and_the_warning_names_the_callers_line(world, make):
    options = {"checkpoint": world, "device": "cpu", "dtype": "float32"}
    with pytest.warns(DeprecationWarning, match="compile=False") as caught:
        env = make("DiamondBreakout-v0", compile=False, **options)
    (warning,) = (w for w in caught if w.category is DeprecationWarning)
    assert warning.filename == __file__
    assert backend_of(env.unwrapped.world.world_model, 1) == "eager"
    with pytest.raises(InvalidInputError, match="without the deprecated compile"):
        make("DiamondBreakout-v0", compile=False, backend="eager", **options)


@pytest.mark.parametrize("name", ["compile", "backend"])
def test_specs_are_pickled_and_written_as_json(world, name):
    options = {"checkpoint": world, "device": "cpu", name: "auto"}
    spec = copy.deepcopy(gymnasium.spec("DiamondBreakout-v0"))
    spec.kwargs = spec.kwargs | options
    for again in (
        pickle.loads(pickle.dumps(spec)),
        gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()),
    ):
        assert again == spec and json.loads(again.to_json())["kwargs"][name] == "auto"
    is_former = name == "compile"
    with pytest.warns(DeprecationWarning) if is_former else contextlib.nullcontext():
        made = gymnasium.make(spec)
    assert made.spec is not None and made.spec.kwargs[name] == "auto"
    made.close()
