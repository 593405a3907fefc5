"""The command lines of the single-file trainers: what all of them ask, and what those with PPO do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from diamond_gym.files import write_torch
from diamond_gym.options import count, positive_float, positive_int


def new_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser that knows the arguments of `world_of`, and `--seed`.

    Args:
        name: The module below `trainers`.
        description: What `--help` says.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m trainers.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", default="auto", help="the world model, as in gymnasium.make")
    parser.add_argument(
        "--num-denoising-steps", type=positive_int, help="passes per frame, instead of the checkpoint's own"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def world_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `gymnasium.make_vec` that say which world is imagined, and where."""
    names = ("checkpoint", "num_denoising_steps", "device", "contexts")
    return {name: getattr(args, name) for name in names if name in args}


def games_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `real_scores` that say which real games score an agent."""
    return {"num_games": args.num_games, "seed": args.seed, "max_steps": args.max_game_steps}


def save_policy(policy: nn.Module, folder: Path) -> None:
    """Writes weights as agent.pt, and says so."""
    write_torch(folder / "agent.pt", policy.state_dict())
    print(f"wrote {folder / 'agent.pt'}")


def new_ppo_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """As `new_parser`, with the games, PPO's numbers, the real games that score it, and `--out`."""
    parser = new_parser(name, description)
    parser.add_argument("--env-id", default="DiamondBreakout-v0")
    parser.add_argument(
        "--contexts", help="where imagined games start: a bank, or recorded episodes (trainers.contexts)"
    )
    parser.add_argument("--num-envs", type=positive_int, default=32)
    parser.add_argument(
        "--num-steps", type=positive_int, default=64, help="steps of each game between updates"
    )
    parser.add_argument("--horizon", type=positive_int, default=50, help="steps of an imagined game")
    parser.add_argument("--learning-rate", type=positive_float, default=2.5e-4)
    parser.add_argument("--num-epochs", type=positive_int, default=4)
    parser.add_argument("--minibatch-size", type=positive_int, default=256)
    parser.add_argument("--gamma", type=float, default=0.985)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--clip", type=float, default=0.1)
    parser.add_argument("--ent-coef", type=float, default=0.01)
    parser.add_argument("--num-games", type=count, default=30, help="real games to score the agent by, or 0")
    parser.add_argument(
        "--max-game-steps", type=positive_int, default=5_000, help="steps after which these are cut short"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs") / name, help="folder for agent.pt")
    return parser
