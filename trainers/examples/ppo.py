"""PPO in one file, in the manner of CleanRL: an agent learns in imagination, on the world model's own device.

    python -m trainers.examples.ppo env_id=DiamondBreakout-v0 total_timesteps=500000

Frames, actions and rewards stay tensors (`output="torch"`): nothing is copied to NumPy on the way. In the end
the agent plays whole games of the real one. The same command resumes a training that was stopped. PPO is
that of Schulman et al. (2017) with the details of Huang et al. (2022), "The 37 Implementation Details of
Proximal Policy Optimization".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Categorical

import diamond_gym
from diamond_gym import cli, signals
from diamond_gym.backends.memory import MEMORY_IS_KEPT, keep_freed_memory
from diamond_gym.backends.names import BACKENDS
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate.score import Score, real_game, real_scores
from diamond_gym.players.player import FrameStackPlayer
from diamond_gym.progress import Bar
from diamond_gym.world.pixels import to_float
from trainers.checkpoint import Checkpoint

gym.register_envs(diamond_gym)


@dataclass
class Settings:
    """What is trained.

    Raises:
        InvalidInputError: A number is out of range.
    """

    env_id: str = option("DiamondBreakout-v0", "the imagined game")
    checkpoint: str = option("auto", "the world model, as in gymnasium.make", is_path=True)
    contexts: str | None = option(
        None, "where imagined games start: a file of contexts, or recorded episodes", is_path=True
    )
    num_denoising_steps: int | None = option(
        None, "passes per frame, instead of the checkpoint's own", least=1
    )
    device: str = option("auto", "where the networks run: auto, cpu, cuda, ...")
    backend: str = option("auto", "what runs the world model's networks", choices=BACKENDS)
    seed: int = option(0, "fixes the games and the agent", least=0)
    total_timesteps: int = option(500_000, "steps of all games together", least=1)
    num_envs: int = option(32, "games at once", least=1)
    num_steps: int = option(64, "steps of each game between updates", least=1)
    horizon: int = option(50, "steps of an imagined game", least=1)
    num_frames: int = option(4, "frames that the agent sees, at most 4", least=1)
    learning_rate: float = option(2.5e-4, "of Adam", above=0)
    num_epochs: int = option(4, "passes over the steps of a rollout", least=1)
    minibatch_size: int = option(256, "steps in a minibatch", least=1)
    gamma: float = option(0.985, "discount of a step")
    gae_lambda: float = option(0.95, "lambda of the advantage estimates, from 0 to 1")
    clip: float = option(0.1, "PPO's bound on the change of a probability")
    ent_coef: float = option(0.01, "weight of the entropy bonus")
    num_games: int = option(30, "real games to score the agent by, or 0", least=0)
    max_game_steps: int = option(5_000, "steps after which these are cut short", least=1)
    out: Path = option(Path("outputs", "ppo"), "folder for agent.pt")

    def __post_init__(self) -> None:
        cli.check(self)
        if self.num_frames > 4:
            raise InvalidInputError(f"num_frames must be at most 4, got {self.num_frames}")

    def world(self) -> dict[str, Any]:
        """Keyword arguments that choose the world and its device."""
        names = ("checkpoint", "num_denoising_steps", "device", "backend", "contexts")
        return {name: getattr(self, name) for name in names}

    def kept(self) -> dict[str, Any]:
        """Settings that must stay the same when a training is resumed."""
        free = ("device", "total_timesteps", "num_games", "max_game_steps", "out")
        return {name: value for name, value in asdict(self).items() if name not in free}

    def real_games(self) -> dict[str, Any]:
        """Keyword arguments of `real_scores` that choose the real games."""
        return {"num_games": self.num_games, "seed": self.seed, "max_steps": self.max_game_steps}


def layer_init(layer: nn.Module, std: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, no bias."""
    nn.init.orthogonal_(layer.weight, std)  # pyright: ignore[reportArgumentType]
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer


class Agent(nn.Module):
    """The network of the Nature paper, with a head for the policy and one for the value."""

    def __init__(self, num_frames: int, num_actions: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            layer_init(nn.Conv2d(3 * num_frames, 32, 8, stride=4)),
            nn.ReLU(),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(),
            layer_init(nn.Conv2d(64, 64, 3)),
            nn.ReLU(),
            nn.Flatten(),
            layer_init(nn.Linear(64 * 4 * 4, 512)),
            nn.ReLU(),
        )
        self.actor = layer_init(nn.Linear(512, num_actions), std=0.01)
        self.critic = layer_init(nn.Linear(512, 1), std=1)

    def forward(self, frames: Tensor) -> tuple[Categorical, Tensor]:
        """Policy and value (b,) at stacks of frames, uint8 (b, n, 3, 64, 64)."""
        hidden = self.network(to_float(frames).flatten(1, 2))
        return Categorical(logits=self.actor(hidden)), self.critic(hidden).squeeze(1)


