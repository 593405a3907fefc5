"""Presets compose, have their stated sizes, and work for any game."""

import pytest

from trainers.diamond.config import PRESETS, parse
from trainers.diamond.run import prepare


@pytest.mark.parametrize("game", ["Breakout", "MsPacman"])
def test_the_embedded_preset_makes_a_world_of_any_game(game):
    config = parse([f"game={game}", "preset=embedded"])
    description, agent = prepare(config)
    assert description.game == game and agent.actor_critic is None
    size = 2 * sum(p.numel() for p in agent.parameters())  # float16
    assert size < 4e6, "with its start contexts it must fit into the package"
    training = config.denoiser.training
    on_crops = [training.is_on_crops(step) for step in range(training.num_steps(config.training.num_epochs))]
    assert all(on_crops[: training.crops_only_until_step]) and 0.5 < sum(on_crops) / len(on_crops) < 0.8
    assert config.rew_end_model.training.start_after_epochs < config.training.num_epochs


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes(preset):
    assert parse(["game=Breakout", f"preset={preset}"]).game == "Breakout"


def test_a_world_is_sharpened_from_its_weights():
    """It needs no reward/end model of its own, and makes few steps at a falling learning rate."""
    config = parse(["game=Pong", "preset=sharpen"])
    training = config.denoiser.training
    assert config.training.parts == ["denoiser"] and training.displacement_radius > 0
    assert training.num_steps(config.training.num_epochs) == 3000 and training.lr_schedule == "cosine"
