"""Adds a task to a running server that routes texts to the label with the nearest examples.

No training: the served `embed` task gives the vectors, and a `similarity` decoder compares with them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import tritonclient.grpc as grpcclient
import typer
from safetensors.numpy import save_file

from fmplex import Client
from fmplex_backend.repository.entry import TaskEntry

EXAMPLES = {
    "cards": ["I lost my bank card", "somebody used my card without asking me", "my PIN is blocked"],
    "transfers": ["the money I sent has not arrived", "how do I send money abroad", "cancel my transfer"],
    "account": ["I want to close my account", "change the address on my account", "verify who I am"],
}


def vectors(client: grpcclient.InferenceServerClient) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The mean embedding of each label's examples."""
    rows = []
    for texts in EXAMPLES.values():
        tensor = grpcclient.InferInput("TEXT", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, dtype=np.object_)[:, None])
        rows.append(client.infer("embed", [tensor]).as_numpy("EMBEDDING").mean(axis=0))
    return np.stack(rows).astype(np.float32)


def main(
    repository: Path = Path("model_repository"),
    url: Annotated[str, typer.Option(help="The server's gRPC address.")] = "localhost:8001",
    name: str = "desk",
    vfm: Annotated[int, typer.Option(help="A tag that no other task of the backbone has.")] = 100,
) -> None:
    """Write the task aside, move it into the repository, load it."""
    with grpcclient.InferenceServerClient(url) as client, tempfile.TemporaryDirectory(dir=repository.parent) as folder:
        aside = Path(folder, name)
        version = aside / "1"
        version.mkdir(parents=True)
        decoder = {"kind": "similarity", "labels": list(EXAMPLES)}
        (version / "task.json").write_text(json.dumps({"family": "text-encoder", "decoder": decoder}))
        save_file({"vectors": vectors(client)}, version / "decoder.safetensors")
        sizes = (("SCORES", len(EXAMPLES)), ("LABEL", 1))
        entry = TaskEntry(name, "minilm", vfm, "text-encoder", "similarity", max_batch_size=32, sizes=sizes)
        (aside / "config.pbtxt").write_text(entry.to_pbtxt())
        aside.rename(repository / name)
        with Client(url) as ours:  # knows the key of a server that this user has started on this host
            client.load_model(name, headers=ours.control_headers)
    print(f"{name} is served")


if __name__ == "__main__":
    typer.run(main)
