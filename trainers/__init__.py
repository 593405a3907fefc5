"""Building learned simulators and training agents inside them: what `diamond_gym` must never import."""

from diamond_gym.signals import quiet_while_importing

quiet_while_importing()
