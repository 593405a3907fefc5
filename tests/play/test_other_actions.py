"""Play in worlds whose actions are not discrete, by keys and mouse, and whose frames are not square."""

from __future__ import annotations

import numpy as np
import pygame
import pytest

from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.play import settings, start
from diamond_gym.play.keys import PartKeys, Slider, mouse_key, part_key, play_shortcuts
from diamond_gym.play.recording import Recorder
from diamond_gym.play.window import Keyboard, open_window
from diamond_gym.world.action_space import ActionSpace
from tests import worlds

NAMES = ("x", "y", "z")


def keys_of(text: str) -> PartKeys:
    space = ActionSpace.parse(text)
    return PartKeys(space, NAMES[: space.size])


def test_two_keys_for_each_continuous_part():
    keys = keys_of("box(-2.0..2.0, 0.0..1.0)")
    assert keys.action([]).tolist() == [0, 0]
    assert keys.action(["a"]).tolist() == [-2, 0] and keys.action(["a", "d"]).tolist() == [2, 0]
    assert keys.action(["s", "a", "m"]).tolist() == [-2, 1]
    assert keys.alone() == [("a", "x -2"), ("d", "x 2"), ("s", "y 1")]


def test_the_mouse_is_a_place_between_the_bounds():
    keys = keys_of("box(-2.0..2.0, 0.0..1.0, -1.0..1.0)")
    assert keys.action([mouse_key(0, 0)]).tolist() == [-2, 0, 0]
    assert keys.action([mouse_key(1, 1)]).tolist() == [2, 1, 0]
    assert keys.action([mouse_key(0.5, 0.25)]).tolist() == [0, 0.25, 0]
    assert keys_of("box(0.0..10.0)").action([mouse_key(0.25, 0.9)]).tolist() == [2.5]
    assert keys_of("multi_discrete(3, 2)").action([mouse_key(0, 0)]).tolist() == [1, 0]


def test_a_slider_for_each_continuous_part():
    keys = keys_of("box(-2.0..2.0, 1.0..3.0)")
    assert keys.sliders() == [Slider("x", -2, 2, 0), Slider("y", 1, 3, 1)]
    assert keys.action([part_key(0, 1.5), part_key(1, 9)]).tolist() == [1.5, 3]  # in its bounds
    assert keys.action([part_key(0, 1.5), part_key(2, 1), "a"]).tolist() == [-2, 1]  # a key counts more
    assert keys.action([part_key(1, 2.5), mouse_key(0, 0)]).tolist() == [-2, 1]
    buttons = keys_of("multi_binary(3)")
    assert buttons.sliders() == [] and buttons.action([part_key(0, 1)]).tolist() == [0, 0, 0]


def test_keys_of_discrete_parts():
    keys = keys_of("multi_discrete(3, 2, 4)")
    assert keys.idle.tolist() == [1, 0, 0]
    assert keys.action(["a", "s", "x"]).tolist() == [0, 1, 3] and keys.action(["d"]).tolist() == [2, 0, 0]
    buttons = keys_of("multi_binary(3)")
    assert buttons.action(["w", "s"]).tolist() == [1, 0, 1] and buttons.idle.tolist() == [0, 0, 0]


@pytest.mark.parametrize("text", ["box(-2..2)", "multi_discrete(3, 2)", "multi_binary(3)", "box(1..2)"])
def test_every_key_gives_an_action_and_is_explained(text):
    keys = keys_of(text)
    for key in [*keys.keys, mouse_key(0.3, 0.7), "m"]:
        assert keys.space.convert(keys.action([key])) is not None
    assert {key for key, _ in keys.alone()} == keys.keys and len(keys.explain()) > len(keys.keys)
    shortcuts = play_shortcuts(keys.keys)
    assert not keys.keys & {key for s in shortcuts for key in s.keys}
    assert all(s.keys for s in shortcuts)


@pytest.mark.parametrize("text", ["box(-2.0..2.0, 0.0..1.0)", "multi_discrete(3, 2)"])
def test_a_session_is_played_recorded_and_shown(text, tmp_path):
    space = ActionSpace.parse(text)
    checkpoint = worlds.save_tiny_world_of(tmp_path / "world", space, frame_shape=(1, 40, 60))
    env = DiamondEnv(checkpoint=checkpoint, **worlds.PLAIN)
    given = settings.parse([f"checkpoint={checkpoint}", "seed=3", "horizon=4", "--human", "--size=256"])
    recorder = Recorder(tmp_path / "recorded")
    session = start.session_in(env, given, recorder, tell=lambda line: None)
    for held in ([], ["d"], ["a", mouse_key(0.75, 0.5)], ["s"]):
        session.advance(held)
        assert session.view().picture.shape == (256, 256, 3)
    shown = dict(pair for column in session.view().header for pair in column)
    assert shown["Action"] == ("0, 1" if space.is_continuous else "1, 1")
    (folder,) = (tmp_path / "recorded").iterdir()
    dataset = EpisodeDataset(folder)
    assert dataset.action_space == space and dataset[0].obs.shape == (4, 1, 40, 60)
    third = [1.0, 0.5] if space.is_continuous else [0, 0]
    assert dataset[0].act[2].tolist() == third
    session.command("save")
    session.command("controller")
    session.advance([])
    session.command("load")
    env.close()


def test_the_mouse_counts_while_its_button_is_held(monkeypatch):
    window = open_window("mouse", fps=1000)
    window.show(np.zeros((100, 201, 3), np.uint8))
    keyboard = Keyboard()
    assert keyboard.held() == []
    monkeypatch.setattr(pygame.mouse, "get_pressed", lambda: (True, False, False))
    monkeypatch.setattr(pygame.mouse, "get_pos", lambda: (100, 99))
    assert keyboard.held() == [mouse_key(0.5, 1.0)]
    window.close()
