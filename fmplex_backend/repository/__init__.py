"""A task's entry in the model repository: read, checked, written."""
