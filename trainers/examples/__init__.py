"""Examples, each of them one file: what a training loop of your own looks like."""
