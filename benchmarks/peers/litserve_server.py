"""LitServe with sentence-transformers behind OpenAI's embeddings API. Runs in LitServe's own environment.

Arguments: model directory, port, threads, rows of a batch, dtype, workers, milliseconds that a batch waits for more.
"""

import base64
import sys
from typing import Any

import litserve
import torch
from fastapi import Request
from sentence_transformers import SentenceTransformer

MODEL, PORT, THREADS, BATCH, DTYPE, WORKERS, WAIT_MS = sys.argv[1:]


class Embeddings(litserve.LitAPI):  # type: ignore[misc]
    """A text in, a vector out, in base64 as OpenAI's clients ask for it."""

    def setup(self, device: str) -> None:
        """Load the model."""
        torch.set_num_threads(int(THREADS))
        self.model = SentenceTransformer(MODEL, device=device, model_kwargs={"dtype": getattr(torch, DTYPE)}).eval()

    def decode_request(self, request: Request) -> str:  # what LitServe takes for any JSON
        """The one text."""
        return str(request["input"][0])

    def predict(self, texts: list[str]) -> Any:
        """[n, 384], computed in one batch."""
        with torch.inference_mode():
            return self.model.encode(
                texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=True
            )

    def unbatch(self, vectors: Any) -> list[Any]:
        """A row each."""
        return list(vectors)

    def encode_response(self, vector: Any) -> dict[str, Any]:
        """As OpenAI has it."""
        return {"data": [{"index": 0, "embedding": base64.b64encode(vector.astype("float32").tobytes()).decode()}]}


if __name__ == "__main__":
    api = Embeddings(max_batch_size=int(BATCH), batch_timeout=float(WAIT_MS) / 1000, api_path="/v1/embeddings")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(WORKERS), fast_queue=True)
    server.run(host="127.0.0.1", port=int(PORT), num_api_servers=1, generate_client_file=False, log_level="warning")
