"""The benchmarks on a machine with a GPU and no network."""
