"""The command line: from an empty folder to a playable world model, and errors in one line."""

import json
import shlex
import shutil
from pathlib import Path

import gymnasium
import pytest
import torch

import diamond_gym
from diamond_gym import cli
from diamond_gym.checkpoints import WorldDescription, load_world
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import InvalidInputError
from diamond_gym.untrusted import read_tensors
from trainers.diamond import publish as average
from trainers.diamond.cli import main
from trainers.diamond.config import TrainerConfig, from_yaml, parse, to_yaml

SHORT = [
    "preset=smoke",
    "common.device=cpu",
    "training.num_threads=1",
    "training.num_epochs=1",
    "denoiser.training.steps_first_epoch=3",
    "rew_end_model.training.steps_first_epoch=3",
    "actor_critic.training.steps_first_epoch=2",
    "logging.every_steps=1",
]
GAME = ["env.train.id=BreakoutNoFrameskip-v4", *SHORT]


def run_folders(folder):
    return list(folder.glob("outputs/*-*-*/*-*-*"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run made by the command line, and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *GAME]) == 0
        assert Path.cwd() == folder
    (run,) = run_folders(folder)
    return run


@pytest.fixture(scope="module")
def denoiser_only(trained, tmp_path_factory):
    """A run without a reward/end model, on the episodes of the other run."""
    folder = tmp_path_factory.mktemp("denoiser_only")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = f"static_dataset.path={trained / 'dataset'}"
        assert main(["train", *GAME, data, "training.parts=[denoiser]"]) == 0
    (run,) = run_folders(folder)
    return run


def play(**kwargs):
    env = gymnasium.make(device="cpu", **kwargs)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    for _ in range(3):
        obs, reward, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs) and reward in (-1, 0, 1)
    env.close()


@pytest.mark.parametrize(
    ("given", "parts"),
    [("denoiser", ["denoiser"]), ("[denoiser,rew_end_model]", 2), ("denoiser,rew_end_model", 2)],
)
def test_lists_without_brackets_and_integers_with_exponents(given, parts):
    """Brackets have a meaning in zsh."""
    config = parse(["game=Breakout", f"training.parts={given}", "training.num_epochs=1e3"])
    assert config.training.parts == ["denoiser", "rew_end_model"][: parts if isinstance(parts, int) else 1]
    assert config.training.num_epochs == 1000


def test_train_leaves_a_run_and_nothing_else(trained):
    assert [path.name for path in trained.parents[2].iterdir()] == ["outputs"]
    for name in (
        "config/trainer.yaml",
        "config/world.json",
        "config/source.txt",
        "contexts.safetensors",
        "metrics.jsonl",
        "checkpoints/state.pt",
        "checkpoints/agent_versions/agent_epoch_00001.pt",
    ):
        assert (trained / name).is_file()
    train, test = (EpisodeDataset(trained / "dataset" / split) for split in ("train", "test"))
    train.check()
    assert (train.num_steps, test.num_steps) == (900, 300), "800 of the players, 100 of the policy"
    description = WorldDescription.load(trained / "config" / "world.json")
    assert description.game == "Breakout"
    assert description.action_meanings == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    metrics, final = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    assert metrics["epoch"] == 1 and metrics["denoiser/num_steps"] == 3
    assert metrics["collect/dataset_steps"] == 900 and metrics["actor_critic/num_steps"] == 2
    assert final["epoch"] == 1 and final["final/num_episodes"] == 2


