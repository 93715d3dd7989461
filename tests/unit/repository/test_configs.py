"""config.pbtxt read, and merged with what a person wrote there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.configs import Terms, backbone_parameters, merged, put_terms, read_config
from fmplex_backend.repository.entry import TaskEntry

ENTRY = TaskEntry("t", "base", 3, "text-encoder", "embedding", 8, sizes=(("EMBEDDING", 32),))


def write(root: Path, name: str, text: str) -> None:
    (root / name).mkdir()
    (root / name / "config.pbtxt").write_text(text)


def test_only_a_backbones_parameters_are_found(tmp_path: Path) -> None:
    write(tmp_path, "base", 'backend: "fmplex" parameters { key: "model" value { string_value: "m" } }')
    write(tmp_path, "other", 'backend: "onnxruntime"')
    assert backbone_parameters(tmp_path, "base") == {"model": "m"}
    for name in ("other", "nowhere", "", "../base", "package:base"):
        assert backbone_parameters(tmp_path, name) is None


def test_a_file_that_is_not_there_is_an_empty_config(tmp_path: Path) -> None:
    assert read_config(tmp_path / "config.pbtxt") == model_config_pb2.ModelConfig()
    (tmp_path / "config.pbtxt").write_text("name: {")
    with pytest.raises(TaskProblem, match="is not a Triton model configuration"):
        read_config(tmp_path / "config.pbtxt")


def test_a_merge_keeps_terms_and_what_is_not_ours() -> None:
    old = TaskEntry("t", "base", 3, "text-encoder", "classification", 4, weight=3.0, slo_ms=50.0, labels=("a",))
    proto = old.to_proto()
    proto.parameters["team"].string_value = "search"
    new = merged(proto, ENTRY, Terms(slo_ms=20.0))
    parameters = {key: value.string_value for key, value in new.parameters.items()}
    assert parameters == {"weight": "3", "slo_ms": "20", "team": "search", "decoder": "embedding"}
    assert new.max_batch_size == 4
    assert [output.name for output in new.output] == [output.name for output in ENTRY.to_proto().output]


@pytest.mark.parametrize(
    ("slo_ms", "text"),
    [(2.0, "2"), (0.25, "0.25"), (1234567.0, "1234567"), (0.123456789, "0.123456789"), (1234.5678, "1234.5678")],
)
def test_terms_are_written_exactly_whether_a_task_is_new_or_changed(slo_ms: float, text: str) -> None:
    changed = text_format.Parse('name: "t"', model_config_pb2.ModelConfig())
    put_terms(changed, Terms(slo_ms=slo_ms, cache=True))
    new = replace(ENTRY, slo_ms=slo_ms, cache=True).to_proto()
    for proto in (changed, new):
        assert (proto.parameters["slo_ms"].string_value, proto.parameters["cache"].string_value) == (text, "true")
    assert float(text) == slo_ms
