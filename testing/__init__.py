"""Helpers that tests and benchmarks share: a server, its repository, adapters, a client. Not in the wheel."""
