"""Imagined against real: `python -m diamond_gym.evaluate game=Breakout`.

Held-out real episodes are played; from moments of them the world model imagines on under the same actions;
the two futures are compared. `settings` reads the command line, `heldout` plays and picks the moments,
`imagination` runs the world model, `metrics` compares, `report` gathers the numbers and writes them. `score`
is apart from these: it says how good a player is in the real game.
"""
