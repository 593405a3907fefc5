"""Building learned simulators and training agents inside them: everything that `diamond_gym` must never import."""
