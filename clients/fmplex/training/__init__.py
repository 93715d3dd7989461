"""Fitting a task: prepare, train, evaluate."""
