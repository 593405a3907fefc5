"""Film a saved agent in the real game, beside imagination of the same steps."""

from __future__ import annotations

from pathlib import Path

from gymnasium.spaces import Discrete

from diamond_gym import demo as both_worlds
from diamond_gym import files as disk
from diamond_gym.errors import InvalidInputError
from diamond_gym.games.atari import num_actions
from diamond_gym.registration import game_name
from trainers.sb3.agents import find_agent, load_agent
from trainers.sb3.evaluation import frame_stack
from trainers.sb3.player import AgentPlayer
from trainers.sb3.settings import DemoSettings

FILM_FILE = "agent.mp4"


def demo(settings: DemoSettings) -> None:
    """Film an agent in the real game beside imagination, and print the rewards.

    Raises:
        CheckpointNotFoundError: There is no such agent.
        CheckpointError: The agent cannot be loaded.
        InvalidInputError: The agent sees other observations or has other actions.
        DiamondGymError: The world model or the folder is not usable; the subclass says how.
    """
    game, out = game_name(settings.game), Path(settings.out)
    path = find_agent(settings.agent, game)
    agent = load_agent(path, device=settings.device, trust=settings.trust)
    expected = Discrete(num_actions(game))
    if agent.action_space != expected:
        raise InvalidInputError(f"{path} was trained for {agent.action_space}, {game} has {expected}")
    player = AgentPlayer(agent, frame_stack(agent, path))
    disk.prepare_folder(out)
    moments = both_worlds.play(
        game,
        settings.checkpoint,
        player,
        settings.steps,
        settings.seed,
        num_denoising_steps=settings.num_denoising_steps,
        backend=settings.backend,
    )
    both_worlds.write_video(out / FILM_FILE, moments)
    real, imagined = (sum(moment.reward[i] for moment in moments) for i in (0, 1))
    print(f"{path.name} ({agent.num_timesteps} steps of learning) plays {len(moments)} steps of {game}")
    print(f"reward: {real:.0f} real, {imagined:.0f} imagined")
    print(f"video: {(out / FILM_FILE).resolve()}")
