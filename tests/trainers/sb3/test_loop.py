"""`python -m trainers.sb3 loop`: rounds of learning, playing and training the world, with resume."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stable_baselines3 import PPO

from diamond_gym.checkpoints import load_world
from diamond_gym.checkpoints.contexts import ContextBank, num_windows
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import InvalidInputError
from trainers.diamond import config as world_settings
from trainers.diamond.run import train
from trainers.sb3 import agents, loop, training
from trainers.sb3.__main__ import main
from trainers.sb3.loop import LoopSettings
from trainers.sb3.player import AgentPlayer
from trainers.sb3.settings import PRESETS

WORLD = "preset=smoke training.num_epochs=1 training.parts=[denoiser,rew_end_model] evaluation.should=false "
WORLD += "denoiser.training.steps_first_epoch=2 rew_end_model.training.steps_first_epoch=2"
SHORT = ["total_timesteps=64", "num_envs=2", "horizon=6", "eval_every=500", "eval_episodes=1", "device=cpu"]
SHORT += ["final_episodes=1", "max_game_steps=20", "rounds=2", "collect_steps=60", f"world={WORLD}"]


@pytest.fixture(scope="module")
def first_world(tmp_path_factory):
    """A run of the trainer with few steps and updates, and a sampler of its own."""
    sampler = [f"world_model_env.diffusion_sampler.{x}" for x in ("s_churn=3.0", "s_tmax=4.0", "s_noise=1.4")]
    config = world_settings.parse(["game=Breakout", *WORLD.split(), *sampler])
    return train(config, outputs=tmp_path_factory.mktemp("first"), command="", progress=False)


@pytest.fixture(autouse=True)
def short_films_and_rollouts(monkeypatch):
    monkeypatch.setattr(training, "FILM_STEPS", 2)
    small = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
    monkeypatch.setitem(PRESETS, "ppo", PRESETS["ppo"] | small)


def arguments(first_world, out):
    return ["loop", f"checkpoint={first_world}", f"data={first_world / 'dataset'}", f"out={out}", *SHORT]


def test_a_loop_that_was_stopped_goes_on_and_every_round_has_a_world_that_saw_the_agent(
    first_world, tmp_path, monkeypatch, capsys
):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.launch, "train", stop)
        assert main(arguments(first_world, tmp_path)) == 130
    played = (tmp_path / "round-1" / "own" / "train" / "info.pt").read_bytes()
    assert main(arguments(first_world, tmp_path)) == 0
    assert (tmp_path / "round-1" / "own" / "train" / "info.pt").read_bytes() == played

    sizes = [
        EpisodeDataset(folder / "train").num_steps
        for folder in (first_world / "dataset", tmp_path / "round-1" / "own", tmp_path / "round-1" / "data")
    ]
    assert sizes[1] == 60 and sizes[2] == sizes[0] + sizes[1]
    (run,) = (tmp_path / "round-1" / "world").glob("*/*")
    samplers = [load_world("Breakout", x, device="cpu").world_model.config for x in (first_world, run)]
    assert samplers[0] == samplers[1] and samplers[0].s_noise == 1.4
    settings = json.loads((tmp_path / "round-2" / "agent" / "settings.json").read_text())
    assert settings["checkpoint"] == str(run)
    assert settings["contexts"] == str(tmp_path / "round-1" / "contexts.safetensors")
    own = EpisodeDataset(tmp_path / "round-1" / "own" / "train")
    bank = ContextBank.load(settings["contexts"])
    assert len(bank) >= num_windows(own, 4).sum() and bank.num_steps_conditioning == 4
    weights = [torch.load(next(x.glob("checkpoints/agent_versions/*.pt"))) for x in (first_world, run)]
    changed = [name for name, x in weights[0].items() if not torch.equal(x, weights[1][name])]
    assert any(name.startswith("denoiser") for name in changed)
    assert any(name.startswith("rew_end_model") for name in changed)

    learned = [PPO.load(tmp_path / f"round-{i}" / "agent" / "agent.zip") for i in (1, 2)]
    assert [agent.num_timesteps for agent in learned] == [32, 64]
    rates = {agent.policy.optimizer.param_groups[0]["lr"] for agent in learned}
    assert rates == {PRESETS["ppo"]["learning_rate"]}, "rounds go on where others ended"
    table = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in table[-5:-1]] == [
        "round 1",
        "round 2",
        "ppo, untrained",
        "random",
    ]

    monkeypatch.setattr(loop.training, "train", stop)  # everything exists, so nothing is done again
    before = json.loads((tmp_path / "loop.json").read_text())
    before["end_penalty"] = 0.0  # like folders of the time when there was a penalty
    (tmp_path / "loop.json").write_text(json.dumps(before))
    assert main(arguments(first_world, tmp_path)) == 0
    assert agents.find_agent(str(tmp_path), "Breakout") == tmp_path / "round-2" / "agent" / "agent.zip"
    assert main([*arguments(first_world, tmp_path), "seed=1"]) == 2
    assert "holds a loop with seed=0, not 1: choose another out=" in capsys.readouterr().err


def test_the_last_games_may_have_a_share_of_the_training(first_world, tmp_path):
    """Few games of the agent that has found a world's faults mend them, if they are drawn often."""
    changes = {WORLD: f"{WORLD} denoiser.training.hard_fraction=1", "collect_steps=60": "collect_steps=300"}
    given = [
        functools.reduce(lambda x, old: x.replace(old, changes[old]), changes, argument)
        for argument in arguments(first_world, tmp_path)
    ]
    assert main([*given, "epsilon=1.0", "own_share=0.4"]) == 0
    own = EpisodeDataset(tmp_path / "round-1" / "own" / "train")
    chosen = torch.cat([episode.act for episode in own])
    assert chosen.bincount(minlength=4).min() > 45, "each of the four actions is equally likely"
    (run,) = (tmp_path / "round-1" / "world").glob("*/*")
    drawn = world_settings.changed(run / "config" / "trainer.yaml", []).denoiser.training.step_weights
    weights = load_file(drawn)["weights"]
    assert weights[-300:].sum().item() == pytest.approx(0.4, abs=1e-5)
    assert weights[:-300].sum().item() == pytest.approx(0.6, abs=1e-5)


