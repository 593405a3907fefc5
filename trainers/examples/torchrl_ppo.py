"""TorchRL's PPO in imagined games: with its collector, its advantages and its loss.

    python -m trainers.examples.torchrl_ppo env_id=DiamondBreakout-v0 total_frames=500000

An example of a library's own loop around `diamond_gym.adapters.torchrl`; only the lines that make the
games are about world models. In the end the agent plays whole games of the real one.
The same command resumes a training that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from diamond_gym import cli, signals
from diamond_gym.backends.memory import MEMORY_IS_KEPT, keep_freed_memory
from diamond_gym.backends.names import BACKENDS
from diamond_gym.cli import option
from diamond_gym.errors import MissingDependencyError
from diamond_gym.evaluate.score import Score, real_game, real_scores
from diamond_gym.players.player import FrameStackPlayer
from diamond_gym.progress import Bar

try:
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
    from torchrl.envs import ExplorationType, TransformedEnv, set_exploration_type
    from torchrl.envs.transforms import CatFrames, Compose, RewardSum, ToTensorImage
    from torchrl.modules import ConvNet, ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE
except ImportError:
    missing = "this needs TorchRL: pip install 'diamond-gym[torchrl]'"
    if __name__ == "__main__":
        sys.exit(f"error: {missing}")
    raise MissingDependencyError(missing) from None

from diamond_gym.adapters.torchrl import DiamondTorchRLEnv
from trainers.checkpoint import Checkpoint

NUM_FRAMES = 4


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
    total_frames: int = option(500_000, "steps of all games together", least=1)
    num_envs: int = option(32, "games at once", least=1)
    num_steps: int = option(64, "steps of each game between updates", least=1)
    horizon: int = option(50, "steps of an imagined game", least=1)
    learning_rate: float = option(2.5e-4, "of Adam", above=0)
    num_epochs: int = option(4, "passes over the steps of a rollout", least=1)
    minibatch_size: int = option(256, "steps in a minibatch", least=1)
    gamma: float = option(0.985, "discount of a step")
    gae_lambda: float = option(0.95, "lambda of the advantage estimates, from 0 to 1")
    clip: float = option(0.1, "PPO's bound on the change of a probability")
    ent_coef: float = option(0.01, "weight of the entropy bonus")
    num_games: int = option(30, "real games to score the agent by, or 0", least=0)
    max_game_steps: int = option(5_000, "steps after which these are cut short", least=1)
    out: Path = option(Path("outputs", "torchrl_ppo"), "folder for agent.pt")

    def __post_init__(self) -> None:
        cli.check(self)

    def world(self) -> dict[str, Any]:
        """Keyword arguments that choose the world and its device."""
        names = ("checkpoint", "num_denoising_steps", "device", "backend", "contexts")
        return {name: getattr(self, name) for name in names}

    def kept(self) -> dict[str, Any]:
        """Settings that must stay the same when a training is resumed."""
        free = ("device", "total_frames", "num_games", "max_game_steps", "out")
        return {name: value for name, value in asdict(self).items() if name not in free}

    def real_games(self) -> dict[str, Any]:
        """Keyword arguments of `real_scores` that choose the real games."""
        return {"num_games": self.num_games, "seed": self.seed, "max_steps": self.max_game_steps}


def make_env(args: Settings) -> TransformedEnv:
    """Imagined games whose "pixels" are stacks of float frames (b, 12, 64, 64)."""
    games = DiamondTorchRLEnv(
        args.env_id,
        args.num_envs,
        seed=args.seed,
        max_episode_steps=args.horizon,
        **args.world(),
    )
    stack = CatFrames(NUM_FRAMES, dim=-3, in_keys=["pixels"], padding="same")
    images = ToTensorImage(in_keys=["pixels"])
    return TransformedEnv(games, Compose(images, stack, RewardSum()))  # pyright: ignore[reportCallIssue]


def make_networks(num_actions: int, device: torch.device) -> tuple[ProbabilisticActor, ValueOperator]:
    """The Nature network for the policy, and one for the value."""

    def network(num_outputs: int) -> nn.Module:
        convolutions = ConvNet(
            in_features=3 * NUM_FRAMES,
            num_cells=[32, 64, 64],
            kernel_sizes=[8, 4, 3],
            strides=[4, 2, 1],
            device=device,
        )
        return nn.Sequential(
            convolutions,
            nn.Linear(64 * 4 * 4, 512, device=device),
            nn.ReLU(),
            nn.Linear(512, num_outputs, device=device),
        )

    policy = ProbabilisticActor(
        TensorDictModule(network(num_actions), in_keys=["pixels"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    return policy, ValueOperator(network(1), in_keys=["pixels"])


def train(args: Settings) -> tuple[ProbabilisticActor, list[float]]:
    """Train an agent, or continue one that was stopped, and write its weights as agent.pt.

    The state is saved as checkpoint.pt every two minutes, on Ctrl-C and other signals, and at the end. A
    resumed training begins with new games.

    Returns:
        The agent, and the mean imagined return of each batch's episodes.
    """
    torch.manual_seed(args.seed)
    env = make_env(args)
    device, num_actions = torch.device(str(env.device)), int(env.action_spec.space.n)  # pyright: ignore
    policy, value = make_networks(num_actions, device)
    frames_per_batch = args.num_envs * args.num_steps
    advantages = GAE(gamma=args.gamma, lmbda=args.gae_lambda, value_network=value, average_gae=True)
    loss_of = ClipPPOLoss(policy, value, clip_epsilon=args.clip, entropy_coeff=args.ent_coef)
    optimizer = torch.optim.Adam(loss_of.parameters(), lr=args.learning_rate, eps=1e-5)
    checkpoint = Checkpoint(
        args.out, {"agent": policy, "losses": loss_of, "optimizer": optimizer}, args.kept()
    )
    first = num_frames = checkpoint.load()
    torch.manual_seed(args.seed + first)
    collector = Collector(
        env,
        policy,
        frames_per_batch=frames_per_batch,
        total_frames=max(frames_per_batch, args.total_frames - first),
        device=device,
    )
    minibatches = ReplayBuffer(
        storage=LazyTensorStorage(frames_per_batch, device=device),
        sampler=SamplerWithoutReplacement(),
        batch_size=min(args.minibatch_size, frames_per_batch),
    )
    returns: list[float] = []
    try:
        with signals.deferred() as requests, Bar(total=args.total_frames, initial=first, unit="frame") as bar:
            for batch in collector if first < args.total_frames else ():
                for _ in range(args.num_epochs):
                    with torch.no_grad():
                        advantages(batch)
                    minibatches.extend(batch.reshape(-1))
                    for minibatch in minibatches:
                        _learn(loss_of, optimizer, minibatch)
                done = batch["next", "done"]
                if done.any():
                    returns.append(float(batch["next", "episode_reward"][done].mean()))
                    bar.set_postfix_str(f"imagined return {returns[-1]:.2f}", refresh=False)
                num_frames += batch.numel()
                bar.update(batch.numel())
                checkpoint.save_if_due(num_frames, requests, is_last=num_frames >= args.total_frames)
                if requests.stop:
                    break
    finally:
        collector.shutdown()
    print(f"wrote {args.out / 'agent.pt'}")
    return policy, returns


def _learn(loss_of: ClipPPOLoss, optimizer: torch.optim.Optimizer, minibatch: Any) -> None:
    losses = loss_of(minibatch)
    loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(loss_of.parameters(), 0.5)
    optimizer.step()


@torch.no_grad()
def score(agent: ProbabilisticActor, game: str, args: Settings) -> list[float]:
    """Scores of whole real games."""
    device = next(agent.parameters()).device

    def policy(stack: NDArray[np.uint8]) -> int:
        pixels = torch.from_numpy(stack).to(device).flatten(0, 1)[None] / 255  # as in `make_env`
        with set_exploration_type(ExplorationType.RANDOM):  # actions are drawn, as in training
            return int(agent(TensorDict({"pixels": pixels}))["action"])

    return real_scores(FrameStackPlayer(policy, NUM_FRAMES), game, **args.real_games())


def run(settings: Settings) -> None:
    """Train and score an agent."""
    if keep_freed_memory():
        print(MEMORY_IS_KEPT)
    game = real_game(settings.env_id)
    agent, returns = train(settings)
    scores = score(agent, game, settings) if game else []
    if returns:
        print(f"imagined return: {returns[0]:.2f} at first, {returns[-1]:.2f} at last")
    if scores:
        print(Score.of("agent", scores).in_words())


COMMAND = cli.Command("python -m trainers.examples.torchrl_ppo", __doc__ or "", Settings, run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and score an agent; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
