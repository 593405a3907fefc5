"""Publishing: the folder, the card, the commit that a Hub on loopback receives, and every refusal."""

import json

import gymnasium
import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import ModelCard

from diamond_gym.checkpoints import WorldDescription, hub, load_world
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.errors import CheckpointNotFoundError, InvalidInputError
from diamond_gym.world.models import Agent
from tests import hub_server
from tests.recordings import save_dataset
from tests.worlds import ACTION_MEANINGS
from trainers.diamond.cli import main
from trainers.diamond.config import from_yaml, parse, to_yaml
from trainers.diamond.publish import PublishOptions, push_to_hub

FILES = ["README.md", "config.json", "contexts.safetensors", "model.safetensors", "trainer.yaml"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder like the trainer's, with untrained networks."""
    folder = tmp_path_factory.mktemp("run")
    data = save_dataset(folder / "somewhere" / "my_data" / "train", 4).parent
    config = parse(
        [
            "game=Breakout",
            "preset=smoke",
            "training.parts=[denoiser,rew_end_model]",
            f"static_dataset.path={data}",
        ]
    )
    description = WorldDescription(
        agent=config.agent.with_num_actions(4),
        sampler=config.world_model_env.diffusion_sampler,
        game="Breakout",
        action_meanings=ACTION_MEANINGS,
        training={"command": "python -m trainers.diamond train game=Breakout"},
    )
    description.save(folder / "config" / "world.json")
    (folder / "config" / "trainer.yaml").write_text(to_yaml(config))
    file = folder / "checkpoints" / "agent_versions" / "agent_epoch_00003.pt"
    file.parent.mkdir(parents=True)
    torch.manual_seed(0)
    assert description.agent is not None
    torch.save(Agent(description.agent).state_dict(), file)
    return folder


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub on loopback, where this process is logged in."""
    with hub_server.serving() as server:
        hub_server.point_to(server.address, tmp_path / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield server


@pytest.fixture
def push(run):
    """Run the command, with few contexts by default."""

    def command(*arguments):
        few = [] if any(a.startswith("num_contexts=") for a in arguments) else ["num_contexts=6"]
        return main(["push-to-hub", f"run={run}", *few, *arguments])

    return command


def measured(step, **numbers):
    kinds = [f"{name}{kind}" for name in ("psnr", "ssim") for kind in ("", "_repeat", "_mean")]
    names = [*kinds, "drift", "ball_within", "ball_error", "ball_present"]
    return {"step": step, **dict.fromkeys(names), **numbers}


def fidelity(folder, **changes):
    """Write a file like that of an evaluation."""
    result = {
        "settings": {
            "game": "Breakout",
            "policy": "scripted",
            "episodes": 3,
            "starts": 9,
            "max_episode_steps": 1000,
            "horizon": 2,
            "seed": 0,
            "num_denoising_steps": None,
        },
        "player": "scripted",
        "num_starts": 9,
        "num_episodes": 3,
        "num_real_steps": 321,
        "steps": [
            measured(1, psnr=41.25, psnr_repeat=38.0, ball_within=0.875, ball_error=0.5, ball_present=1.0),
            measured(2, psnr_repeat=37.0),
        ],
        "reward": {"precision": 0.25, "recall": 0.75, "f1": 0.5},
        "end": {"precision": None, "recall": 0.0, "f1": None},
        "returns": {"real_mean": 0.25, "imagined_mean": 0.5, "correlation": None},
        "actions": {"correlation": 0.75, "gain": 1.5, "told_apart": 0.625, "starts": 4},
        "closed_loop": {
            "starts": 3,
            "horizon": 4,
            "real": {"frames": 12, "won": 375.0, "lost": 0.0, "ends": 0.0, "at_paddle": {}},
            "imagined": {"frames": 10, "won": 187.5, "lost": 0.0, "ends": 12.5, "at_paddle": {}},
        },
        "random_play": {
            "starts": 3,
            "horizon": 4,
            "real": {"frames": 9, "won": 125.0, "lost": 0.0, "ends": 250.0, "at_paddle": {}},
            "imagined": {"frames": 8, "won": 62.5, "lost": 0.0, "ends": None, "at_paddle": {}},
        },
        "spread": [0.0, 0.125],
        "single_steps": {"paddle": {"right": 0.75, "frames": 4}, "walls": {"right": None, "frames": 0}},
        "bounces": {
            "paddle": {"right": 0.5, "there": 0.75, "starts": 4},
            "walls": {"right": None, "there": None, "starts": 0},
        },
        "overlooked_ends": {"share": 0.25, "starts": 4},
        **changes,
    }
    path = folder / "fidelity.json"
    path.write_text(json.dumps(result))
    return path


def test_a_dry_run_writes_the_folder_and_asks_nobody(push, server, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    out = tmp_path / "world"
    assert push("repo_id=me/breakout", "--dry-run", f"out={out}") == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert not server.requests
    world = load_world("Breakout", out, device="cpu", backend="eager")
    assert len(world.contexts) == 6 and world.action_meanings == ACTION_MEANINGS
    assert WorldDescription.load(out / "config.json").game == "Breakout"
    config = (out / "trainer.yaml").read_text()
    assert "path: my_data\n" in config and "somewhere" not in config
    assert from_yaml(out / "trainer.yaml").game == "Breakout"


def test_the_card(push, tmp_path):
    out = tmp_path / "world"
    path = fidelity(tmp_path)
    assert (
        push("repo_id=me/breakout", "dry_run=true", f"out={out}", f"fidelity={path}", "license=cc-by-4.0")
        == 0
    )
    card = ModelCard((out / "README.md").read_text())
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "diamond-gym"
    assert card.data.pipeline_tag == "reinforcement-learning"
    assert {"world-model", "atari", "Breakout"} <= set(card.data.tags or [])
    for text in (
        'gymnasium.make("DiamondBreakout-v0", checkpoint="hub:me/breakout")',
        "`python -m diamond_gym.export_onnx checkpoint=hub:me/breakout out=world_onnx`",
        "| 1 | 41.2 | 38.0 | - |",
        "| 1 | 88 % | 100 % | 0.50 |",
        "reward F1 0.500 (precision 0.250, recall 0.750), end F1 - (-, 0.000)",
        "62 % of pairs of actions are told apart",
        "game=Breakout episodes=3 starts=9 horizon=2 policy=scripted checkpoint=hub:me/breakout",
        "python -m trainers.diamond train game=Breakout\n",
        '"static_dataset": "my_data"',
        "Frames were compared up to step 2, play up to step 4",
    ):
        assert text in card.text


def test_the_card_says_that_nothing_was_measured(push, tmp_path):
    assert push("repo_id=me/breakout", "dry_run=true", f"out={tmp_path / 'world'}") == 0
    card = (tmp_path / "world" / "README.md").read_text()
    assert "Not measured; `python -m diamond_gym.evaluate game=Breakout checkpoint=hub:me/breakout`" in card


def test_published_and_played_by_somebody_else(push, server, tmp_path, monkeypatch, capsys):
    assert push("repo_id=me/breakout", f"out={tmp_path / 'kept'}") == 0
    output = capsys.readouterr().out
    assert f"published: {server.address}/me/breakout" in output and 'checkpoint="hub:me/breakout"' in output
    assert len(server.commits["me/breakout"]) == 2  # the empty one, and all files at once
    assert not server.private["me/breakout"]
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert server.files("me/breakout") == kept and sorted(kept) == FILES

    monkeypatch.delenv("HF_TOKEN")
    env = gymnasium.make("DiamondBreakout-v0", checkpoint="hub:me/breakout", device="cpu")
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    env.step(1)
    env.close()


def test_publishing_again_makes_another_commit(push, server):
    assert push("repo_id=me/breakout") == 0
    assert push("repo_id=me/breakout", "dtype=float32") == 0
    sizes = [len(files.get("model.safetensors", b"")) for files in server.commits["me/breakout"]]
    assert len(sizes) == 3 and sizes[2] > 1.5 * sizes[1]


def test_private_means_private(push, server, capsys):
    assert push("repo_id=me/secret", "private=true") == 0
    assert server.private["me/secret"] and sorted(server.files("me/secret")) == FILES
    server.commits["me/open"], server.private["me/open"] = [{}], False
    assert push("repo_id=me/open", "private=true") == 1
    assert "me/open exists already and is public" in capsys.readouterr().err
    assert server.commits["me/open"] == [{}]


def test_nobody_logged_in(push, server, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    assert push("repo_id=me/breakout", f"out={tmp_path / 'world'}") == 1
    assert "nobody is logged in: run `hf auth login`" in capsys.readouterr().err
    assert not server.requests and not (tmp_path / "world").exists()


def test_a_token_that_is_not_accepted(push, server, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert push("repo_id=me/breakout") == 1
    errors = capsys.readouterr().err
    assert "does not accept the token" in errors and "nothing was uploaded" in errors
    assert errors.count("\n") == 1 and not server.commits


@pytest.mark.parametrize(
    "prefix, status, what, done",
    [
        ("/api/repos/create", 403, "does not let this token write to them/breakout", "nothing was uploaded"),
        ("/api/models/them/breakout/preupload", 403, "does not let this token write", "no file was uploaded"),
        ("/lfs", 403, "does not let this token write", "no file was uploaded"),
        ("/api/models/them/breakout/commit", 413, "refused (status 413)", "no file was uploaded"),
    ],
)
def test_a_hub_that_refuses(prefix, status, what, done, push, server, capsys):
    server.refuse[prefix] = status
    if prefix == "/api/repos/create":
        server.refuse["/api/models/them/breakout"] = 404
    assert push("repo_id=them/breakout") == 1
    errors = capsys.readouterr().err.splitlines()[-1]
    assert what in errors and done in errors
    assert server.commits in ({}, {"them/breakout": [{}]})


def test_a_hub_that_is_down(push, server, monkeypatch, tmp_path, capsys):
    hub_server.point_to("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert push("repo_id=me/breakout", f"out={tmp_path / 'world'}") == 1
    errors = capsys.readouterr().err
    assert "cannot be reached at http://127.0.0.1:9" in errors and errors.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "world").iterdir()) == FILES  # kept as asked for


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ([], 2, "missing: repo_id=..."),
        (["repo_id=breakout"], 2, "repo_id must be of the form USER/NAME, got 'breakout'"),
        (["repo_id=me/a/b"], 2, "repo_id must be of the form USER/NAME"),
        (["repo_id=me/a", "dry_run=true"], 2, "give out=FOLDER"),
        (["repo_id=me/a", "private=maybe"], 2, "private must be true or false, got 'maybe'"),
        (["repo_id=me/a", "license=a: b"], 2, "license must be a name such as mit"),
        (["repo_id=me/a", "out=out", "--dry-run", "num_contexts=0"], 2, "num_contexts must be at least 1"),
        (["repo_id=me/a", "out=out", "--dry-run", "dtype=int8"], 2, "dtype must be one of float16, float32"),
        (
            ["repo_id=me/a", "out=out", "--dry-run", "fidelity=no.json"],
            2,
            "no.json cannot be read as the JSON",
        ),
        (["repo_id=me/a", "out=full", "--dry-run"], 1, "out="),
        (["repo_id=me/a", "out=out", "--dry-run", "num_contexts=9999"], 1, "9999"),
    ],
)
def test_errors_are_one_line_and_leave_nothing_behind(
    arguments, code, message, push, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    assert push(*arguments) == code
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine"]


def test_fidelity_of_something_else(run, tmp_path):
    other = fidelity(
        tmp_path, settings={**json.loads(fidelity(tmp_path).read_text())["settings"], "game": "Pong"}
    )
    options = PublishOptions(
        str(run), "me/a", dry_run=True, out=str(tmp_path / "out"), fidelity=str(other), num_contexts=4
    )
    with pytest.raises(InvalidInputError, match="is of Pong, the run is of Breakout"):
        push_to_hub(options)
    other.write_text("[1, 2]")
    with pytest.raises(InvalidInputError, match="cannot be read as the JSON of an evaluation"):
        push_to_hub(options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run(tmp_path, capsys):
    arguments = [f"run={tmp_path}", "repo_id=me/a", "--dry-run", f"out={tmp_path / 'out'}"]
    assert main(["push-to-hub", *arguments]) == 1
    assert "is not a run folder" in capsys.readouterr().err


# --- loading from any repository


@pytest.fixture
def published(push, server, capsys):
    """A Hub with two commits of me/breakout, the second in float32."""
    for dtype in ("float16", "float32"):
        assert push("repo_id=me/breakout", f"dtype={dtype}") == 0
    capsys.readouterr()
    return server


def load(address):
    return load_world(None, address, device="cpu", backend="eager")


def test_revisions(published):
    assert load(f"hub:me/breakout@{hub_server.commit_id(1)}").source.split("/")[-2] == hub_server.commit_id(1)
    assert load("hub:me/breakout").source.split("/")[-2] == hub_server.commit_id(2)


def test_the_newest_commit_is_taken_and_the_cache_when_the_hub_is_down(
    push, published, tmp_path, monkeypatch
):
    first = load("hub:me/breakout").source
    assert push("repo_id=me/breakout", "num_contexts=3") == 0
    second = load("hub:me/breakout")
    assert second.source != first and len(second.contexts) == 3
    hub_server.point_to("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert load("hub:me/breakout").source == second.source
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load("hub:me/breakout").source == second.source


def test_a_repository_without_contexts(published, tmp_path):
    contexts = tmp_path / "mine.safetensors"
    contexts.write_bytes(published.files("me/breakout")["contexts.safetensors"])
    del published.files("me/breakout")["contexts.safetensors"]
    world = load_world(None, "hub:me/breakout", device="cpu", backend="eager", contexts=contexts)
    assert len(world.contexts) == len(ContextBank.load(contexts))


@pytest.mark.parametrize("address", ["hub:", "hub:breakout", "hub:me/x/y", "hub:me/x@", "hub:me/x y"])
def test_malformed_addresses(address):
    with pytest.raises(InvalidInputError, match="hub:user/name"):
        load(address)


def test_what_the_hub_does_not_have(published):
    for address, reason in {
        "hub:me/nothing": "no world model at hub:me/nothing: .*hf auth login",
        "hub:me/breakout@v9": "no world model at hub:me/breakout@v9",
    }.items():
        with pytest.raises(CheckpointNotFoundError, match=reason):
            load(address)
    del published.files("me/breakout")["model.safetensors"]
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors cannot be fetched"):
        load("hub:me/breakout")


def test_a_hub_that_is_down_and_nothing_cached(tmp_path, monkeypatch):
    hub_server.point_to("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(hub, "_TIMEOUT", 0.5)
    with pytest.raises(CheckpointNotFoundError, match="HF_HOME"):
        load("hub:me/breakout")
