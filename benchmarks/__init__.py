"""Measurements of speed."""

from diamond_gym.signals import quiet_while_importing

quiet_while_importing()
