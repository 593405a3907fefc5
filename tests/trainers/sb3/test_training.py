"""`python -m trainers.sb3`: a tiny run from nothing to its files, stopping, scoring, and every error."""

import json
import shutil
import signal
import sys
from dataclasses import asdict

import cv2
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from diamond_gym import cli
from diamond_gym import files as disk
from diamond_gym.errors import CheckpointError, CheckpointNotFoundError, InvalidInputError
from diamond_gym.evaluate.score import Score, table
from tests.test_untrusted import with_canary
from trainers.sb3 import agents, evaluation, games, loop, scoring, training
from trainers.sb3.__main__ import main
from trainers.sb3.player import AgentPolicy
from trainers.sb3.settings import PRESETS, EvaluateSettings, TrainSettings

SHORT = ["total_timesteps=48", "num_envs=2", "horizon=6", "eval_every=32", "eval_episodes=1", "device=cpu"]
SHORT += ["final_episodes=1", "max_game_steps=10"]
SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
"""Keyword arguments of PPO that make a rollout of two games 32 steps."""


def arguments(tiny_world, out, *more):
    return [f"checkpoint={tiny_world}", f"out={out}", *SHORT, *more]


@pytest.fixture(autouse=True, scope="module")
def short_films_and_rollouts():
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "FILM_STEPS", 5)
    for name in ("ppo", "recurrent_ppo"):
        patch.setitem(PRESETS, name, PRESETS[name] | SMALL)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def finished(tiny_world, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert main(["train", *arguments(tiny_world, out)]) == 0
    return out


def test_a_run_leaves_everything_in_its_folder(finished):
    agent = PPO.load(finished / "agent.zip", device="cpu")
    assert agent.num_timesteps >= 48
    result = json.loads((finished / "score.json").read_text())
    assert result["steps"] == agent.num_timesteps and result["seconds"] > 0
    players = [score["player"] for score in result["scores"]]
    assert players == ["ppo, imagination", "ppo, untrained", "random"]
    assert all(len(score["returns"]) == 1 for score in result["scores"])
    assert cv2.imread(str(finished / "learning_curve.png")).std() > 0
    film = cv2.VideoCapture(str(finished / "film.mp4"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == training.FILM_STEPS
    assert film.get(cv2.CAP_PROP_FRAME_WIDTH) >= 2 * 64 * 4
    logs = {file.name.split(".")[0] for file in (finished / "log-001").iterdir()}
    assert logs == {"events", "progress", "evaluations"}
    assert np.load(finished / "log-001" / "evaluations.npz")["timesteps"].tolist() == [32, 64]


def test_the_same_command_goes_on_and_other_settings_are_refused(finished, tiny_world, capsys):
    before = (finished / "agent.zip").read_bytes()
    assert main(["train", *arguments(tiny_world, finished)]) == 0
    assert (finished / "agent.zip").read_bytes() == before  # all its steps were done
    assert "from step" in capsys.readouterr().err
    more = [x for x in arguments(tiny_world, finished) if not x.startswith("total")] + ["total_timesteps=80"]
    assert main(["train", *more]) == 0
    assert PPO.load(finished / "agent.zip", device="cpu").num_timesteps >= 80
    assert (finished / "log-002").is_dir()
    assert main(["train", *arguments(tiny_world, finished, "seed=3")]) == 2
    assert "holds a run with seed=0, not 3: choose another out=" in capsys.readouterr().err


def test_a_run_goes_on_at_another_learning_rate(finished, tiny_world, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    before = PPO.load(folder / "agent.zip", device="cpu")
    more = [f"total_timesteps={before.num_timesteps + 32}", "learning_rate=3e-5", "lr_schedule=constant"]
    given = [x for x in arguments(tiny_world, folder) if not x.startswith("total")]
    assert main(["train", *given, *more]) == 0
    after = PPO.load(folder / "agent.zip", device="cpu")
    assert before.learning_rate == PRESETS["ppo"]["learning_rate"]
    assert after.policy.optimizer.param_groups[0]["lr"] == after.learning_rate == 3e-5


def test_the_learning_rate_falls_to_zero_at_the_last_of_all_steps(finished, tiny_world, tmp_path):
    def rates(log):
        logged = np.genfromtxt(log / "progress.csv", delimiter=",", names=True)["trainlearning_rate"]
        return logged[~np.isnan(logged)].tolist()  # an update's rate is logged with the next rollout

    rate = PRESETS["ppo"]["learning_rate"]
    assert rates(finished / "log-001") == pytest.approx([rate * (1 - 32 / 48)])
    before = PPO.load(finished / "agent.zip", device="cpu")
    assert before.policy.optimizer.param_groups[0]["lr"] == 0
    folder = shutil.copytree(finished, tmp_path / "run")
    given = [x for x in arguments(tiny_world, folder) if not x.startswith("total")]
    total = before.num_timesteps + 64
    assert main(["train", *given, f"total_timesteps={total}"]) == 0
    [log] = set(folder.glob("log-*")) - {folder / log.name for log in finished.glob("log-*")}
    assert rates(log) == pytest.approx([rate * 32 / total])


def test_an_agent_continues_to_learn_in_a_new_run(finished, tiny_world, tmp_path, capsys):
    before = PPO.load(finished / "agent.zip", device="cpu")
    total = before.num_timesteps + 32
    given = [x for x in arguments(tiny_world, tmp_path / "run") if not x.startswith("total")]
    given += ["ent_coef=0.0625", "learning_rate=1e-9", f"initial_agent={finished}"]
    assert main(["train", *given, f"total_timesteps={before.num_timesteps}"]) == 2
    assert "total_timesteps counts them: it must be larger" in capsys.readouterr().err
    assert main(["train", *given, f"total_timesteps={total}", "algo=a2c"]) == 2
    assert "is an agent of ppo, not of a2c" in capsys.readouterr().err
    with pytest.raises(InvalidInputError, match="is an agent of ppo, not of dqn"):
        agents.load_agent(finished / "agent.zip", device="cpu", algo="dqn", trust=True)
    assert not (tmp_path / "run" / "settings.json").exists()
    assert main(["train", *given, f"total_timesteps={total}"]) == 0
    after = PPO.load(tmp_path / "run" / "agent.zip", device="cpu")
    assert after.num_timesteps == total and after.ent_coef == 0.0625
    for old, new in zip(before.policy.parameters(), after.policy.parameters(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-5, rtol=0)
    assert main(["train", *given[:-2], f"total_timesteps={total + 32}"]) == 2, (
        "it was begun with another agent"
    )
    assert "holds a run with initial_agent=" in capsys.readouterr().err


def test_a_stopped_run_has_saved_its_agent(tiny_world, tmp_path, monkeypatch):
    class Stop(BaseCallback):
        def _on_step(self):
            if self.n_calls == 20:  # in the second rollout
                raise KeyboardInterrupt
            return True

    monkeypatch.setattr(training, "SaveAgent", lambda *_: Stop())
    assert main(["train", *arguments(tiny_world, tmp_path)]) == 130
    assert 32 <= PPO.load(tmp_path / "agent.zip", device="cpu").num_timesteps < 48
    monkeypatch.undo()
    assert main(["train", *arguments(tiny_world, tmp_path)]) == 0


def test_signals_and_time_save_the_agent(tiny_world, tmp_path, monkeypatch, caplog):
    """SIGUSR1 saves and continues, so do two minutes (here: none); SIGTERM saves after the step and ends."""
    saved, steps = [], []
    save, step = training.save_agent, training.SaveAgent._on_step

    def save_agent(agent, path):
        saved.append(agent.num_timesteps)
        save(agent, path)

    def on_step(self):
        steps.append(self.num_timesteps)
        if len(steps) == 10:
            signal.raise_signal(signal.SIGUSR1)
        if len(steps) == 20:
            self.seconds = 0.0
        if len(steps) == 30:
            self.seconds = 60.0
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(training, "save_agent", save_agent)
    monkeypatch.setattr(training.SaveAgent, "_on_step", on_step)
    assert main(["train", *arguments(tiny_world, tmp_path)]) == 143
    assert len(steps) == 30 and saved == [steps[9], *steps[19:29], steps[29]]
    assert PPO.load(tmp_path / "agent.zip", device="cpu").num_timesteps == steps[29]
    assert f"stopped at step {steps[29]}; the same command resumes" in caplog.text


@pytest.mark.parametrize(
    "algo",
    ["dqn", "recurrent_ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a2c", "qrdqn"))],
)
def test_every_algorithm(tiny_world, tmp_path, monkeypatch, algo):
    if "learning_starts" in PRESETS[algo]:
        small = {"learning_starts": 20, "buffer_size": 200}
        monkeypatch.setitem(PRESETS, algo, PRESETS[algo] | small)
    given = [x for x in arguments(tiny_world, tmp_path, f"algo={algo}") if not x.startswith("total")]
    assert main(["train", *given, "total_timesteps=32", "num_denoising_steps=1"]) == 0
    again = evaluation.evaluate(
        EvaluateSettings(agent=str(tmp_path), episodes=1, max_game_steps=20, device="cpu"), progress=False
    )
    assert len(again.returns) == 1


def test_an_agent_is_compared_in_both_worlds(finished, tiny_world, capsys):
    given = ["where=both", "episodes=2", "horizon=40", f"checkpoint={tiny_world}", "device=cpu"]
    assert main(["evaluate", f"agent={finished}", *given]) == 0
    told = capsys.readouterr().out
    assert "2 starts, up to 40 steps each" in told
    names, real, imagined = (line.split() for line in told.splitlines()[:3])
    assert names == ["won", "lost", "ends", "balls", "lost", "returned", "vanished"]
    assert (real[0], imagined[0]) == ("real", "imagined")
    assert float(real[3]) < 50 < float(imagined[3])  # about one step in eight of this world is an end
    with pytest.raises(InvalidInputError, match="call compare"):
        evaluation.evaluate(EvaluateSettings(agent=str(finished), where="both"), progress=False)
    assert main(["evaluate", f"agent={finished}", *given, "game=Pong"]) == 2
    assert "wrong game?" in capsys.readouterr().err


def test_learning_in_the_real_game_beside_another_agent(finished, tiny_world, tmp_path):
    more = ["where=real", f"beside={finished}"]
    assert main(["train", *arguments(tiny_world, tmp_path, *more)]) == 0
    players = [s["player"] for s in json.loads((tmp_path / "score.json").read_text())["scores"]]
    assert players == ["ppo, real", "ppo, untrained", f"beside: {finished}", "random"]


def test_scores_of_a_saved_agent_in_both_worlds(finished, tiny_world, capsys):
    short = ["episodes=3", "max_game_steps=30", "horizon=5", "device=cpu"]
    for where in ("real", "imagination"):
        command = ["evaluate", f"agent={finished}", f"where={where}", f"checkpoint={tiny_world}", *short]
        assert main(command) == 0
        first = capsys.readouterr().out
        assert f"{finished / 'agent.zip'}, {where}" in first
        assert main(command) == 0
        assert capsys.readouterr().out == first


def test_a_film_of_an_agent_in_both_worlds(finished, tiny_world, tmp_path, capsys):
    command = [
        "demo",
        f"agent={finished}",
        f"checkpoint={tiny_world}",
        f"out={tmp_path}",
        "steps=5",
        "device=cpu",
    ]
    assert main(command) == 0
    film = cv2.VideoCapture(str(tmp_path / "agent.mp4"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert "plays 5 steps of Breakout" in capsys.readouterr().out
    assert main([*command, "game=Pong"]) == 2
    assert "was trained for Discrete(4), Pong has Discrete(6)" in capsys.readouterr().err


class LongAndShort(VecEnv):
    """Two games, of 2 and of 9 steps, whose return is their number and length."""

    def __init__(self):
        super().__init__(2, Box(0, 1, (1,)), Discrete(2))
        self.age = np.zeros(2, int)

    def reset(self):
        self.age[:] = 0
        return np.zeros((2, 1))

    def step_async(self, actions):
        pass

    def step_wait(self):
        self.age += 1
        lengths = np.array([2, 9])
        dones = self.age == lengths
        infos = [{"episode": {"r": float(lengths[i])}} if dones[i] else {} for i in range(2)]
        self.age[dones] = 0
        return np.zeros((2, 1)), np.zeros(2), dones, infos

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [None, None]

    set_attr = env_method = env_is_wrapped = None


def test_every_environment_plays_its_share():
    returns = scoring.play_games(
        lambda obs, begins: np.zeros(2), LongAndShort(), 5, "", seed=0, progress=False
    )
    assert sorted(returns) == [2, 2, 2, 9, 9], "the first to end would be four short ones"


def test_scores_follow_from_the_seed_whoever_played_before(finished):
    agent = agents.load_agent(finished / "agent.zip", device="cpu")
    env = games.real("Breakout", 2, frame_stack=4, training=False, max_steps=60, seed=0)
    actions = []

    def told(policy):
        return lambda obs, begins: actions[-1].append(policy(obs, begins)) or actions[-1][-1]

    for player in (agent, None, agent):
        actions.append([])
        policy = scoring.random_policy(env) if player is None else AgentPolicy(agent)
        scoring.play_games(told(policy), env, 2, "", seed=3, progress=False)
    env.close()
    np.testing.assert_array_equal(actions[0], actions[2])


def test_an_off_policy_agent_that_goes_on_fills_its_buffer_first(tiny_world, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "dqn", PRESETS["dqn"] | {"learning_starts": 20, "buffer_size": 200})
    given = [x for x in arguments(tiny_world, tmp_path, "algo=dqn") if not x.startswith("total")]
    assert main(["train", *given, "total_timesteps=40"]) == 0
    assert main(["train", *given, "total_timesteps=80"]) == 0
    assert "it fills up to step 60 first" in capsys.readouterr().err
    assert main(["train", *given, "total_timesteps=100"]) == 0
    assert "it fills up to step 100 first" in capsys.readouterr().err, "20 steps, however often it is resumed"


def test_a_run_goes_on_with_other_evaluations(tiny_world, tmp_path):
    given = [x for x in arguments(tiny_world, tmp_path) if not x.startswith(("total", "eval"))]
    assert main(["train", *given, "total_timesteps=32", "eval_every=16", "eval_episodes=1"]) == 0
    (tmp_path / "learning_curve.png").unlink()
    assert main(["train", *given, "total_timesteps=64", "eval_every=16", "eval_episodes=3"]) == 0
    assert cv2.imread(str(tmp_path / "learning_curve.png")).std() > 0


def test_a_run_that_failed_to_begin_does_not_stand_in_the_way(tiny_world, tmp_path):
    wrong = arguments(tmp_path / "nowhere.pt", tmp_path / "run")
    assert main(["train", *wrong]) == 1
    given = [x for x in arguments(tiny_world, tmp_path / "run") if not x.startswith("total")]
    assert main(["train", *given, "total_timesteps=2"]) == 0


def test_real_games_train_on_lives_and_signs_and_are_scored_whole():
    lives = games.real("MsPacman", 1, frame_stack=2, training=True, max_steps=500, seed=0)
    whole = games.real("MsPacman", 1, frame_stack=2, training=False, max_steps=500, seed=0)
    rewards, ends = [], []
    for env in (lives, whole):
        assert env.reset().shape == (1, 64, 64, 6)
        steps = [env.step([1])[1:3] for _ in range(150)]
        rewards.append({float(reward[0]) for reward, _ in steps})
        ends.append(sum(int(done[0]) for _, done in steps))
        env.close()
    assert rewards[0] == {0.0, 1.0} and max(rewards[1]) >= 10
    assert ends[0] > ends[1]


def test_a_score_is_summed_up():
    score = Score.of("me", [1.0, 2.0, 9.0])
    assert (score.mean, score.median) == (4, 2)
    assert "me" in table([score])


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["fly"], 2, "unknown command fly: accepted are train, loop, evaluate, export-onnx, demo"),
        (["train", "algo=sac"], 2, "algo must be one of ppo, a2c, dqn, recurrent_ppo, qrdqn, got 'sac'"),
        (["train", "where=moon"], 2, "where must be one of imagination, real"),
        (["train", "total_timesteps=0"], 2, "total_timesteps must be at least 1, got 0"),
        (["train", "seed=-1"], 2, "seed must be at least 0"),
        (["train", "steps=5"], 2, "unknown key steps: did you mean"),
        (["train", "algo=dqn", "ent_coef=0.1"], 2, "dqn has no entropy bonus"),
        (["train", "lr_schedule=cosine"], 2, "lr_schedule must be one of constant, linear, got 'cosine'"),
        (["train", "learning_rate=inf"], 2, "learning_rate must be finite and above 0, got inf"),
        (["train", "ent_coef=nan"], 2, "ent_coef must be finite, got nan"),
        (["train", "game=Nogame"], 2, "unknown game 'Nogame'"),
        (["train", "device=banana", "where=real", "out=run"], 1, "banana"),
        (["evaluate"], 2, "missing: agent=..."),
        (["evaluate", "agent=nowhere.zip"], 1, "there is no agent at nowhere.zip"),
        (["evaluate", "agent=embedded", "game=Asterix"], 1, "no embedded agent of Asterix; games with one: "),
        (["demo", "steps=0"], 2, "steps must be at least 1, got 0"),
        (["demo", "agent=nowhere.zip"], 1, "there is no agent at nowhere.zip"),
        (["loop", "rounds=1"], 2, "rounds must be at least 2, got 1"),
    ],
)
def test_wrong_arguments_give_one_line(command, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_world_to_learn_in(tmp_path, capsys):
    assert main(["train", "game=Asterix", "checkpoint=embedded", f"out={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert "no embedded world model of Asterix" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["stable_baselines3", "matplotlib", "tensorboard"])
def test_without_the_extra_it_is_named(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    for command in ("train", "loop"):
        assert main([command]) == 1
        assert f"this needs {name}: pip install 'diamond-gym[sb3]'" in capsys.readouterr().err


def test_what_is_needed_at_the_end_is_checked_at_the_start(tmp_path, monkeypatch, capsys):
    def missing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", missing)
    assert main(["train", f"out={tmp_path / 'run'}"]) == 1
    assert capsys.readouterr().err == "error: films need ffmpeg: No ffmpeg exe could be found.\n"


def test_agents_that_do_not_fit(finished, tmp_path):
    with pytest.raises(
        InvalidInputError, match=r"was trained for Discrete\(4\), these games have Discrete\(6\)"
    ):
        evaluation.evaluate(EvaluateSettings(agent=str(finished), game="Pong"), progress=False)
    (tmp_path / "agent.zip").write_bytes(b"PK nonsense")
    with pytest.raises(CheckpointError, match="cannot be read as an agent that this Stable-Baselines3 loads"):
        agents.load_agent(tmp_path / "agent.zip", device="cpu")
    with pytest.raises(CheckpointNotFoundError):
        agents.find_agent(str(tmp_path / "none"), "Breakout")
    TRPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "trpo.zip")
    with pytest.raises(CheckpointError, match=r"of an unknown algorithm, .* known: ppo, a2c, dqn"):
        agents.load_agent(tmp_path / "trpo.zip", device="cpu")
    with pytest.raises(CheckpointError, match="trust=true takes it for ppo"):
        agents.load_agent(tmp_path / "trpo.zip", device="cpu", algo="ppo")
    cart = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    cart.save(tmp_path / "cart.zip")
    with pytest.raises(InvalidInputError, match="accepted are stacks of 64x64 RGB frames"):
        evaluation.evaluate(EvaluateSettings(agent=str(tmp_path / "cart.zip")), progress=False)


def test_help(capsys):
    for command in (["--help"], *([name, "--help"] for name in ("train", "loop", "evaluate", "demo"))):
        assert main(command) == 0
    text = capsys.readouterr().out
    assert "total_timesteps=500000" in text and "deterministic=false" in text
    assert main([]) == 2
    assert cli.parse(TrainSettings, []).folder == "outputs/sb3/Breakout-ppo-imagination-0"


def test_settings_of_earlier_versions_are_read_where_a_removed_one_did_nothing(tmp_path):
    file, settings = tmp_path / "settings.json", TrainSettings()
    for penalty in (0.0, 0.5):
        file.write_text(json.dumps(asdict(settings) | {"end_penalty": penalty}))
        if penalty == 0:
            training.check_unchanged(file, settings, ["seed"], "a run")
        else:
            with pytest.raises(InvalidInputError, match=r"holds a run with end_penalty=0\.5, not 0\.0"):
                training.check_unchanged(file, settings, ["seed"], "a run")
    before = asdict(settings)
    del before["ent_coef"]  # older runs did not have the key: it had its default
    file.write_text(json.dumps(before))
    training.check_unchanged(file, settings, ["ent_coef"], "a run")


@pytest.mark.parametrize("game", ["Breakout", "Freeway", "Pong"])
def test_embedded_agents_are_small_and_play_both_worlds(game, tmp_path, capsys):
    path = agents.find_agent("embedded", game)
    assert path.stat().st_size < 3e6
    assert f"## {path.name}" in (agents.EMBEDDED / "README.md").read_text()
    command = ["demo", f"game={path.stem}", f"out={tmp_path}", "steps=5", "device=cpu"]
    assert main(command) == 0
    assert "plays 5 steps" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("game", "max_game_steps"), [("Breakout", 2_500), ("Pong", 10_000)])
def test_embedded_agents_play_better_than_what_has_learned_nothing(game, max_game_steps):
    learned = evaluation.evaluate(
        EvaluateSettings(
            agent="embedded", game=game, episodes=30, max_game_steps=max_game_steps, device="cpu"
        ),
        progress=False,
    )
    env = games.real(game, 8, frame_stack=4, training=False, max_steps=max_game_steps, seed=0)
    returns = scoring.play_games(scoring.random_policy(env), env, 30, "random", seed=0, progress=False)
    env.close()
    assert learned.low > Score.of("random", returns).high


def test_two_processes_do_not_share_a_run_folder(tiny_world, tmp_path, capsys):
    with disk.locked(tmp_path):
        assert main(["train", *arguments(tiny_world, tmp_path)]) == 1
        assert "another process is working on the run" in capsys.readouterr().err
        assert main(["loop", f"checkpoint={tiny_world}", f"out={tmp_path}", "num_envs=2"]) == 1
        assert "another process is working on the run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("settings.json", b"{"),
        ("settings.json", b"[]"),
        ("settings.json", b"\xff"),
        ("seconds.json", b""),
        ("seconds.json", b"null"),
        ("seconds.json", b"NaN"),
        ("agent.zip", b"PK"),
    ],
)
def test_damaged_files_of_a_run_are_named(name, content, finished, tiny_world, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / name).write_bytes(content)
    more = [x for x in arguments(tiny_world, folder) if not x.startswith("total")] + ["total_timesteps=96"]
    assert main(["train", *more]) == 1
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1


@pytest.mark.parametrize("content", [b"{", b"{}", b"[1]", b'{"scores": [{"player": "x", "returns": "no"}]}'])
def test_damaged_scores_of_a_round_are_named(content, tmp_path):
    (tmp_path / "score.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"score\.json cannot be read as the scores of a run: .{5}"):
        loop._learned(TrainSettings(out=str(tmp_path)), progress=False)


def test_a_zip_beside_a_run_is_not_unpickled(finished, tiny_world, tmp_path, capsys):
    canary = tmp_path / "canary"
    path = with_canary(finished / "agent.zip", tmp_path / "other.zip", canary, "policy_class")
    short = ["episodes=1", "max_game_steps=10", "device=cpu"]
    assert main(["evaluate", f"agent={path}", *short]) == 0
    shutil.copytree(finished, tmp_path / "run")
    shutil.copy(path, tmp_path / "run" / "agent.zip")
    more = [x for x in arguments(tiny_world, tmp_path / "run") if not x.startswith("total")]
    assert main(["train", *more, "total_timesteps=80", f"beside={path}"]) == 0
    assert not canary.exists()
    assert main(["evaluate", f"agent={path}", *short, "trust=true"]) == 1  # a canary is no policy
    assert canary.exists()


@pytest.mark.parametrize("algo", ["ppo", "recurrent_ppo"])
def test_an_agent_whose_network_no_longer_sees_is_told_of(algo, tiny_world, tmp_path, capsys, monkeypatch):
    """Too large a learning rate does this in bright games; nothing else would say why an agent stays bad."""

    def blind_agent(*given, **keywords):
        agent = agents.new_agent(*given, **keywords)
        agent.policy.features_extractor.cnn[0].bias.data.fill_(-1e3)
        return agent

    assert main(["train", *arguments(tiny_world, tmp_path / "seeing", f"algo={algo}")]) == 0
    assert "lower learning_rate" not in capsys.readouterr().err
    monkeypatch.setattr(training, "new_agent", blind_agent)
    assert main(["train", *arguments(tiny_world, tmp_path / "blind", f"algo={algo}")]) == 0
    told = capsys.readouterr().err
    assert told.count("the same features for all frames") == 1, "once, though there are two rollouts"
    assert "give a lower learning_rate than" in told
