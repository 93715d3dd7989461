"""One module per experiment: `run` measures, `show` prints the rows, `draw` makes the picture."""
