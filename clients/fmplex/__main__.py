"""`python -m fmplex`."""

from fmplex.cli.app import app

app(prog_name="fmplex")
