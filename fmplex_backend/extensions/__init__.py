"""A task's own code and weights around the backbone: what is before it, inside it and after it."""
