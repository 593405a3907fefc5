"""Trains DIAMOND world models from real games: `python -m trainers.diamond train game=Breakout`."""