def test_tensorboard_was_told_of_steps_and_of_test_games(trained):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def curves(series):
        events = accumulators.EventAccumulator(str(trained / "tensorboard" / series))
        events.Reload()
        names = events.Tags()["scalars"]
        return {name.removeprefix(f"{series}/"): events.Scalars(name) for name in names}

    denoiser, rew_end, games = (curves(x) for x in ("steps/denoiser", "steps/rew_end_model", "episodes/test"))
    assert denoiser.keys() == {"loss", "grad_norm", "lr"}
    assert [point.step for point in denoiser["loss"]] == [1, 2, 3]
    assert rew_end.keys() == {"loss", "loss_rew", "loss_end", "grad_norm", "lr"}
    metrics, final = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    losses = [point.value for point in denoiser["loss"]]
    assert sum(losses) / 3 == pytest.approx(metrics["denoiser/loss"])
    assert [point.step for point in games["return"]] == [0, 1]
    assert sum(point.value for point in games["return"]) / 2 == pytest.approx(final["final/return"])
    assert sum(point.value for point in games["length"]) / 2 == pytest.approx(final["final/length"])


def test_a_run_can_be_played(trained):
    play(id="DiamondBreakout-v0", checkpoint=str(trained))


def test_a_run_can_be_registered(trained):
    diamond_gym.register_world_model("MyBreakout-v0", trained)
    try:
        play(id="MyBreakout-v0")
    finally:
        del gymnasium.registry["MyBreakout-v0"]


