"""Games and ids: complete, idempotent, and with errors that help."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec

import diamond_gym
from diamond_gym import ATARI_100K, GAMES, env_id, game_name, register_world_model
from diamond_gym.errors import DiamondGymError, InvalidInputError, UnknownGameError
from diamond_gym.registration import real_env_id


@pytest.fixture(autouse=True)
def registry() -> Iterator[dict[str, EnvSpec]]:
    """Remove ids registered by a test after it."""
    before = dict(gymnasium.registry)
    yield gymnasium.registry
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def test_games_are_those_of_ale_py():
    import ale_py  # noqa: F401  (registers its ids)

    ale_games = {id[len("ALE/") : -len("-v5")] for id in gymnasium.registry if id.startswith("ALE/")}
    assert set(GAMES) == ale_games
    assert list(GAMES) == sorted(set(GAMES))


def test_atari_100k_is_26_of_the_games():
    assert len(set(ATARI_100K)) == len(ATARI_100K) == 26
    assert set(ATARI_100K) <= set(GAMES)


@pytest.mark.parametrize("game", GAMES)
def test_every_game_has_an_id(game):
    spec = gymnasium.spec(f"Diamond{game}-v0")
    assert spec.id == env_id(game)
    assert spec.kwargs == {"game": game}
    assert spec.max_episode_steps == 50
    assert spec.entry_point == "diamond_gym.envs.env:DiamondEnv"
    assert spec.vector_entry_point == "diamond_gym.envs.vector_env:DiamondVectorEnv"
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_registering_again_changes_nothing(recwarn):
    before = dict(gymnasium.registry)
    gymnasium.register_envs(diamond_gym)
    importlib.reload(diamond_gym)
    assert gymnasium.registry == before
    assert not recwarn.list


def test_an_id_with_the_module_registers_on_its_own():
    code = (
        "import gymnasium; print(gymnasium.envs.registration._find_spec('diamond_gym:DiamondPong-v0').kwargs)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'game': 'Pong'}"


def test_misspelt_id_names_the_nearest():
    with pytest.raises(gymnasium.error.NameNotFound, match=r"Did you mean: `DiamondBreakout`\?"):
        gymnasium.make("DiamondBrekout-v0")


@pytest.mark.parametrize(
    ("text", "game"),
    [
        ("Breakout", "Breakout"),
        ("breakout", "Breakout"),
        (" BREAKOUT ", "Breakout"),
        ("BreakoutNoFrameskip-v4", "Breakout"),
        ("BreakoutDeterministic-v4", "Breakout"),
        ("ALE/Breakout-v5", "Breakout"),
        ("DiamondBreakout-v0", "Breakout"),
        ("diamond_gym:DiamondBreakout-v0", "Breakout"),
        ("ms_pacman", "MsPacman"),
        ("Ms. Pacman", "MsPacman"),
        ("up-n-down", "UpNDown"),
        ("tic_tac_toe_3d", "TicTacToe3D"),
        ("pitfall2", "Pitfall2"),
        ("pitfall", "Pitfall"),
    ],
)
def test_game_name(text, game):
    assert game_name(text) == game


def test_game_name_understands_every_spelling_of_every_game():
    from ale_py import registration, roms

    rom_ids = {registration.rom_id_to_name(rom_id): rom_id for rom_id in roms.get_all_rom_ids()}
    for game in GAMES:
        for text in (
            game,
            game.lower(),
            rom_ids[game],
            f"ALE/{game}-v5",
            f"{game}NoFrameskip-v4",
            env_id(game),
            real_env_id(game),
        ):
            assert game_name(text) == game


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Brekout", "'Brekout': did you mean Breakout"),
        ("DiamondBrekout-v0", "did you mean Breakout"),
        ("Minesweeper 2000", "known games: Adventure, AirRaid"),
        ("", "got ''"),
        (None, "got None"),
        (7, "got 7"),
        ("warlords", "unknown game 'warlords'"),
    ],
)
def test_unknown_game(text, message):
    with pytest.raises(UnknownGameError, match=message):
        game_name(text)


def test_register_world_model():
    register_world_model(
        "MyBreakout-v3", "runs/a", max_episode_steps=15, num_denoising_steps=1, game="breakout"
    )
    spec = gymnasium.spec("MyBreakout-v3")
    assert spec.kwargs == {"game": "Breakout", "checkpoint": "runs/a", "num_denoising_steps": 1}
    assert spec.max_episode_steps == 15
    assert spec.entry_point == gymnasium.spec("DiamondBreakout-v0").entry_point
    assert spec.vector_entry_point == gymnasium.spec("DiamondBreakout-v0").vector_entry_point
    assert EnvSpec.from_json(spec.to_json()) == spec


def test_register_world_model_leaves_the_game_to_the_checkpoint():
    register_world_model("me/Dream-v0", "dream.safetensors", max_episode_steps=None)
    spec = gymnasium.spec("me/Dream-v0")
    assert spec.kwargs == {"game": None, "checkpoint": "dream.safetensors"}
    assert spec.max_episode_steps is None


def test_register_world_model_takes_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register_world_model("Dream-v0", Path("run"))
    checkpoint = gymnasium.spec("Dream-v0").kwargs["checkpoint"]
    assert checkpoint == str(tmp_path / "run")
    assert json.loads(gymnasium.spec("Dream-v0").to_json())["kwargs"]["checkpoint"] == checkpoint


def test_register_world_model_twice():
    register_world_model("Dream-v0", "a.pt")
    register_world_model("Dream-v0", "a.pt")
    with pytest.raises(InvalidInputError, match=r"'Dream-v0' is already registered.*a\.pt"):
        register_world_model("Dream-v0", "b.pt")
    with pytest.raises(InvalidInputError, match="already registered"):
        register_world_model("DiamondPong-v0", "b.pt")
    assert gymnasium.spec("Dream-v0").kwargs["checkpoint"] == "a.pt"
    assert gymnasium.spec("DiamondPong-v0").kwargs == {"game": "Pong"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "Dream"}, "'Name-v0'.*got 'Dream'"),
        ({"id": "my dream-v0"}, "got 'my dream-v0'"),
        ({"id": "a/b/Dream-v0"}, "got 'a/b/Dream-v0'"),
        ({"id": "module:Dream-v0"}, "got 'module:Dream-v0'"),
        ({"id": ""}, "got ''"),
        ({"id": None}, "got None"),
        ({"checkpoint": None}, "either a checkpoint or a model"),
        ({"checkpoint": ""}, "got ''"),
        ({"checkpoint": b"a.pt"}, "got b'a.pt'"),
        ({"max_episode_steps": 0}, ">= 1 or None, got 0"),
        ({"max_episode_steps": -5}, "got -5"),
        ({"max_episode_steps": 2.5}, "got 2.5"),
        ({"max_episode_steps": True}, "got True"),
        ({"device": object()}, "device=.*cannot be written as JSON"),
        ({"s_churn": float("nan")}, "s_churn=nan cannot be written as JSON"),
        ({"game": "Brekout"}, "did you mean Breakout"),
    ],
)
def test_register_world_model_refuses(arguments, message, registry):
    before = dict(registry)
    with pytest.raises(DiamondGymError, match=message) as caught:
        register_world_model(**{"id": "Dream-v0", "checkpoint": "a.pt"} | arguments)
    assert isinstance(caught.value, ValueError)
    assert registry == before


def test_a_versioned_id_beside_an_unversioned_one_is_refused(registry):
    gymnasium.register("Dream", entry_point="somewhere:Else")
    with pytest.raises(InvalidInputError, match="Gymnasium refuses the id 'Dream-v0'"):
        register_world_model("Dream-v0", "a.pt")
    assert "Dream-v0" not in registry


def test_every_game_is_there_as_the_real_one():
    for game in GAMES:
        spec = gymnasium.spec(real_env_id(game))
        assert spec.id == f"DiamondReal{game}-v0" and spec.kwargs == {"game": game, "training": False}


def test_any_library_can_score_an_agent_in_the_real_game():
    """Gymnasium's `make` and Stable-Baselines3's `evaluate_policy` work without any of our classes."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecFrameStack

    real = gymnasium.make("diamond_gym:DiamondRealBreakout-v0", max_episode_steps=30)
    imagined = gymnasium.make("DiamondBreakout-v0", num_denoising_steps=1)
    assert real.observation_space == imagined.observation_space
    assert real.action_space == imagined.action_space
    assert (
        real.get_wrapper_attr("get_action_meanings")() == imagined.get_wrapper_attr("get_action_meanings")()
    )
    first, info = real.reset(seed=3)
    assert first in real.observation_space and real.step(1)[-1].keys() == info.keys()
    env = VecFrameStack(make_vec_env("DiamondRealBreakout-v0", env_kwargs={"max_episode_steps": 30}), 4)
    agent = PPO("CnnPolicy", env, device="cpu", n_steps=4, batch_size=4)
    _, lengths = evaluate_policy(agent, env, n_eval_episodes=2, return_episode_rewards=True)
    assert lengths == [30, 30], "whole games, though Breakout's lives are short"
