"""Which weights a directory holds, in one short string, without reading all of them."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

SAMPLE_BYTES = 256  # of the front of each tensor: enough to tell two trainings of one shape apart


def fingerprint(directory: Path) -> str | None:
    """`sha256:...` over names, shapes and the first bytes of all tensors; None where there is no safetensors.

    The order of tensors in the file and the split into shards do not matter; the dtype on disk does.
    """
    tensors: dict[str, bytes] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            for name, tensor in header.items():
                start, end = tensor["data_offsets"]
                stream.seek(8 + length + start)
                front = stream.read(min(SAMPLE_BYTES, end - start))
                tensors[name] = f"{tensor['dtype']}{tensor['shape']}".encode() + front
    if not tensors:
        return None
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + tensors[name] + b"\0")
    return f"sha256:{digest.hexdigest()[:32]}"
