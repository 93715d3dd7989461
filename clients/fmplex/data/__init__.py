"""Labelled examples, read from lists, tables and files."""
