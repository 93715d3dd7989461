"""A trained task's files as the server reads them: config.pbtxt, task.json, adapter, decoder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from fmplex_backend.config import Embedding, TaskConfig, TokenClassification
from fmplex_backend.entries import TaskEntry
from fmplex_backend.interface import EMBEDDING, LABEL, SCORES

VERSION = "1"
DECODER_FILE = "decoder.safetensors"
MAX_BATCH_SIZE = 32


@contextmanager
def staged(repository: Path, name: str) -> Iterator[Path]:
    """A directory beside the repository, put in the task's place when the block ends without an error.

    It stands beside, not inside, so that a server that polls the repository never meets half a task.
    """
    repository.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".fmplex-", dir=repository.resolve().parent))
    try:
        directory = aside / name
        directory.mkdir()
        yield directory
        for file in directory.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes for its owner alone; servers differ
        if (repository / name).exists():
            (repository / name).rename(aside / "replaced")
        directory.rename(repository / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def output_sizes(config: TaskConfig, hidden: int) -> tuple[tuple[str, int], ...]:
    """The last dim of the outputs whose size the decoder fixes."""
    decoder = config.decoder
    if isinstance(decoder, Embedding):
        return ((EMBEDDING.client_name, hidden),)
    if decoder.kind == "regression":
        return ()
    scores = (SCORES.client_name, len(decoder.labels))
    if isinstance(decoder, TokenClassification):
        return (scores,)
    return (scores, (LABEL.client_name, len(decoder.labels) if decoder.kind == "multi-label" else 1))


def write_entry(directory: Path, config: TaskConfig, entry: TaskEntry) -> None:
    """config.pbtxt and task.json."""
    (directory / "config.pbtxt").write_text(entry.to_pbtxt(), encoding="utf-8")
    document = config.model_dump(mode="json", exclude_none=True)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    (directory / VERSION / "task.json").write_text(f"{text}\n", encoding="utf-8")


def write_weights(directory: Path, adapter: PeftModel | None, head: dict[str, Tensor], backbone: str) -> None:
    """adapter/ and decoder.safetensors, each where the task has one."""
    version = directory / VERSION
    version.mkdir(exist_ok=True)
    if head:
        save_file(head, version / DECODER_FILE)
    if adapter is None:
        return
    adapter.peft_config["default"].base_model_name_or_path = backbone
    adapter.save_pretrained(str(version / "adapter"), save_embedding_layers=False)
    (version / "adapter" / "README.md").unlink(missing_ok=True)
    file = version / "adapter" / "adapter_config.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    document["target_modules"] = sorted(document["target_modules"])  # PEFT writes a set, in any order
    file.write_text(f"{json.dumps(document, indent=2, sort_keys=True)}\n", encoding="utf-8")


def read_weights(directory: Path, backbone: PreTrainedModel) -> tuple[PreTrainedModel | PeftModel, dict[str, Tensor]]:
    """The backbone with the saved adapter around it, and the saved head."""
    version = directory / VERSION
    model: PreTrainedModel | PeftModel = backbone
    if (version / "adapter").is_dir():
        model = PeftModel.from_pretrained(backbone, str(version / "adapter")).eval()
    head = load_file(version / DECODER_FILE) if (version / DECODER_FILE).exists() else {}
    return model, head
