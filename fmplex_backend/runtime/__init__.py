"""What executes a family. One file per family and executor."""
