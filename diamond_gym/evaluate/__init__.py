"""Imagined against real: `python -m diamond_gym.evaluate game=Breakout`.

Held-out real episodes are played; from contexts in them the world model imagines the same actions; the two
futures are compared. `settings` reads the command line, `heldout` plays and chooses the contexts,
`imagination` runs the world model, `metrics` compares, `report` gathers the numbers and writes them. `score`
is separate: it measures how good a player is in the real game.
"""
