"""`python -m fmplex`."""

from fmplex.cli import app

app(prog_name="fmplex")
