"""The world model: networks, sampler, noise and one step of imagination. Knows nothing of environments."""
