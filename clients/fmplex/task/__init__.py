"""A task as one object, and what it is made of."""
