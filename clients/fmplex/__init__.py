"""The user's package. What it offers for now is the command line, `fmplex`."""

__all__: list[str] = []
