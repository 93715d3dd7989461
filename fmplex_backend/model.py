from fmplex_backend.triton import TritonPythonModel  # noqa: F401 - Triton looks for the class here