class Games:
    """Imagined games with stacked frames; a new game's stack begins with its context."""

    def __init__(self, args: Settings) -> None:
        self.envs: Any = gym.make_vec(
            args.env_id,
            num_envs=args.num_envs,
            max_episode_steps=args.horizon,
            autoreset_mode="SAME_STEP",
            output="torch",
            **args.world(),
        )
        self.num_frames, self.num_actions = args.num_frames, int(self.envs.single_action_space.n)
        _, infos = self.envs.reset(seed=args.seed)
        known = infos["context"]["obs"].shape[1]
        if known < self.num_frames:
            raise InvalidInputError(f"num_frames={self.num_frames}: this world's contexts have {known}")
        self.stack = self._contexts(infos)

    def step(self, act: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step all games; return rewards, ends, truncations and the next stacks before any reset."""
        obs, rew, end, trunc, infos = self.envs.step(act)
        over = end | trunc
        last = torch.where(over[:, None, None, None], infos["final_obs"], obs) if over.any() else obs
        led_to = torch.cat([self.stack[:, 1:], last.permute(0, 3, 1, 2)[:, None]], dim=1)
        self.stack = led_to
        if over.any():
            self.stack = torch.where(over[:, None, None, None, None], self._contexts(infos), led_to)
        return rew, end, trunc, led_to

    def _contexts(self, infos: dict[str, Any]) -> Tensor:
        return infos["context"]["obs"][:, -self.num_frames :].permute(0, 1, 4, 2, 3)


@dataclass
class Rollout:
    """t steps of b games; where a game was cut short, `rew` includes the discounted value of what follows."""

    frames: Tensor
    act: Tensor
    log_prob: Tensor
    rew: Tensor
    over: Tensor
    val: Tensor
    last_val: Tensor

    def advantages(self, gamma: float, gae_lambda: float) -> Tensor:
        """Generalised advantage estimates (Schulman et al. 2016)."""
        advantages, next_val, running = torch.zeros_like(self.val), self.last_val, 0.0
        for t in reversed(range(len(self.rew))):
            unfinished = ~self.over[t]
            delta = self.rew[t] + gamma * next_val * unfinished - self.val[t]
            running = delta + gamma * gae_lambda * unfinished * running
            advantages[t], next_val = running, self.val[t]
        return advantages


@torch.no_grad()
def play(agent: Agent, games: Games, num_steps: int, gamma: float) -> Rollout:
    """Let the agent play a rollout."""
    steps: list[tuple[Tensor, ...]] = []
    for _ in range(num_steps):
        frames = games.stack
        policy, val = agent(frames)
        act = policy.sample()
        rew, end, trunc, led_to = games.step(act)
        cut_short = trunc & ~end
        if cut_short.any():
            rew = rew + gamma * agent(led_to)[1] * cut_short
        steps.append((frames, act, policy.log_prob(act), rew, end | trunc, val))
    return Rollout(*(torch.stack(x) for x in zip(*steps, strict=True)), last_val=agent(games.stack)[1])


def learn(agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, args: Settings) -> None:
    """Update the agent in a few epochs of minibatches."""
    advantages = rollout.advantages(args.gamma, args.gae_lambda).flatten()
    returns = advantages + rollout.val.flatten()
    frames, act, log_prob = (x.flatten(0, 1) for x in (rollout.frames, rollout.act, rollout.log_prob))
    for _ in range(args.num_epochs):
        for index in torch.randperm(len(act), device=act.device).split(args.minibatch_size):
            policy, val = agent(frames[index])
            ratio = (policy.log_prob(act[index]) - log_prob[index]).exp()
            advantage = advantages[index]
            advantage = (advantage - advantage.mean()) / (advantage.std(unbiased=False) + 1e-8)
            clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
            loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
            loss = loss + 0.5 * (val - returns[index]).square().mean()
            loss = loss - args.ent_coef * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


@torch.no_grad()
def score(agent: Agent, game: str, args: Settings) -> list[float]:
    """Scores of whole real games."""
    device = agent.actor.weight.device  # pyright: ignore[reportAttributeAccessIssue]

    def policy(stack: NDArray[np.uint8]) -> int:
        return int(agent(torch.from_numpy(stack)[None].to(device))[0].sample())  # pyright: ignore

    return real_scores(FrameStackPlayer(policy, args.num_frames), game, **args.real_games())


def train(args: Settings) -> Agent:
    """Train an agent, or continue one that was stopped, and write its weights as agent.pt.

    The state is saved as checkpoint.pt every two minutes, on Ctrl-C and other signals, and at the end. A
    resumed training begins with new games.
    """
    torch.manual_seed(args.seed)
    games = Games(args)
    agent = Agent(args.num_frames, games.num_actions).to(games.stack.device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    num_updates = max(1, args.total_timesteps // (args.num_envs * args.num_steps))
    checkpoint = Checkpoint(args.out, {"agent": agent, "optimizer": optimizer}, args.kept())
    first = checkpoint.load()
    torch.manual_seed(args.seed + first)
    try:
        with signals.deferred() as requests, Bar(total=num_updates, initial=first, unit="update") as bar:
            for update in range(first, num_updates):
                optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - update / num_updates)
                rollout = play(agent, games, args.num_steps, args.gamma)
                learn(agent, optimizer, rollout, args)
                bar.set_postfix_str(f"value {rollout.val.mean():.2f}", refresh=False)
                bar.update()
                checkpoint.save_if_due(update + 1, requests, is_last=update + 1 == num_updates)
                if requests.stop:
                    break
    finally:
        games.envs.close()
    print(f"wrote {args.out / 'agent.pt'}")
    return agent


def run(settings: Settings) -> None:
    """Train and score an agent."""
    if keep_freed_memory():
        print(MEMORY_IS_KEPT)
    game = real_game(settings.env_id)
    agent = train(settings)
    scores = score(agent, game, settings) if game else []
    if scores:
        print(Score.of("agent", scores).in_words())


COMMAND = cli.Command("python -m trainers.examples.ppo", __doc__ or "", Settings, run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and score an agent; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
