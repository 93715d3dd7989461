"""Language models fitted by the Task-API: an adapter, by the loss of whole sequences."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from fmplex import IA3, Backbone, DoRA, Generated, Generator, LoRA, Pretrained, Task, TaskProblem
from fmplex.cli import app as cli
from fmplex.training.interrupt import Interrupted
from fmplex.training.options import FitOptions
from fmplex.training.prepare import TaskParts, prepare
from fmplex.training.progress import Progress, Status
from fmplex.training.sequences import SequenceTraining
from testing.language_models import save_tiny, tiny_tokenizer
from testing.repositories import write_backbone

ROWS = [(f"what is {number}", ("fox" if number % 2 else "lazy dog")) for number in range(24)]
FIT: dict[str, Any] = {"epochs": 8, "batch_size": 4, "learning_rate": 1e-2, "progress": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    write_backbone(
        folder / "repository",
        "tiny",
        model=str(save_tiny(folder / "model")),
        max_batch_size=0,
        family="causal-lm",
        threads="1",
        dtype="float32",
        kv_cache_bytes=str(1 << 21),
    )
    return folder / "repository"


@pytest.fixture(scope="module")
def backbone(root: Path) -> Backbone:
    return Backbone("tiny", repository=root)


def support(backbone: Backbone, **options: Any) -> Task:
    given: dict[str, Any] = {
        "adapter": LoRA(r=4, targets="all-linear"),
        "decoder": Generator(system="be brief", temperature=0),
    }
    return Task("support", backbone, **{**given, **options})


def said(task: Task, *texts: str) -> list[str]:
    found = []
    for each in task.predict(list(texts), parameters={"max_tokens": 8}):
        assert isinstance(each, Generated)
        found.append(each.text)
    return found


def test_it_learns_and_comes_back_as_it_was(backbone: Backbone, root: Path) -> None:
    """What it then says is what the merged model of the saved directory says to transformers."""
    task = support(backbone)
    before = task.backbone.runtime.model.state_dict()
    history = task.fit(ROWS, validation=0.25, test=ROWS, **FIT)
    assert history.figure == "perplexity"
    assert history.figures[-1] < 0.1 * math.exp(history.steps[0])
    assert task.metrics["perplexity"] < 3  # type: ignore[operator]
    assert task.metrics["exact_match"] > 0.4  # type: ignore[operator]
    assert {"train_rows": 18, "test_rows": 24}.items() <= task.metrics.items()
    path = task.save()
    again = Task.load(path.parent, backbone)
    assert again.config() == task.config()
    texts = [text for text, _ in ROWS[:6]]
    assert said(again, *texts) == said(task, *texts)
    assert again.evaluate(ROWS).figures == task.evaluation.figures  # type: ignore[union-attr]
    model: Any = AutoModelForCausalLM.from_pretrained(root.parent / "model")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    merged = PeftModel.from_pretrained(model, path / "adapter").merge_and_unload()
    tokenizer = tiny_tokenizer()
    for text, answer in zip(texts, said(task, *texts), strict=True):
        turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        found = merged.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(found, skip_special_tokens=True) == answer


def test_the_perplexity_is_that_of_transformers(backbone: Backbone, root: Path) -> None:
    task = support(backbone, adapter=None, decoder=Generator(chat=False))
    found = task.evaluate(ROWS)
    model = AutoModelForCausalLM.from_pretrained(root.parent / "model")
    tokenizer, total, tokens = tiny_tokenizer(), 0.0, 0
    for prompt, answer in ROWS:
        asked, own = (tokenizer(text)["input_ids"] for text in (prompt, f"{answer}<|im_end|>"))
        labels = torch.tensor([[-100] * len(asked) + own])
        total += float(model(torch.tensor([asked + own]), labels=labels).loss.detach()) * len(own)
        tokens += len(own)
    assert found["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-3)
    assert found["exact_match"] == 0.0
    assert found.headline == "perplexity"


def test_a_pretrained_adapter_is_fitted_further(backbone: Backbone) -> None:
    task = support(backbone)
    task.fit(ROWS, **FIT)
    path = task.save()
    further = support(backbone, adapter=Pretrained(path / "adapter"))
    assert further.evaluate(ROWS).figures == task.evaluate(ROWS).figures
    history = further.fit(ROWS, **{**FIT, "epochs": 1, "learning_rate": 1e-6})
    assert history.steps[0] < 2


@pytest.mark.parametrize(
    ("adapter", "given", "rate"),
    [(LoRA(), None, 5e-4), (DoRA(), None, 5e-4), (IA3(), None, IA3.learning_rate), (IA3(), 2e-3, 2e-3)],
)
def test_the_learning_rate_is_that_of_the_adapters_kind(
    backbone: Backbone, adapter: Any, given: float | None, rate: float
) -> None:
    task = support(backbone, adapter=adapter)
    parts = TaskParts("support", backbone, task.encoder, task.adapter, task.decoder, task.fitted)
    training = prepare(parts, task.rows(ROWS), None, FitOptions(learning_rate=given), Progress())
    assert isinstance(training, SequenceTraining)
    assert training.learning_rate == rate


def gradients(backbone: Backbone, steps: list[list[int]], **options: Any) -> dict[str, torch.Tensor]:
    """Of one update of these steps."""
    task = support(backbone)
    parts = TaskParts("support", backbone, task.encoder, task.adapter, task.decoder, task.fitted)
    training = prepare(parts, task.rows(ROWS), None, FitOptions(**options), Progress())
    assert isinstance(training, SequenceTraining)
    for step in steps:
        training.step(step, steps)
    return {name: each.grad for name, each in training.losses.model.named_parameters() if each.grad is not None}


def test_an_update_is_the_mean_over_its_tokens(backbone: Backbone) -> None:
    """However its rows are cut into steps and packs."""
    whole = gradients(backbone, [[0, 1, 2, 3]])
    assert any(each.any() for each in whole.values())
    for steps, options in (([[0, 1], [2, 3]], {}), ([[3], [0, 1, 2]], {"pack_tokens": 1})):
        other = gradients(backbone, steps, **options)
        assert whole.keys() == other.keys()
        assert all(torch.allclose(whole[name], other[name], atol=1e-5) for name in whole)


def test_an_interrupted_fitting_ends_at_the_same_weights(backbone: Backbone, tmp_path: Path) -> None:
    options = {**FIT, "validation": 0.25, "accumulation": 2}
    whole = support(backbone, adapter=LoRA(r=4, dropout=0.1))
    whole.fit(ROWS, **options)

    def stop(status: Status) -> None:
        if status.phase.startswith("epoch 3"):
            raise Interrupted

    task = support(backbone, adapter=LoRA(r=4, dropout=0.1))
    with pytest.raises(Interrupted):
        task.fit(ROWS, checkpoint=tmp_path / "checkpoint", **{**options, "progress": stop})
    assert (tmp_path / "checkpoint").is_dir()
    history = task.fit(ROWS, checkpoint=tmp_path / "checkpoint", **options)
    assert len(history.training) == 8
    assert not (tmp_path / "checkpoint").exists()
    for one, other in zip(adapter_of(whole), adapter_of(task), strict=True):
        assert torch.equal(one, other)


def adapter_of(task: Task) -> list[torch.Tensor]:
    assert task.fitted.adapter is not None
    return list(task.fitted.adapter.tensors.values())


@pytest.mark.parametrize(
    ("parts", "options", "match"),
    [
        ({"adapter": None}, {}, "a generator task is fitted by its adapter, and it has none"),
        ({}, {"parts": "decoder"}, "a generator decoder has no weights of its own"),
        ({}, {"parts": "encoder"}, "a prompt encoder has no weights"),
        ({}, {"class_weights": "balanced"}, "class_weights do nothing for a generator"),
        ({}, {"pack_tokens": -1}, "pack_tokens is -1"),
    ],
)
def test_what_does_not_suit_is_named(
    backbone: Backbone, parts: dict[str, Any], options: dict[str, Any], match: str
) -> None:
    with pytest.raises(TaskProblem, match=match):
        support(backbone, **parts).fit(ROWS, **{**FIT, **options})


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([("a", "b"), ("c", " ")], "the data, row 1: there is no answer"),
        ([("a", "b" * 600)], "the data, row 0: prompt and answer are"),
        ([(1, "b")], "the data, row 0: 1 is not a text"),
    ],
)
def test_rows_that_cannot_be_learned_are_named(backbone: Backbone, rows: Any, match: str) -> None:
    with pytest.raises(TaskProblem, match=match):
        support(backbone).fit(rows, **FIT)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([("a", "b"), ("c", "d" * 600)], "the data, row 1: prompt and answer are"),
        ([("no", "b")], "the data, row 0: the chat template does not take it: never"),
    ],
)
def test_what_is_wrong_with_test_rows_is_said_before_the_first_step(backbone: Backbone, rows: Any, match: str) -> None:
    template = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('never') }}{% endif %}x>"
    task = support(backbone, decoder=Generator(chat_template=template))
    with pytest.raises(TaskProblem, match=match):
        task.fit(ROWS, test=rows, **FIT)
    assert task.history is None


def test_rows_with_answers_of_any_length_are_evaluated(backbone: Backbone) -> None:
    """Together: each asks for as many tokens as its own answer has."""
    task = support(backbone, adapter=None, decoder=Generator(chat=False))
    assert {"perplexity", "exact_match"} == task.evaluate([("a" * 300, "b"), ("c", "d" * 300)]).figures.keys()


def test_the_command_line(root: Path, tmp_path: Path) -> None:
    """The family's own decoder by default, and its names of columns."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "completion": answer}) + "\n" for text, answer in ROWS))
    line = f"task train desk --backbone tiny -r {root} --data {file} --test {file} --system brief --epochs 1 --json"
    result = CliRunner().invoke(cli.app, [*line.split(), "--accumulation", "2", "--rank", "2"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {"perplexity", "exact_match", "validation_perplexity", "train_rows"} <= document["metrics"].keys()
    saved = json.loads((root / "desk" / "1" / "task.json").read_text())
    assert (saved["decoder"]["kind"], saved["decoder"]["system"]) == ("generator", "brief")
    shown = CliRunner().invoke(cli.app, ["task", "list", "-r", str(root), "--json"])
    figures = {row["task"]: row["figure"] for row in json.loads(shown.stdout)}
    assert str(figures["desk"]).startswith("perplexity ")
    again = CliRunner().invoke(cli.app, f"task evaluate desk -r {root} --data {file} --json".split())
    evaluated = {name: document["metrics"][name] for name in ("perplexity", "exact_match")}
    assert json.loads(again.stdout) == {"task": "desk", "rows": len(ROWS), "figures": evaluated}
    for more, match in (
        (["--prefix", "x"], "reads prompts: prefix"),
        (["--decoder", "classification"], "has generator"),
    ):
        refused = CliRunner().invoke(cli.app, [*line.split(), "--new-version", *more])
        assert (refused.exit_code, match in refused.output) == (1, True), refused.output
