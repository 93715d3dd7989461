"""A family for tests, with a spec, a runtime and no model."""
