"""Aggregates over games and seeds beside the published ones: `python -m trainers.report`."""
