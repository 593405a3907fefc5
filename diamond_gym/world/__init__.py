"""The world model: networks, sampler, noise and what one step of imagination is. Knows no environment."""