def test_resume_of_a_finished_run_says_so(trained, capsys):
    assert main(["resume", f"run={trained}"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_resume_of_a_published_run_says_what_to_do_instead(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "a run"
    for name in ("checkpoints", "dataset"):
        shutil.copytree(trained / name, run / name)
    (run / "config").mkdir()
    (run / "config" / "trainer.yaml").write_text("env: {train: {id: BreakoutNoFrameskip-v4}}")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert main(["resume", f"run={run}"]) == 1
    errors = capsys.readouterr().err
    assert "is a run of the published trainer" in errors and errors.count("\n") == 1
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}

    command, _, data = errors.partition("python -m trainers.diamond ")[2].partition("; with ")
    arguments = [*shlex.split(command), shlex.split(data.partition(" it learns")[0])[0]]
    assert arguments[:2] == ["train", "game=Breakout"]
    assert main([*arguments, *SHORT]) == 0
    (new,) = run_folders(tmp_path)
    theirs, ours = (diamond_gym.checkpoints.load_agent(folder) for folder in (run, new))
    for name, weights in ours.rew_end_model.state_dict().items():
        start = theirs.rew_end_model.state_dict()[name]
        assert (weights - start).abs().max() < 0.01, "three steps from that run's weights"


def test_export(trained, tmp_path, capsys):
    out = tmp_path / "weights" / "Breakout"
    assert main(["export", f"run={trained}", f"out={out}", "num_contexts=8"]) == 0
    assert "MB in all" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["contexts.safetensors", "model.safetensors"]
    assert [path.name for path in out.parent.iterdir()] == ["Breakout"]
    assert len(ContextBank.load(out / "contexts.safetensors")) == 8
    weights, metadata = read_tensors(out / "model.safetensors")
    assert str(weights["denoiser.inner_model.conv_in.weight"].dtype) == "torch.float16"
    training = WorldDescription.from_json(metadata["diamond_gym.world"], "test").training
    assert training is not None
    assert training["denoiser"]["steps"] == 3 and training["denoiser"]["data"]["steps"] == 900
    assert training["denoiser"]["command"].startswith(
        "python -m trainers.diamond train env.train.id=Breakout"
    )
    play(id="DiamondBreakout-v0", checkpoint=str(out))


def test_export_of_a_denoiser_and_anothers_reward_end_model(trained, denoiser_only, tmp_path, capsys):
    arguments = [
        "export",
        f"run={denoiser_only}",
        f"out={tmp_path / 'out'}",
        "num_contexts=2",
        "dtype=float32",
    ]
    assert main(arguments) == 2
    assert "has not trained its rew_end_model: give rew_end_model_run=PATH" in capsys.readouterr().err
    assert main([*arguments, f"rew_end_model_run={trained}"]) == 0
    play(id="DiamondBreakout-v0", checkpoint=str(tmp_path / "out"))
    weights, _ = read_tensors(tmp_path / "out" / "model.safetensors")
    for part, run in (("denoiser", denoiser_only), ("rew_end_model", trained)):
        theirs = diamond_gym.checkpoints.load_agent(run).state_dict()
        ours = {name: value for name, value in weights.items() if name.startswith(f"{part}.")}
        assert ours and all(value.equal(theirs[name]) for name, value in ours.items())


def test_export_writes_nothing_that_is_too_large(trained, tmp_path, capsys):
    assert main(["export", f"run={trained}", f"out={tmp_path / 'out'}", "max_mb=0.01"]) == 2
    assert "more than max_mb=0.01" in capsys.readouterr().err
    average._check_size({"model.safetensors": 10**9}, None)  # worlds as large as the published ones
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("evaluates", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_finished_run_writes_its_averaged_world(evaluates, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(average, "HORIZON", 3)
    monkeypatch.setattr(average, "STEPS", (1, 3))
    monkeypatch.setattr(average, "NUM_STARTS", 8)
    export = ["export.should=true", "export.average=true", "export.num_contexts=5"]
    parts = ["training.parts=[denoiser,rew_end_model]", "training.num_epochs=3", "evaluation.should=false"]
    kept = ["checkpointing.save_agent_every=1", "checkpointing.num_to_keep=null"]
    data = f"static_dataset.path={trained / 'dataset'}"
    assert main(["train", *GAME, data, *parts, *kept, *export, f"export.evaluate={evaluates}".lower()]) == 0
    errors = capsys.readouterr().err
    assert [errors.count(f"average of the last {count} snapshots") for count in (1, 2, 3)] == [1, 1, 1]
    (run,) = run_folders(tmp_path)
    world = load_world("Breakout", run, device="cpu")
    assert len(world.contexts) == 5 and "world/model.safetensors" in world.source
    _, metadata = read_tensors(run / "world" / "model.safetensors")
    training = WorldDescription.from_json(metadata["diamond_gym.world"], "test").training
    assert training is not None and training["denoiser"]["averaged_snapshots"] in (1, 2, 3)
    assert (run / "world" / "README.md").is_file() == evaluates
    play(id="DiamondBreakout-v0", checkpoint=str(run))


def test_an_average_is_that_of_the_last_snapshots(tmp_path):
    files = []
    for i, value in enumerate((8.0, 2.0, 4.0)):
        files.append(tmp_path / f"{i}.pt")
        torch.save({"denoiser.x": torch.full((2,), value), "rew_end_model.x": torch.ones(1)}, files[-1])
    found = {count: weights for count, weights in average.averages(files, "denoiser.")}
    assert {count: weights["x"].tolist() for count, weights in found.items()} == {
        1: [4.0, 4.0],
        2: [3.0, 3.0],
        3: pytest.approx([14 / 3] * 2),
    }
    assert all(set(weights) == {"x"} for weights in found.values())


def test_a_disk_too_small_for_the_data_is_found_before_anything_is_played(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    steps = "collection.train.players=[{name:random,num_steps:1000000000000}]"
    assert main(["train", *GAME, "training.parts=[denoiser,rew_end_model]", steps]) == 1
    assert "1000000000300 steps of play need 12352000.0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["export.should=true", "training.model_free=true"], "model_free=true has none"),
        (["export.should=true", "export.num_contexts=20000"], "20,000 contexts of frames (4, 64, 64, 3)"),
        (["export.dtype=int4"], "accepted are float16, float32"),
        (["export.max_mb=0"], "export.max_mb must be above 0"),
    ],
)
def test_an_export_that_cannot_be_is_refused(wrong, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *GAME, *wrong]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_of_train_says_what_every_key_is_for():
    assert not [name for name, key in cli.keys(TrainerConfig).items() if not key.help]


def test_a_list_of_one_needs_no_brackets():
    assert parse(["game=Pong", "training.parts=denoiser"]).training.parts == ["denoiser"]


@pytest.mark.parametrize("name", ["a${game}b", "a${oc.env:HOME}", "it's [a,b]", "D:\\data\\"])
def test_paths_are_literal(name, tmp_path):
    config = parse([f"static_dataset.path=/{name}", "game=Pong"])
    assert config.static_dataset.path == f"/{name}"
    (tmp_path / "mine.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "mine.yaml") == config
    assert parse([f"config={tmp_path / 'mine.yaml'}"]) == config


def test_home_in_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = parse(["game=Pong", "initialization.path_to_ckpt=~/run"])
    assert config.initialization.path_to_ckpt == "/home/me/run"


def test_an_edited_configuration(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(to_yaml(parse(["game=Pong", "preset=smoke"])).replace("num_epochs: 3", "num_epochs: 7"))
    config = parse([f"config={file}", "denoiser.optimizer.lr=1e-3", "collection.train.players.0.noise=0.5"])
    expected = parse(["game=Pong", "preset=smoke", "training.num_epochs=7", "denoiser.optimizer.lr=1e-3"])
    expected.collection.train.players[0].noise = 0.5
    assert config == expected
    with pytest.raises(InvalidInputError, match="give one of config and preset"):
        parse([f"config={file}", "preset=smoke"])


def test_an_edited_configuration_looks_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    file = tmp_path / "my.yaml"
    file.write_text("game: Pong\nwandb: {notes: '${oc.env:SECRET}'}\n")
    assert parse([f"config={file}"]).wandb.notes == "${oc.env:SECRET}"


@pytest.mark.parametrize("key", ["out", "hydra.run.dir"])
def test_the_run_folder_is_chosen(key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = [*GAME, "training.parts=[denoiser]", "denoiser.training.steps_first_epoch=1"]
    assert main(["train", *short, f"{key}=runs/first"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert (tmp_path / "runs" / "first" / "config" / "trainer.yaml").is_file()
    assert main(["train", *short, f"{key}=runs/first"]) == 1
    assert "runs/first is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["train"], ["resume"], ["export"]], ids=str)
def test_help_tells_the_keys(command, capsys):
    assert main([*command, "--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: python -m trainers.diamond")
    assert max(map(len, output.splitlines())) <= 120


def test_help_of_train_shows_a_presets_values(capsys):
    assert main(["train", "preset=small", "--help"]) == 0
    output = capsys.readouterr().out
    assert "  agent.denoiser.inner_model.channels=[32,64,64]\n" in output
    assert "  training.num_threads=null\n" in output
    assert "CPU threads; null leaves the choice to PyTorch." in output


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["trian"], 2, "unknown command trian"),
        (["train"], 2, "such as game=Breakout"),
        (["train", "game"], 2, "game: arguments are written key=value"),
        (["train", "game=Brekout"], 2, "unknown game 'Brekout': did you mean Breakout?"),
        (["train", "env.train.id=PingNoFrameskip-v4"], 2, "did you mean Pong"),
        (["train", "preset=smal"], 2, "preset=smal: did you mean small?"),
        (["train", "denoiser.trainig.batch_size=3"], 2, "did you mean denoiser.training.batch_size?"),
        (["train", "+extra=3"], 2, "unknown key +extra"),
        (
            ["train", "training.cache_in_ram=true"],
            2,
            "has no meaning here: episodes are always",
        ),
        (["train", "common.devices=[0,1]"], 2, "common.devices=[0,1]: accepted are all, cpu, or the number"),
        (["train", "wandb.mode=of"], 2, "wandb.mode='of': accepted are disabled, online, offline"),
        (["train", "training.autocast=float16"], 2, "accepted are auto, bfloat16, null"),
        (["train", "game=Pong", "training.parts=[actor_critic]"], 2, "denoiser and rew_end_model would stay"),
        (["train", "static_dataset.path=x", "training.model_free=true"], 2, "no game to play is given"),
        (["train", "batch_size=3"], 2, "did you mean denoiser.training.batch_size or rew_end_model."),
        (
            ["train", "collection.train.players.0.steps=3"],
            2,
            "did you mean collection.train.players.0.num_steps",
        ),
        (
            ["train", "denoiser.training.batch_size=many"],
            2,
            "denoiser.training.batch_size=many: Value 'many'",
        ),
        (["train", "denoiser.training.batch_size=1.5"], 2, "denoiser.training.batch_size=1.5: Value '1.5'"),
        (
            ["train", "denoiser.training.batch_size=1,2"],
            2,
            "denoiser.training.batch_size=1,2: Ambiguous value",
        ),
        (
            ["train", "game=Pong", "rew_end_model.training.batch_size=0"],
            2,
            "rew_end_model.training.batch_size=0:",
        ),
        (["train", "training=3"], 2, "training=3: Invalid type"),
        (["train", "training.parts=[denoiser,policy]"], 2, "accepted are denoiser, rew_end_model"),
        (["train", "training.parts=denoisr"], 2, "accepted are denoiser, rew_end_model"),
        (["train", "denoiser.training.lr_schedule=linear"], 2, "accepted are constant, cosine"),
        (["train", "collection.train.players=[{name:me}]"], 2, "accepted are auto, random, scripted"),
        (
            ["train", "game=Alien", "collection.train.players=[{name:scripted}]"],
            2,
            "no scripted player for 'Alien'",
        ),
        (
            ["train", "game=Pong", "agent.denoiser.inner_model.patch_size=3"],
            2,
            "agent.* do not work",
        ),
        (["train", "game=Pong", "agent.rew_end_model.img_size=32"], 2, "img_size=32: real games have"),
        (
            ["train", "denoiser.optimizer.lr=0", "training.num_epochs=0"],
            2,
            "denoiser.optimizer.lr=0: lr must",
        ),
        (["train", "common.seed=-1"], 2, "common.seed must be at least 0"),
        (["train", "game=Breakout", "common.device=tpu"], 1, "common.device=tpu is not available"),
        (["train", "game=Breakout", "static_dataset.path=nowhere"], 1, "there is no folder"),
        (["train", "game=Breakout", "initialization.path_to_ckpt=nowhere"], 1, "there is no file or folder"),
        (["train", "game=Pong", "out=a", "hydra.run.dir=b"], 2, "choose the run folder: give one"),
        (
            ["train", "config=nowhere.yaml"],
            1,
            "nowhere.yaml cannot be read as a configuration",
        ),
        (["resume"], 2, "missing: run=..."),
        (["resume", "rnu=x"], 2, "unknown key rnu: did you mean run?"),
        (["resume", "run=nowhere"], 1, "nowhere is not a run folder"),
        (["export", "run=nowhere"], 2, "missing: out=..."),
        (["export", "run=nowhere", "out=x"], 1, "nowhere is not a run folder"),
        (
            ["export", "run=nowhere", "out=x", "num_contexts=few"],
            2,
            "must be an integer, got 'few'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_are_one_line_and_leave_nothing_behind(
    arguments, code, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    output, errors = capsys.readouterr()
    assert message in errors
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert not output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder, message", [("mine", "no dataset at"), ("mine/train", "there is no folder")])
def test_a_folder_without_episodes_is_refused(folder, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "train").mkdir(parents=True)
    assert main(["train", *GAME, f"static_dataset.path={folder}"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_a_run_folder_that_cannot_be_made_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").write_text("a file is in the way")
    assert main(["train", *GAME]) == 1
    assert "error: cannot make the run folder" in capsys.readouterr().err


def test_export_of_a_run_without_weights_is_an_error(trained, tmp_path, capsys):
    (tmp_path / "config").mkdir()
    for name in ("trainer.yaml", "world.json"):
        (tmp_path / "config" / name).write_bytes((trained / "config" / name).read_bytes())
    assert main(["export", f"run={tmp_path}", f"out={tmp_path / 'out'}"]) == 1
    assert "holds no weights yet" in capsys.readouterr().err
