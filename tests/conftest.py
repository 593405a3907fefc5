"""Settings of all tests: no display, few threads, and tensor shapes checked against their annotations."""

from __future__ import annotations

import os

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests that need a Hub serve their own

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads stall each other on a busy machine

os.environ.setdefault("DIAMOND_GYM_BACKEND", "eager")  # no trial decides about the last bits

import pytest
import torch
from jaxtyping import config, install_import_hook

# Only our own code calls these with tensors; modules that check user input raise errors of their own.
SHAPE_CHECKED = ("diamond_gym.world.models", "diamond_gym.world.noise", "diamond_gym.world.pixels")

# Checks add half the time of a small network's step, so they are on only in tests of networks.
CHECKED_TESTS = ("tests/world/", "tests/envs/", "tests/backends/")
CHECKED_TESTS += tuple(
    f"tests/trainers/diamond/test_{name}.py"
    for name in ("actor_critic_loss", "collector", "crops", "imagined_segments", "losses", "rollout")
)

install_import_hook(SHAPE_CHECKED, "beartype.beartype")
NUM_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1)
torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True)
def same_number_of_threads() -> None:
    """Undo `training.num_threads` of an earlier test, on which the last bits depend."""
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True)
def shape_checks(request: pytest.FixtureRequest) -> None:
    """Turn the checks of shapes on in slow tests and in `CHECKED_TESTS`, off in others."""
    is_slow = request.node.get_closest_marker("slow") is not None
    config.update("jaxtyping_disable", not (is_slow or request.node.nodeid.startswith(CHECKED_TESTS)))


@pytest.fixture
def without_shape_checks(shape_checks: None) -> None:
    """Turn the checks off, for tests of `torch.compile`, which cannot trace through them."""
    config.update("jaxtyping_disable", True)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny world model of Breakout on disk, for `checkpoint=`; about one step in eight is an end."""
    from tests import worlds  # imported after the checks of shapes have been installed

    return worlds.save_tiny_world(tmp_path_factory.mktemp("world"), end_bias=-2.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
