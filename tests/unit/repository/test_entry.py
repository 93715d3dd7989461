"""A task's entry, written and read again: nothing is lost on the way through Triton's text."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from fmplex_backend.decoders import KINDS
from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.entry import TaskEntry
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.types import LEAST_WEIGHT, MOST_WEIGHT

POSITIVE = st.floats(1e-6, 1e9, allow_nan=False)
ENTRIES = st.builds(
    TaskEntry,
    name=st.just("task"),
    backbone=st.sampled_from(["base", "another-backbone_2"]),
    vfm=st.integers(0, 16383),
    family=st.just("text-encoder"),
    decoder=st.sampled_from(sorted(KINDS)),
    max_batch_size=st.integers(1, 4096),
    weight=st.floats(LEAST_WEIGHT, MOST_WEIGHT),
    slo_ms=st.none() | POSITIVE,
    max_queue=st.none() | st.integers(1, 10**9),
    max_queue_bytes=st.none() | st.integers(1, 10**12),
    max_seconds=st.none() | POSITIVE,
    cache=st.booleans(),
    sizes=st.sampled_from([(), (("SCORES", 7),), (("EMBEDDING", 384),), (("SCORES", 3), ("LABEL", 3))]),
)


@settings(max_examples=40)
@given(ENTRIES)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, entry: TaskEntry) -> None:
    root = tmp_path_factory.mktemp("repository")
    (root / "task" / "1").mkdir(parents=True)
    (root / "task" / "config.pbtxt").write_text(entry.to_pbtxt())
    spec = Repository(root, entry.backbone).read_task("task")
    assert isinstance(spec, TaskSpec)
    assert (spec.name, spec.vfm, spec.weight, spec.max_queue) == ("task", entry.vfm, entry.weight, entry.max_queue)
    assert (spec.max_queue_bytes, spec.max_seconds) == (entry.max_queue_bytes, entry.max_seconds)
    assert (spec.max_queue_bytes, spec.cache) == (entry.max_queue_bytes, entry.cache)
    assert spec.slo == (None if entry.slo_ms is None else pytest.approx(entry.slo_ms / 1000))
    assert spec.outputs.keys() == {output.name for output in entry.outputs()}
    sizes = dict(entry.sizes)
    for output in entry.outputs():
        if output.dims[-1] == -1:
            assert spec.outputs[output.name][-1] == sizes.get(output.client_name, -1)


@settings(max_examples=20)
@given(ENTRIES)
def test_the_text_is_the_message(entry: TaskEntry) -> None:
    assert text_format.Parse(entry.to_pbtxt(), model_config_pb2.ModelConfig()) == entry.to_proto()


def test_an_entry_as_triton_wants_it() -> None:
    entry = TaskEntry("ner", "base", 7, "text-encoder", "token-classification", 16, sizes=(("SCORES", 5),))
    config = entry.to_proto()
    assert (config.name, config.platform, config.max_batch_size) == ("ner", "ensemble", 16)
    (step,) = config.ensemble_scheduling.step
    assert (step.model_name, step.model_version, dict(step.input_map)) == ("base", -1, {"TEXT": "TEXT"})
    assert dict(step.output_map) == {
        "TOKEN_SCORES": "SCORES",
        "LABEL": "LABEL",
        "OFFSETS": "OFFSETS",
        "TRUNCATED": "TRUNCATED",
        "VFM_7": "usage",
    }
    assert {output.name: list(output.dims) for output in config.output} == {
        "SCORES": [-1, 5],
        "LABEL": [-1],
        "OFFSETS": [-1, 2],
        "TRUNCATED": [1],
        "usage": [3],
    }


@pytest.mark.parametrize(("weight", "text"), [(1.0, "1"), (3.0, "3"), (0.25, "0.25"), (1000.0, "1000")])
def test_numbers_read_as_people_write_them(weight: float, text: str) -> None:
    entry = TaskEntry("t", "base", 0, "text-encoder", "embedding", 8, weight=weight)
    parameters = entry.to_proto().parameters
    assert {key: value.string_value for key, value in parameters.items()} == {"weight": text, "decoder": "embedding"}


@pytest.mark.parametrize("weight", [0.0, 0.0009, 1000.1, 1e-18, float("nan")])
def test_a_weight_beyond_the_limits_is_refused(weight: float) -> None:
    with pytest.raises(TaskProblem, match=r"the weight of 't' is .*, not a number from 0.001 to 1000"):
        TaskEntry("t", "base", 0, "text-encoder", "embedding", 8, weight=weight)


def test_a_limit_of_another_family_is_refused() -> None:
    with pytest.raises(TaskProblem, match="max_running limits nothing in a task of the family 'text-encoder'"):
        TaskEntry("t", "base", 0, "text-encoder", "embedding", 8, max_running=3)
    entry = TaskEntry("t", "base", 0, "causal-lm", "generator", 0, max_running=3, max_kv_share=0.25)
    parameters = entry.to_proto().parameters
    assert (parameters["max_running"].string_value, parameters["max_kv_share"].string_value) == ("3", "0.25")


def test_what_clients_are_told_beside_the_tensors() -> None:
    entry = TaskEntry("t", "base", 0, "text-encoder", "classification", 8, labels=("ham", "späm"), version=3)
    proto = entry.to_proto()
    assert proto.parameters["labels"].string_value == '["ham", "späm"]'
    assert list(proto.version_policy.specific.versions) == [3]


def test_a_plugins_outputs_are_its_own() -> None:
    entry = TaskEntry("t", "base", 0, "text-encoder", "plugin", 8, sizes=(("SCORES", 5),), gives=("SCORES",))
    assert [spec.name for spec in entry.outputs()] == ["SCORES", "TRUNCATED"]


@pytest.mark.parametrize("backbone", ["minilm", "smollm2"])
def test_the_demos_entries_are_such(pytestconfig: pytest.Config, backbone: str) -> None:
    root = Path(pytestconfig.rootpath) / "model_repository"
    entries = Repository(root, backbone).read()
    assert entries
    assert all(isinstance(entry, TaskSpec) for entry in entries.values()), entries