def test_weights_without_test_episodes_are_refused_before_anything_is_learned(first_world, tmp_path, capsys):
    """The training would hold out episodes, and then the weights would not fit the others."""
    changed = f"world={WORLD} denoiser.training.hard_fraction=1"
    left = ("world=", "data=")
    given = [x for x in arguments(first_world, tmp_path) if not x.startswith(left)] + [
        changed,
        "own_share=0.4",
    ]
    (tmp_path / "data").mkdir()
    shutil.copytree(first_world / "dataset" / "train", tmp_path / "data" / "train")
    for data in ([], [f"data={tmp_path / 'data'}"]):
        assert main([*given, *data]) == 2
        assert "own_share=0.4 needs test episodes" in capsys.readouterr().err
    assert not (tmp_path / "round-1").exists()


def test_without_data_good_and_bad_players_play_first(tmp_path):
    settings = LoopSettings(game="Breakout", data_steps=1500, out=str(tmp_path))
    data = EpisodeDataset(loop._first_data(settings, tmp_path, progress=False) / "train")
    assert data.num_steps == 1500
    played = np.cumsum([len(data[i].act) for i in range(len(data))])
    of_each = [np.count_nonzero((played > start) & (played <= start + 500)) for start in (0, 500, 1000)]
    assert of_each[0] < of_each[2], "the last of the three loses lives sooner"


def test_a_player_sees_what_the_agent_saw_in_training(tmp_path, first_world):
    from trainers.sb3 import games

    env = games.real("Breakout", 1, frame_stack=4, training=True, max_steps=100, seed=0)
    agent = agents.new_agent("ppo", env, seed=0, device="cpu", n_steps=8, batch_size=8)
    player = AgentPlayer(agent, 4)
    player.reset(2**40)  # as in the evaluation of worlds, whose games have such seeds
    obs = env.reset()
    for _ in range(6):
        assert isinstance(obs, np.ndarray)
        player.act(obs[0, ..., -3:])
        np.testing.assert_array_equal(player._stack, obs[0])
        obs, *_ = env.step(np.array([1]))
    env.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 1}, "rounds must be at least 2"),
        ({"collect_steps": 0}, "collect_steps must be at least 1"),
        ({"before_losses": 1.5}, "before_losses must be a share from 0 to 1"),
        ({"epsilon": 1.5}, r"epsilon must be a probability in \[0, 1\]"),
        ({"own_share": 1.0}, "own_share must be between 0 and 1"),
        ({"own_share": 0.5, "game": "Freeway"}, "its ball cannot be found"),
        ({"own_share": 0.5, "world": "preset=small"}, "hard_fraction of the segments is drawn"),
        ({"where": "real"}, "leave out where"),
        ({"initial_agent": "x.zip"}, "leave out initial_agent"),
        ({"beside": "x.zip"}, "leave out beside"),
        ({"world": "game=Pong"}, "game is chosen by the loop"),
        ({"world": "preset=nonsense"}, "preset=nonsense"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(InvalidInputError, match=message):
        LoopSettings(**given)


def test_data_that_is_not_there_is_refused_before_anything_is_learned(first_world, tmp_path, capsys):
    given = [x for x in arguments(first_world, tmp_path) if not x.startswith("data=")]
    assert main([*given, f"data={tmp_path / 'nowhere'}"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "round-1").exists()


def test_a_world_of_other_sizes_is_refused_before_anything_is_learned(first_world, tmp_path, capsys):
    given = [x for x in arguments(first_world, tmp_path) if not x.startswith("world=")]
    assert main([*given, "world=preset=finetune"]) == 1
    assert "is of other sizes" in capsys.readouterr().err
    assert main([*given, f"world={WORLD} common.device=banana"]) == 1
    assert "common.device=banana is not available" in capsys.readouterr().err
    assert not (tmp_path / "round-1").exists()


@pytest.mark.parametrize("wrong", ["checkpoint", "data", "contexts"])
def test_a_loop_that_failed_to_begin_does_not_stand_in_the_way(wrong, first_world, tmp_path, monkeypatch):
    given = arguments(first_world, tmp_path)
    assert main([*(x for x in given if not x.startswith(wrong)), f"{wrong}={tmp_path / 'nowhere.pt'}"]) == 1

    def begun(settings, *, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.training, "train", begun)
    assert main(given) == 130
