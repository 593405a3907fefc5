"""Building learned simulators and training agents inside them: what `diamond_gym` must never import."""
