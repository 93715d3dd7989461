"""Other servers that `experiments/peers.py` measures: what is installed for them, and the one that takes code."""
