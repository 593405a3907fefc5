"""Settings of every test: no display, few threads, and tensor shapes checked against their annotations."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs a hub serves its own

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads stall each other on a busy machine

import pytest
import torch
from jaxtyping import config, install_import_hook

# Only our own code hands these their tensors; modules that judge what a user gave raise errors of their own.
SHAPE_CHECKED = ("diamond_gym.world.models", "diamond_gym.world.noise", "diamond_gym.world.pixels")

install_import_hook(SHAPE_CHECKED, "beartype.beartype")
NUM_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1)
torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True)
def same_number_of_threads() -> None:
    """Undoes `training.num_threads` of a test before: the last bits depend on it."""
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Turns the checks off, for tests of `torch.compile`, which cannot trace through them."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny world model of Breakout on disk, for `checkpoint=`; about one step in eight is an end."""
    from tests import worlds  # after the checks of shapes have been installed

    return worlds.save_tiny_world(tmp_path_factory.mktemp("world"), end_bias=-2.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
