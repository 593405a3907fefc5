"""Imagined games as Gymnasium environments: one game, and many in a batch."""
