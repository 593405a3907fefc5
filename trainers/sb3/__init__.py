"""Agents of Stable-Baselines3 learn in imagination (or in the real game) and are scored in the real game."""
