"""The per-task arm's model.py: one task as one Python-backend model with a backbone of its own.

Written as an experienced user would for speed: the adapter is merged into the weights, all requests that Triton's
dynamic batcher hands over run as one batch, tokenised together, in inference mode, without an attention mask where all
texts are equally long; the head is the same numpy as in the shared arm.
"""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer


class TritonPythonModel:
    """A classification task."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        if int(parameters["mps_percent"]):  # the driver reads it when the process first uses the device
            os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = parameters["mps_percent"]
        torch.set_num_threads(int(parameters["threads"]))
        self.device = torch.device("cuda" if args["model_instance_kind"] == "GPU" else "cpu")
        version = Path(args["model_repository"], args["model_version"])
        model = AutoModel.from_pretrained(parameters["model"], dtype=parameters["dtype"])
        self.model = model.eval().requires_grad_(False).to(self.device)
        slow = AutoTokenizer.from_pretrained(parameters["model"])
        self.pad = slow.pad_token_id
        self.tokenizer = Tokenizer.from_str(slow.backend_tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(min(slow.model_max_length, self.model.config.max_position_embeddings))
        head = load_file(version / "decoder.safetensors")
        self.weight, self.bias = head["weight"].float().numpy().T.copy(), head["bias"].float().numpy()
        self.labels = np.array(parameters["labels"].split(","), dtype=np.object_)
        self._pooled(["warm up"])
        gc.collect()
        gc.freeze()  # as the shared arm's

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests as one batch."""
        counts, texts = [], []
        for request in requests:
            cells = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
            texts += [cell.decode() for cell in cells]
            counts.append(len(cells))
        raw = self._pooled(texts) @ self.weight + self.bias
        raised = np.exp(raw - raw.max(axis=-1, keepdims=True))
        scores = raised / raised.sum(axis=-1, keepdims=True)
        labels = self.labels[scores.argmax(axis=-1)][:, None]
        responses, start = [], 0
        for count in counts:
            end = start + count
            outputs = [pb_utils.Tensor("SCORES", scores[start:end]), pb_utils.Tensor("LABEL", labels[start:end])]
            responses.append(pb_utils.InferenceResponse(outputs))
            start = end
        return responses

    def _pooled(self, texts: list[str]) -> Any:
        """Texts -> [n, h], the mean over tokens."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        longest = max(map(len, rows))
        table = np.full((len(rows), longest), self.pad, dtype=np.int64)
        for position, row in enumerate(rows):
            table[position, : len(row)] = row
        ids = torch.from_numpy(table).to(self.device)  # [n, t]
        with torch.inference_mode():
            if all(len(row) == longest for row in rows):
                return self.model(input_ids=ids).last_hidden_state.float().mean(dim=1).cpu().numpy()
            lengths = torch.tensor([len(row) for row in rows], device=self.device)
            mask = torch.arange(longest, device=self.device) < lengths[:, None]  # [n, t]
            states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # [n, t, h]
            weight = mask[..., None].float()
            return ((states.float() * weight).sum(dim=1) / weight.sum(dim=1)).cpu().numpy()
