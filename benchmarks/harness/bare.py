"""The limit: the backbone's forward in a loop, tokenisation included, without a server.

With the weights, texts, batch size and threads of the served arm, in inference mode and, as there, without an attention
mask where all texts are equally long.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import count

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from benchmarks.harness.repositories import model_directory
from benchmarks.harness.subject import subject
from benchmarks.load.child import Child
from fmplex_controller.server.installation import ALLOCATOR


class Bare(Child):
    """A process, pinned to a core, that runs the loop on demand."""

    module = "benchmarks.harness.bare"

    def __init__(self, texts: list[str], batch: int, core: int) -> None:
        super().__init__({"texts": texts, "batch": batch, "core": core}, ALLOCATOR | os.environ)

    def per_second(self, seconds: float) -> float:
        """Texts per second, measured for `seconds`."""
        return float(self.ask({"seconds": seconds}))


def rate(run: Callable[[int], int], seconds: float) -> float:
    """Items per second of a step that is called with its number, and says how many items it has run."""
    done, start = 0, time.perf_counter()
    for number in count():
        done += run(number)
        if (now := time.perf_counter()) - start >= seconds:
            break
    return done / (now - start)


def main() -> None:
    """Answer every line of stdin with a rate."""
    logging.disable_progress_bar()
    setup = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, {setup["core"]})
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    own = subject()
    device = torch.device("cuda" if own.gpu else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    model = AutoModel.from_pretrained(model_directory(), dtype=own.dtype).to(device).eval()
    batches = [setup["texts"][i : i + setup["batch"]] for i in range(0, len(setup["texts"]), setup["batch"])]

    def run(number: int) -> int:
        batch = batches[number % len(batches)]
        tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
        whole = bool(tokens["attention_mask"].all())
        with torch.inference_mode():
            mask = None if whole else tokens["attention_mask"].to(device)
            states = model(input_ids=tokens["input_ids"].to(device), attention_mask=mask).last_hidden_state
            states.float().mean(dim=1).cpu().numpy()
        return len(batch)

    rate(run, 0.5)
    print(0, flush=True)
    for line in sys.stdin:
        print(rate(run, json.loads(line)["seconds"]), flush=True)


if __name__ == "__main__":
    main()
