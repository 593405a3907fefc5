"""Learned simulators you can `gymnasium.make`."""
