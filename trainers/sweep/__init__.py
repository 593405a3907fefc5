"""Runs of a trainer over games and seeds, on Ray: `python -m trainers.sweep`."""
