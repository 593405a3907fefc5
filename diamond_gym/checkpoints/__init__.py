"""World models on disk: find, check, load, save.

Embedded ones, files, run folders, the Hub; published `.pt` files too. What was downloaded is read as data and
checked; it is never executed, instantiated from its own text or unpickled.
"""

from diamond_gym.checkpoints.description import WorldDescription
from diamond_gym.checkpoints.infer import infer_agent_config
from diamond_gym.checkpoints.load import World, load_agent, load_world
from diamond_gym.checkpoints.saved_world import save_world

__all__ = [
    "World",
    "WorldDescription",
    "infer_agent_config",
    "load_agent",
    "load_world",
    "save_world",
]
