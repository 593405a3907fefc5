"""Random, scripted and learned players, and the computer vision of the scripted ones."""
