"""Imagined games for other libraries' agents: one module per library, each over the public Gymnasium API."""
