"""Episodes: playing, recording, keeping and reading them."""
