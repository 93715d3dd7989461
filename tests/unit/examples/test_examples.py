"""The short examples run, on a tiny backbone that is called as the demo's is."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from model_fixtures import save_tiny, tiny_model
from peft import LoraConfig, get_peft_model
from task_fixtures import labelled

from fmplex_backend.repository.writer import ModelRepository
from testing.repositories import write_backbone

EXAMPLES = Path(__file__).parents[3] / "clients" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    path.mkdir()
    write_backbone(path, "minilm", model=str(save_tiny(tmp_path / "model")), max_batch_size=16, threads="1")
    return path


def test_csv_classifier(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "mail.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*labelled(60), strict=True)])
    example("csv_classifier").main(tmp_path / "mail.csv", "mail", root, epochs=1)
    assert "on 12 rows that were held out" in capsys.readouterr().out
    assert ModelRepository(root).versions("mail") == [1]


def test_feature_rows(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = example("feature_rows")
    rows.main(rows.Data.wine, root, epochs=1)
    assert "a logistic regression's accuracy" in capsys.readouterr().out
    assert ModelRepository(root).versions("wine") == [1]


def test_rejection(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts: dict[str, list[tuple[str, str]]] = {}
    for seed, name in enumerate(("train", "val", "test")):
        parts[name] = list(zip(*labelled(40, seed), strict=True))
        parts[f"oos_{name}"] = [(f"w{20 + seed} w{number} w29", "oos") for number in range(20, 35)]
    (tmp_path / "data.json").write_text(json.dumps(parts), encoding="utf-8")
    example("rejection").main(tmp_path / "data.json", rank=2, epochs=1, repository=root)
    said = capsys.readouterr().out
    assert "out_of_scope_auroc: " in said
    assert said.count(": AUROC 0.") + said.count(": AUROC 1.") == 5


def test_peft_adapter(root: Path, tmp_path: Path) -> None:
    trained = get_peft_model(tiny_model("bert"), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    trained.save_pretrained(str(tmp_path / "adapter"))
    example("peft_adapter").main(str(tmp_path / "adapter"), "", "adapted", root, "")
    assert ModelRepository(root).versions("adapted") == [1]
