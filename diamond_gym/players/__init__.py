"""Who plays: random, scripted and learned players, and what the scripted ones see."""
