"""Language models' entry in the contract test: a tiny Llama with random weights, with and without LoRA.

Answers are the best token always, and have to be transformers' token for token; an answer in whose making the two best
logits once lay within 1e-4 may be another one, and its text is not compared.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from encoder_case import adapter_elsewhere
from family_cases import BACKBONE, Broken, FamilyCase, Fit
from peft import LoHaConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmplex import Backbone, Generator, LoRA, Task
from testing import breaking, repositories
from testing.adapters import lora, save_adapter
from testing.clients import Outputs, Question
from testing.language_models import save_tiny

NEAR = 1e-4  # best logits so close may be told apart otherwise
TOKENS, CHUNK = 6, 16
TOKEN_BYTES = 3 * 2 * 32 * 4  # of keys and values: layers, both, numbers, bytes
SCALE = 0.3  # of adapters' weights: they change most answers
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS}
INPUTS = (("stream", "TYPE_BOOL"), ("sampling_parameters", "TYPE_STRING"), ("exclude_input_in_output", "TYPE_BOOL"))
OUTPUTS = (
    ("text_output", "TYPE_STRING"),
    ("finish_reason", "TYPE_STRING"),
    ("num_input_tokens", "TYPE_UINT32"),
    ("num_output_tokens", "TYPE_UINT32"),
    ("logprobs", "TYPE_STRING"),
)


@dataclass(frozen=True)
class Recipe:
    """A task to write."""

    name: str
    decoder: dict[str, Any] = field(default_factory=dict)
    adapter: Any = None
    template: str = "{text}"
    weight: str = ""

    @property
    def document(self) -> dict[str, Any]:
        """Its task.json."""
        document = {
            "family": "causal-lm",
            "encoder": {"template": self.template},
            "decoder": {"kind": "generator", **GREEDY, **self.decoder},
        }
        return document | ({} if self.adapter is None else {"adapter": {"kind": "peft"}})


def plain(name: str, **options: Any) -> Recipe:
    """Without the chat template."""
    return Recipe(name, {"chat": False}, **options)


SERVED = (
    plain("none"),
    Recipe("chat", {"system": "be brief"}, template="Say: {text}"),
    plain("lora4", adapter=lora(4, "q_proj", "v_proj")),
    Recipe("lora16", {"max_tokens": 4}, adapter=lora(16, "k_proj", "o_proj", "up_proj", "down_proj")),
    plain(
        "rslora", adapter=lora(8, "q_proj", "gate_proj", use_rslora=True, rank_pattern={"layers.1.self_attn.q_proj": 3})
    ),
)
VERSIONS = (
    plain("version-plain"),
    plain("version-lora", adapter=lora(4, "q_proj", "o_proj")),
    Recipe("version-chat", {"system": "a fox"}),
)
PATTERN_FREE = (
    "no-task-json",
    "task-json-cut",
    "unknown-decoder",
    "unknown-field",
    "foreign",
    "adapter-cut",
    "no-adapter",
)
SHARED = [case for case in breaking.CASES if case.name in (*PATTERN_FREE, "entry-weight", "entry-slo")]
OWN = {
    "hot": (
        breaking.edit_json("task.json", decoder__temperature="hot"),
        ("1/task.json", "decoder.temperature", "docs/"),
    ),
    "template-cut": (
        breaking.edit_json("task.json", decoder__chat=True, decoder__chat_template="{% for"),
        ("1/task.json", "decoder.chat_template", "cannot be rendered", "Correct it"),
    ),
    "no-such-token": (
        breaking.edit_json("task.json", decoder__stop_token_ids=[99_999]),
        ("1/task.json", "decoder.stop_token_ids", "there is no token 99999", "Leave it out"),
    ),
    "adapter-elsewhere": adapter_elsewhere(4, 64),
    "adapter-kind": (lambda directory: None, ("adapter_config.json", "peft_type", "LOHA", "Supported: LoRA")),
}
LOHA = LoHaConfig(r=4, target_modules=["q_proj"], init_weights=False)
ADAPTED = lora(4, "q_proj", "v_proj")
BREAKABLE = [
    *(plain(f"to-break-{case.name}", adapter=case.adapter and ADAPTED, weight="1.5") for case in SHARED),
    *(plain(f"to-break-{name}", adapter=LOHA if name == "adapter-kind" else ADAPTED, weight="1.5") for name in OWN),
]

WORDS = ("fox", "dog", "日本語", "🙂", "lazy", "zwölf", "quick", "jagen", "emoji", "brown", "Viktor")


def prompt(words: int, seed: int) -> str:
    """So many words; no two seeds give the same."""
    order = random.Random(seed)
    return " ".join([str(seed), *(order.choice(WORDS) for _ in range(words))])


ROWS = [(f"what is {number}", "fox" if number % 2 else "lazy dog") for number in range(16)]


def fitted(name: str, backbone: Backbone) -> Task:
    """A LoRA that has learned a little."""
    task = Task(name, backbone, adapter=LoRA(r=4), decoder=Generator(system="be brief", **GREEDY))
    task.fit(ROWS, epochs=2, batch_size=4, learning_rate=1e-2, progress=False)
    return task


def unfitted(name: str, backbone: Backbone) -> Task:
    """A system prompt needs no fitting."""
    return Task(name, backbone, decoder=Generator(system="a fox", **GREEDY))


class GenerateReference:
    """What a version must answer: transformers' `generate` of the model that PEFT has merged, on one prompt alone."""

    def __init__(self, model: Path, version: Path, max_tokens: int | None = None) -> None:
        document = json.loads((version / "task.json").read_text(encoding="utf-8"))
        self.decoder, self.template = document["decoder"], document["encoder"]["template"]
        self.max_tokens: int = max_tokens or self.decoder["max_tokens"]
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.model: Any = AutoModelForCausalLM.from_pretrained(model)
        if "adapter" in document:
            self.model = PeftModel.from_pretrained(self.model, str(version / "adapter")).merge_and_unload()
        self.ends = self.model.generation_config.eos_token_id
        self._known: dict[str, tuple[Outputs, int]] = {}

    def __call__(self, item: str) -> Outputs:
        """All outputs of a prompt."""
        return self._found(item)[0]

    def steps(self, item: str) -> int:
        """Tokens of its answer, each of which takes a step."""
        return self._found(item)[1]

    def prompt(self, item: str) -> list[int]:
        """As it is asked."""
        text = self.template.replace("{text}", item)
        if not self.decoder.get("chat", True):
            return list(self.tokenizer(text)["input_ids"])
        system = self.decoder.get("system")
        turns = [{"role": "system", "content": system}] if system else []
        asked = [*turns, {"role": "user", "content": text}]
        return list(
            self.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
        )

    def logits(self, item: str) -> npt.NDArray[Any]:
        """Of the answer's first token."""
        with torch.inference_mode():
            found: npt.NDArray[Any] = self.model(torch.tensor([self.prompt(item)])).logits[0, -1].numpy()
        return found

    def _found(self, item: str) -> tuple[Outputs, int]:
        if item not in self._known:
            asked = self.prompt(item)
            found = self.model.generate(
                torch.tensor([asked]),
                attention_mask=torch.ones(1, len(asked), dtype=torch.long),
                max_new_tokens=self.max_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            self._known[item] = self._outputs(asked, found), len(found.sequences[0]) - len(asked)
        return self._known[item]

    def _outputs(self, asked: list[int], found: Any) -> Outputs:
        told = {"num_input_tokens": np.array([len(asked)], dtype=np.uint32)}
        best = torch.cat(found.logits).topk(2).values
        if bool((best[:, 0] - best[:, 1] < NEAR).any()):
            return told
        answer = found.sequences[0, len(asked) :].tolist()
        ended = "stop" if answer[-1] == self.ends else "length"
        return told | {
            "text_output": np.array([self.tokenizer.decode(answer, skip_special_tokens=True)], dtype=np.object_),
            "finish_reason": np.array([ended], dtype=np.object_),
            "num_output_tokens": np.array([len(answer)], dtype=np.uint32),
        }


class LanguageModelCase(FamilyCase):
    """Checked against transformers and PEFT, one prompt at a time."""

    family = "causal-lm"
    parameters: ClassVar = {"stream": "true"}
    bmax = 8
    counted = 60  # a batch holds a step of each sequence, of some eight that a request has
    shares_rows = False
    recipes: ClassVar = {each.name: each for each in (*SERVED, *VERSIONS, *BREAKABLE)}
    served = tuple(each.name for each in SERVED)
    adapted = frozenset(each.name for each in SERVED if each.adapter is not None)
    rivals = ("lora4", "none")
    versions = tuple(each.name for each in VERSIONS)
    items = tuple(prompt(1 + 3 * (seed % 8), seed) for seed in range(20))
    short = tuple(prompt(1, 100 + seed) for seed in range(32))
    long = tuple(prompt(24, 200 + seed) for seed in range(256))
    longest = tuple(prompt(90, 500 + seed) for seed in range(32))
    broken: ClassVar = {
        **{case.name: Broken(f"to-break-{case.name}", case.spoil, case.says) for case in SHARED},
        **{name: Broken(f"to-break-{name}", spoil, says) for name, (spoil, says) in OWN.items()},
    }
    broken_versions = ("no-task-json", "foreign", "adapter-cut", "hot", "template-cut")
    fitted: ClassVar[dict[str, Fit]] = {"lora": fitted, "prompt": unfitted}

    def write_backbone(self, repository: Path, name: str, max_batch_size: int) -> None:
        self.path = save_tiny(repository.parent / "model")
        repositories.write_backbone(
            repository,
            name,
            model=str(self.path),
            family=self.family,
            max_batch_size=0,
            threads="1",
            max_sequences=str(max_batch_size),
            prefill_chunk=str(CHUNK),
            kv_cache_bytes=str(1024 * TOKEN_BYTES),  # too little for eight of `longest`: some are preempted
        )

    def write_task(self, repository: Path, name: str, tag: int, variant: str) -> Path:
        with tempfile.TemporaryDirectory(dir=repository.parent) as aside:
            directory = Path(aside, name)
            self.write_version(directory / "1", name, variant)
            (directory / "config.pbtxt").write_text(entry(name, tag, self.recipes[variant].weight))
            return directory.rename(repository / name)

    def write_version(self, version: Path, name: str, variant: str) -> Path:
        recipe = self.recipes[variant]
        version.mkdir(parents=True)
        (version / "task.json").write_text(json.dumps(recipe.document))
        if recipe.adapter is not None:
            bare, seed = AutoModelForCausalLM.from_pretrained(self.path), sum(variant.encode())
            save_adapter(version / "adapter", bare, recipe.adapter, seed=seed, scale=SCALE)
        return version

    def reference(self, version: Path) -> GenerateReference:
        return GenerateReference(self.path, version)

    def states(self, reference: Any, item: Any) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = reference.logits(item)
        return found

    def steps(self, question: Question, references: Mapping[str, Any]) -> int:
        return sum(references[question.task].steps(item) for item in question.texts)

    def asked(self, kind: str) -> Sequence[Any]:
        return [text for text, _ in ROWS[:4]]


def entry(name: str, tag: int, weight: str) -> str:
    """The text of config.pbtxt."""
    inputs = [f'input {{ name: "{each}" data_type: {kind} dims: [1] optional: true }}' for each, kind in INPUTS]
    outputs = [f'output {{ name: "{each}" data_type: {kind} dims: [1] }}' for each, kind in OUTPUTS]
    terms = [f'parameters {{ key: "weight" value {{ string_value: "{weight}" }} }}'] if weight else []
    return "\n".join(
        [
            f'name: "{name}"',
            'platform: "ensemble"',
            'input { name: "text_input" data_type: TYPE_STRING dims: [1] }',
            *inputs,
            *outputs,
            'output { name: "usage" data_type: TYPE_INT64 dims: [3] }',
            'parameters { key: "decoder" value { string_value: "generator" } }',
            *terms,
            f'ensemble_scheduling {{ step [ {{ model_name: "{BACKBONE}" model_version: -1',
            *(f'input_map {{ key: "{each}" value: "{each}" }}' for each in ("text_input", *dict(INPUTS))),
            *(f'output_map {{ key: "{each}" value: "{each}" }}' for each, _ in OUTPUTS),
            f'output_map {{ key: "VFM_{tag}" value: "usage" }} }} ] }}',
            "",
        ]
    )
