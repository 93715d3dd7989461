"""Adapters that bring whole modules, in one batch with others, against PEFT one by one."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import save_adapter, tiny_model
from peft import IA3Config, LoraConfig, PeftModel
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.adapters.saved_modules import modules_by_row, plain_copy
from fmplex_backend.errors import TaskRefused

NORM = "encoder.layer.1.output.LayerNorm"
WHOLE = {
    "a norm": LoraConfig(r=3, target_modules=["query"], modules_to_save=[NORM]),
    "a layer, by its last name": LoraConfig(r=3, target_modules=["query"], modules_to_save=["intermediate.dense"]),
    "embeddings": LoraConfig(r=3, target_modules=["query", "output.dense"], modules_to_save=["embeddings"]),
    "modules alone": LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=["embeddings", NORM, "value"]),
    "with dora": LoraConfig(r=3, target_modules=["query"], use_dora=True, modules_to_save=["value"]),
    "with ia3": IA3Config(target_modules=["query"], feedforward_modules=[], modules_to_save=["value"]),
}


def ids_of(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(4, 60, (rows, 7), generator=torch.Generator().manual_seed(seed))


def by_row(model: Any) -> frozenset[str]:
    return modules_by_row(model, lambda rows: model(input_ids=ids_of(rows)))


def save(directory: Path, config: Any, kind: str = "bert", seed: int = 0) -> Path:
    """With other weights in the saved modules than the backbone has."""
    path = save_adapter(directory, copy.deepcopy(config), kind, seed)
    file = path / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: each if "lora_" in name or "ia3_" in name else each + 0.2 * torch.randn(each.shape, generator=generator)
        for name, each in load_file(file).items()
    }
    save_file(tensors, file)
    return path


def reference(kind: str, directory: Path | None) -> Any:
    """The model with one adapter, by PEFT; which cannot load embeddings again that it has saved within a module."""
    model = tiny_model(kind)
    if directory is None:
        return model
    tensors = load_file(directory / "adapter_model.safetensors")
    if any(".embeddings." in name for name in tensors):
        names = {name: name.removeprefix("base_model.model.") for name in tensors if "lora_" not in name}
        model.load_state_dict({own: tensors.pop(name) for name, own in names.items()}, strict=False)
        settings = json.loads((directory / "adapter_config.json").read_text()) | {"modules_to_save": None}
        directory = directory.parent / f"{directory.name}-lora"
        directory.mkdir(exist_ok=True)
        (directory / "adapter_config.json").write_text(json.dumps(settings))
        save_file(tensors, directory / "adapter_model.safetensors")
    return PeftModel.from_pretrained(model, str(directory)).eval()


class Bench:
    """A backbone with a bank."""

    def __init__(self, kind: str = "bert") -> None:
        self.kind, self.model = kind, tiny_model(kind)
        self.by_row = by_row(self.model)
        self.bank = AdapterBank(self.model, torch.device("cpu"))

    def attach(self, directory: Path) -> Adapter:
        adapter = load_adapter(directory, self.model, torch.float32, torch.device("cpu"), by_row=self.by_row)
        self.bank.attach(adapter)
        return adapter

    def check(self, rows: Sequence[tuple[Adapter | None, Path | None]]) -> None:
        """Every row comes out as PEFT has it."""
        order = sorted(range(len(rows)), key=lambda row: self.bank.order(rows[row][0]))
        ids = ids_of(len(rows))
        with self.bank.applied([rows[row][0] for row in order]), torch.inference_mode():
            states = self.model(input_ids=ids[order]).last_hidden_state
        for place, row in enumerate(order):
            with torch.inference_mode():
                expected = reference(self.kind, rows[row][1])(input_ids=ids[row : row + 1]).last_hidden_state[0]
            torch.testing.assert_close(states[place], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", WHOLE.values(), ids=WHOLE)
def test_rows_are_as_peft_has_them_alone(tmp_path: Path, config: Any) -> None:
    bench = Bench()
    paths = [save(tmp_path / str(seed), config, seed=seed) for seed in range(2)]
    plain = save_adapter(tmp_path / "plain", LoraConfig(r=4, target_modules=["query", "value"]))
    first, second, lora = bench.attach(paths[0]), bench.attach(paths[1]), bench.attach(plain)
    assert lora.batched
    assert not first.batched
    bench.check([(first, paths[0])])
    bench.check([(None, None), (second, paths[1]), (lora, plain), (first, paths[0]), (second, paths[1]), (None, None)])
    bench.bank.detach(first)
    bench.check([(lora, plain), (second, paths[1]), (None, None)])
    bench.check([(None, None), (lora, plain)])


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "distilbert", "albert", "modernbert"])
def test_embeddings_of_other_architectures(tmp_path: Path, kind: str) -> None:
    bench = Bench(kind)
    path = save(tmp_path, LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=["embeddings"]), kind)
    adapter = bench.attach(path)
    bench.check([(None, None), (adapter, path), (adapter, path)])


def test_embeddings_are_also_looked_up_alone(tmp_path: Path) -> None:
    """As rows of vectors make a pass do, for all its rows."""
    bench = Bench()
    path = save(tmp_path, WHOLE["embeddings"])
    adapter, ids = bench.attach(path), ids_of(2)
    with bench.bank.applied([None, adapter]), torch.inference_mode():
        vectors = bench.model.get_input_embeddings()(ids)
        states = bench.model(inputs_embeds=vectors).last_hidden_state
        expected = bench.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(states, expected)


def test_modules_that_see_no_rows_are_refused(tmp_path: Path) -> None:
    bench = Bench()
    assert {"embeddings", "embeddings.word_embeddings", NORM} <= bench.by_row
    assert "embeddings.position_embeddings" not in bench.by_row
    for saved, reason in {
        "position_embeddings": "no row for each row of a batch",
        "classifier": "the backbone has no module 'classifier'",
    }.items():
        path = save_adapter(tmp_path / saved, LoraConfig(r=2, target_modules=["query"]))
        config = path / "adapter_config.json"
        text = config.read_text()
        config.write_text(text.replace('"modules_to_save": null', f'"modules_to_save": ["{saved}"]'))
        with pytest.raises(TaskRefused) as caught:
            bench.attach(path)
        assert (caught.value.field, caught.value.file) == ("modules_to_save", str(config))
        assert reason in caught.value.problem


def test_a_family_that_takes_none_says_so(tmp_path: Path) -> None:
    """Whatever they are: another module would be refused as well."""
    bench = Bench()
    bench.by_row = frozenset()
    path = save(tmp_path, WHOLE["embeddings"])
    with pytest.raises(TaskRefused) as caught:
        bench.attach(path)
    assert (caught.value.field, caught.value.remedy) == ("modules_to_save", "Train without it")
    assert caught.value.problem == "tasks of this family take no modules_to_save"


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bench = Bench()
    path = save(tmp_path / "adapter", WHOLE["a norm"])
    file, name = path / "adapter_model.safetensors", f"base_model.model.{NORM}.bias"
    tensors = load_file(file)
    for changed, reason in (
        ({name: tensors[name][:-1]}, "its shape is"),
        ({name: None}, "has the tensors"),
        ({f"base_model.model.{NORM}.more": torch.zeros(1)}, "has the tensors"),
        ({name: torch.full_like(tensors[name], torch.nan)}, "NaN"),
    ):
        kept = {key: each for key, each in (tensors | changed).items() if each is not None}
        save_file({key: each.contiguous() for key, each in kept.items()}, file)
        with pytest.raises(TaskRefused, match=reason):
            bench.attach(path)


def test_a_module_inside_another_is_refused(tmp_path: Path) -> None:
    bench = Bench()
    path = save(tmp_path, WHOLE["embeddings"])
    config = path / "adapter_config.json"
    config.write_text(config.read_text().replace('"embeddings"\n', '"embeddings", "word_embeddings"\n'))
    with pytest.raises(TaskRefused, match=r"word_embeddings lies in embeddings, which is saved too"):
        bench.attach(path)


def test_a_copy_holds_nothing_of_the_tasks(tmp_path: Path) -> None:
    bench = Bench()
    bench.attach(save(tmp_path, WHOLE["embeddings"]))
    copied = plain_copy(bench.model)
    assert copied.state_dict().keys() == tiny_model("bert").state_dict().keys()
    assert not any(each._forward_hooks for each in copied.modules())
    assert copied.get_parameter("embeddings.word_embeddings.weight") is bench.model.get_parameter(
        "embeddings.word_embeddings.weight"
    )
