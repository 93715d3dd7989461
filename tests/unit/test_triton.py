"""The boundary, with a stand-in for the server's module: statuses, the receipt, parts and final response, the config.

The real server is asked in tests/triton.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from unittest.mock import MagicMock

import numpy as np
import pytest
from backend_fixtures import BACKBONE, TextStandIn, bytes_of, text_task, write_task
from installed import fake_family_installed
from model_fixtures import save_tiny

from fmplex_backend import errors
from fmplex_backend.errors import BackboneRefused, ExecutionFailed, FmplexError, Refused, TaskRefused
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.serving.metrics import Publisher
from fmplex_backend.serving.service import Service
from fmplex_backend.status import BackboneStatus
from fmplex_backend.types import Answer, Failed, Usage

# -- what the server's module looks like from here


class Tensor:
    """pb_utils.Tensor."""

    def __init__(self, name: str, array: Any) -> None:
        assert isinstance(array, np.ndarray)
        assert array.flags.c_contiguous
        self._name, self.array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self.array

    def to_dlpack(self) -> Any:
        return self.array

    @staticmethod
    def from_dlpack(name: str, memory: Any) -> Tensor:
        return Tensor(name, memory.copy())


class TritonError:
    """pb_utils.TritonError; its codes are numbers."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class InferenceResponse:
    """pb_utils.InferenceResponse."""

    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors = {tensor.name(): tensor.array for tensor in output_tensors or []}
        self.error = error


class MetricFamily:
    """pb_utils.MetricFamily."""

    COUNTER, GAUGE = 0, 1

    def __init__(self, **options: Any) -> None:
        self.options = options

    def Metric(self, labels: dict[str, str]) -> Any:
        return MagicMock()


class Logger:
    """pb_utils.Logger."""

    lines: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def log_info(cls, text: str) -> None:
        cls.lines.append(("info", text))

    @classmethod
    def log_warn(cls, text: str) -> None:
        cls.lines.append(("warn", text))

    @classmethod
    def log_error(cls, text: str) -> None:
        cls.lines.append(("error", text))


class Sender:
    """A request's response sender: parts, one final response and no more."""

    def __init__(self, failures: int = 0) -> None:
        self.parts: list[InferenceResponse] = []
        self.sent: list[InferenceResponse] = []
        self.failures = failures  # so many sends fail
        self.done = threading.Event()

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        if self.failures:
            self.failures -= 1
            raise MemoryError("no shared memory")
        assert not self.done.is_set()
        if flags == 0:
            self.parts.append(response)
            return
        assert flags == 1
        self.sent.append(response)
        self.done.set()

    def is_cancelled(self) -> bool:
        return False

    def response(self) -> InferenceResponse:
        assert self.done.wait(20)
        (response,) = self.sent
        return response


class TritonRequest:
    """A request as the stub hands it over."""

    def __init__(self, inputs: list[Any], outputs: list[str], parameters: str = "") -> None:
        self._inputs, self._outputs, self._parameters = inputs, outputs, parameters
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def request_id(self) -> str:
        return "r1"

    def inputs(self) -> list[Any]:
        return self._inputs

    def parameters(self) -> str:
        return self._parameters


class Unreadable:
    """A tensor that cannot be read."""

    def name(self) -> str:
        return "TEXT"

    def as_numpy(self) -> Any:
        raise UnicodeError("no bytes")


@pytest.fixture(scope="module")
def triton() -> Iterator[Any]:
    """The module, imported over the stand-in."""
    stub: Any = ModuleType("triton_python_backend_utils")
    stub.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    for kind in (Tensor, TritonError, InferenceResponse, MetricFamily, Logger):
        setattr(stub, kind.__name__, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, stub.__name__, stub)
        patch.delitem(sys.modules, "fmplex_backend.triton", raising=False)
        yield importlib.import_module("fmplex_backend.triton")
        sys.modules.pop("fmplex_backend.triton", None)


# -- replies


def sent(triton: Any, reply: Any, *names: str) -> InferenceResponse:
    sender = Sender()
    triton._send(triton.Destination(sender, list(names), decoupled=False), reply, True)
    return sender.response()


def every_error() -> list[FmplexError]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FmplexError)]
    return [kind("f", "field", "wrong", "Fix it") if issubclass(kind, Refused) else kind("text") for kind in kinds]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_an_error_has_its_status_and_text(triton: Any, error: FmplexError) -> None:
    response = sent(triton, Failed(error), "SCORES", "VFM_0")
    assert response.error is not None
    assert response.error.code == getattr(TritonError, error.code)
    assert response.error.message == str(error)
    assert response.tensors == {}


def test_an_answer_holds_what_was_asked_for_and_a_receipt_per_item(triton: Any) -> None:
    scores = np.arange(6, dtype=np.float32).reshape(2, 3)
    answer = Answer({"SCORES": scores, "LABEL": bytes_of("a", "b")}, Usage(7, 8, 9))
    response = sent(triton, answer, "VFM_3", "SCORES")
    assert response.error is None
    assert response.tensors.keys() == {"VFM_3", "SCORES"}
    assert response.tensors["VFM_3"].tolist() == [[7, 8, 9]] * 2
    assert response.tensors["VFM_3"].dtype == np.int64
    assert np.array_equal(response.tensors["SCORES"], scores)


def test_tensors_are_sent_in_one_piece(triton: Any) -> None:
    turned = np.arange(6, dtype=np.float32).reshape(3, 2).T
    response = sent(triton, Answer({"SCORES": turned}, Usage(0, 0, 2)), "SCORES")
    assert np.array_equal(response.tensors["SCORES"], turned)


def test_an_output_that_the_decoder_does_not_make_is_an_error(triton: Any) -> None:
    response = sent(triton, Answer({"EMBEDDING": np.zeros((1, 2))}, Usage(0, 0, 1)), "SCORES", "VFM_0")
    assert response.error is not None
    assert response.error.code == TritonError.INVALID_ARG
    assert "SCORES" in response.error.message


def test_an_answer_that_cannot_be_sent_is_an_error(triton: Any) -> None:
    sender = Sender(failures=1)
    answer = Answer({"EMBEDDING": np.zeros((1, 2))}, Usage(0, 0, 1))
    triton._send(triton.Destination(sender, ["EMBEDDING"], decoupled=False), answer, True)
    response = sender.response()
    assert response.error is not None
    assert response.error.code == TritonError.INTERNAL
    assert "the answer cannot be sent: no shared memory" in response.error.message


# -- replies of several parts


def words(count: int) -> Answer:
    return Answer({"EMBEDDING": np.full((2, 1), count, np.float32), "OTHER": np.zeros((2, 1))}, Usage(count, 0, 2))


def test_parts_are_sent_as_they_come_and_the_last_reply_is_final(triton: Any) -> None:
    sender = Sender()
    to = triton.Destination(sender, ["EMBEDDING", "VFM_0"], decoupled=True)
    for count in (1, 2):
        triton._send(to, words(count), False)
    assert not sender.done.is_set()
    triton._send(to, words(3), True)
    responses = [*sender.parts, sender.response()]
    assert [response.tensors.keys() for response in responses] == [{"EMBEDDING", "VFM_0"}] * 3
    assert [response.tensors["EMBEDDING"].tolist() for response in responses] == [[[n], [n]] for n in (1, 2, 3)]
    assert [response.tensors["VFM_0"].tolist() for response in responses] == [[[n, 0, 2]] * 2 for n in (1, 2, 3)]


def test_a_part_may_lack_a_requested_output_and_the_last_reply_may_not(triton: Any) -> None:
    sender = Sender()
    to = triton.Destination(sender, ["EMBEDDING", "SCORES", "VFM_0"], decoupled=True)
    triton._send(to, words(1), False)
    triton._send(to, words(2), True)
    assert sender.parts[0].tensors.keys() == {"EMBEDDING", "VFM_0"}
    response = sender.response()
    assert response.error is not None
    assert response.error.code == TritonError.INVALID_ARG


def test_a_backbone_that_is_not_decoupled_sends_no_part(triton: Any) -> None:
    sender = Sender()
    with pytest.raises(ExecutionFailed, match=r"model_transaction_policy \{ decoupled: true \}"):
        triton._send(triton.Destination(sender, ["EMBEDDING"], decoupled=False), words(1), False)
    assert sender.parts == sender.sent == []


@pytest.mark.parametrize(("part", "failures"), [(words(1), 1), (Answer({}, Usage(0, 0, 1)), 0)])
def test_a_part_that_cannot_be_sent_raises(triton: Any, part: Answer, failures: int) -> None:
    """Its request then fails: a client must not take what it got for the whole."""
    sender = Sender(failures)
    with pytest.raises(ExecutionFailed, match="a part of the answer cannot be sent"):
        triton._send(triton.Destination(sender, ["EMBEDDING", "VFM_0"], decoupled=True), part, False)
    assert sender.parts == sender.sent == []


@pytest.mark.parametrize(
    ("document", "decoupled"),
    [
        ({}, False),
        ({"model_transaction_policy": {}}, False),
        ({"model_transaction_policy": {"decoupled": False}}, False),
        ({"model_transaction_policy": {"decoupled": True}}, True),
    ],
)
def test_the_config_says_whether_a_request_may_have_several_responses(
    triton: Any, document: dict[str, Any], decoupled: bool
) -> None:
    assert triton._is_decoupled(document) is decoupled


class Streaming:
    """A model whose service is a fake runtime's, as `initialize` leaves it."""

    def __init__(self, triton: Any, root: Path, *, decoupled: bool) -> None:
        write_task(root, "one", 0, task={"mark": 7})
        self.model = triton.TritonPythonModel()
        self.model.decoupled = decoupled
        self.model.models = triton.ServerModels(
            root,
            is_ready=None,
            unload=None,
            readiness=triton.Readiness(""),
            entries=triton.LoadedEntries("", "base"),
        )
        config = BackboneConfig(model="none")
        self.model.service = Service(root, BACKBONE, config, 8, lambda cost: TextStandIn(sleep=lambda s: None))
        self.model.publisher = Publisher(self.model.service, MetricFamily)

    def ask(self, line: str) -> Sender:
        """A request, answered."""
        request = TritonRequest(text(line), ["EMBEDDING", "VFM_0"])
        self.model.service.start()
        self.model.publisher.start()
        self.model.execute([request])
        request.sender.response()
        self.model.finalize()
        return request.sender


def test_a_sequence_streams_its_parts_from_engine_to_sender(triton: Any, tmp_path: Path) -> None:
    sender = Streaming(triton, tmp_path, decoupled=True).ask("stream steps=4 a b c")
    counted = [response.tensors["EMBEDDING"].tolist() for response in (*sender.parts, sender.response())]
    assert counted == [[[words, 7]] for words in (1, 2, 3, 5)]


def test_a_family_that_answers_in_parts_needs_a_decoupled_backbone(triton: Any, tmp_path: Path) -> None:
    sender = Streaming(triton, tmp_path, decoupled=False).ask("stream steps=400 a b c")
    response = sender.response()
    assert sender.parts == []
    assert response.error is not None
    assert response.error.code == TritonError.INTERNAL
    assert "its family answers in parts" in response.error.message


# -- the configuration


class AutoComplete:
    """pb_utils.ModelConfig."""

    def __init__(self, max_batch_size: int = 0, **parameters: str) -> None:
        self.max_batch_size = max_batch_size
        self.parameters = {"model": "m", **parameters}
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.batching = False
        self.policy: dict[str, bool] | None = None

    def as_dict(self) -> dict[str, Any]:
        parameters = {key: {"string_value": value} for key, value in self.parameters.items()}
        document = {"name": BACKBONE, "max_batch_size": self.max_batch_size, "parameters": parameters}
        return document if self.policy is None else document | {"model_transaction_policy": self.policy}

    def add_input(self, spec: dict[str, Any]) -> None:
        self.inputs.append(spec)

    def add_output(self, spec: dict[str, Any]) -> None:
        self.outputs.append(spec)

    def set_max_batch_size(self, size: int) -> None:
        self.max_batch_size = size

    def set_model_transaction_policy(self, policy: dict[str, bool]) -> None:
        if self.policy and self.policy.get("decoupled") != policy["decoupled"]:
            raise ValueError("trying to change decoupled property")
        self.policy = policy

    def set_dynamic_batching(self) -> None:
        self.batching = True


def test_a_backbones_config_is_completed(triton: Any) -> None:
    config = AutoComplete(vfm_slots="3")
    assert triton.TritonPythonModel.auto_complete_config(config) is config
    assert config.inputs == [
        {"name": "TEXT", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
        {"name": "FEATURES", "data_type": "TYPE_FP32", "dims": [-1], "optional": True},
        {"name": "TASK", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
    ]
    outputs = {spec["name"]: (spec["data_type"], spec["dims"]) for spec in config.outputs}
    assert len(outputs) == len(config.outputs)
    assert [name for name in outputs if name.startswith("VFM_")] == ["VFM_0", "VFM_1", "VFM_2"]
    assert outputs["VFM_2"] == ("TYPE_INT64", [3])
    assert outputs["STATUS"] == ("TYPE_STRING", [1])
    assert outputs["EMBEDDING"] == ("TYPE_FP32", [-1])
    assert outputs["TOKEN_SCORES"] == ("TYPE_FP32", [-1, -1])
    assert config.max_batch_size > 0
    assert config.batching
    assert config.policy is None


class TestStreamingFamily:
    @pytest.fixture(autouse=True)
    def installed(self, tmp_path: Path) -> Iterator[None]:
        with fake_family_installed(tmp_path):
            yield

    @pytest.mark.parametrize("policy", [None, {"decoupled": True}])
    def test_its_backbone_may_send_several_responses(self, triton: Any, policy: dict[str, bool] | None) -> None:
        config = AutoComplete(family="fake")
        config.policy = policy
        triton.TritonPythonModel.auto_complete_config(config)
        assert config.policy == {"decoupled": True}
        assert [spec["name"] for spec in config.inputs] == ["WORDS", "TASK"]
        assert [spec["name"] for spec in config.outputs][:2] == ["COUNTS", "MARK"]

    @pytest.mark.parametrize("policy", [{"decoupled": False}, {}])
    def test_a_config_that_forbids_it_is_refused_by_name(self, triton: Any, policy: dict[str, bool]) -> None:
        config = AutoComplete(family="fake")
        config.policy = policy
        with pytest.raises(
            BackboneRefused, match=r"base/config\.pbtxt: model_transaction_policy\.decoupled: it is false"
        ):
            triton.TritonPythonModel.auto_complete_config(config)


def test_a_batch_size_that_was_chosen_stays(triton: Any) -> None:
    config = AutoComplete(max_batch_size=7)
    triton.TritonPythonModel.auto_complete_config(config)
    assert config.max_batch_size == 7


def test_a_config_that_is_wrong_is_refused_by_name(triton: Any) -> None:
    with pytest.raises(BackboneRefused, match=r"base/config\.pbtxt: parameters\.scheduler"):
        triton.TritonPythonModel.auto_complete_config(AutoComplete(scheduler="best"))


@pytest.mark.parametrize(
    "groups",
    [None, [], [{"count": 1}], [{"count": 1, "kind": "KIND_CPU"}], [{"count": 1, "kind": "KIND_GPU", "gpus": [0]}]],
)
def test_one_instance(triton: Any, groups: list[dict[str, Any]] | None) -> None:
    triton._check_instances(Path("base/config.pbtxt"), {} if groups is None else {"instance_group": groups})


@pytest.mark.parametrize(
    ("groups", "count"),
    [([{"count": 2}], 2), ([{"count": 1, "gpus": [0, 1]}], 2), ([{"count": 1}, {"count": 1}], 2), ([{"count": 3}], 3)],
)
def test_several_instances_are_refused(triton: Any, groups: list[dict[str, Any]], count: int) -> None:
    with pytest.raises(BackboneRefused, match=rf"instance_group: it makes {count} instances"):
        triton._check_instances(Path("base/config.pbtxt"), {"instance_group": groups})


def test_a_family_without_a_batch_dimension(triton: Any) -> None:
    config = AutoComplete(0, family="causal-lm")
    triton.TritonPythonModel.auto_complete_config(config)
    assert (config.max_batch_size, config.batching, config.policy) == (0, False, {"decoupled": True})
    dims = {each["name"]: each["dims"] for each in (*config.inputs, *config.outputs)}
    assert (dims["text_input"], dims["stream"], dims["VFM_0"], dims["TASK"]) == ([1], [1], [3], [-1, 1])
    with pytest.raises(BackboneRefused) as caught:
        triton.TritonPythonModel.auto_complete_config(AutoComplete(8, family="causal-lm"))
    assert caught.value.field == "max_batch_size"


def test_a_stub_that_loses_arrays_is_refused(triton: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    triton._check_numpy()
    monkeypatch.setattr(Tensor, "from_dlpack", staticmethod(lambda name, memory: Tensor(name, memory[:0])))
    with pytest.raises(BackboneRefused, match=rf"numpy {np.__version__}.*numpy<2"):
        triton._check_numpy()


# -- from load to unload


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    save_tiny(root / BACKBONE / "weights")
    write_task(root, "embed", 2, task=text_task({"kind": "embedding"}), sizes={"EMBEDDING": 32})
    return root


@pytest.fixture(scope="module")
def model(triton: Any, repository: Path) -> Iterator[Any]:
    logger = logging.getLogger("fmplex")
    before = (logger.handlers, logger.propagate, logger.level)
    document = {
        "name": BACKBONE,
        "max_batch_size": 8,
        "parameters": {"model": {"string_value": "weights"}, "threads": {"string_value": "1"}},
    }
    model = triton.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(document),
            "model_name": BACKBONE,
            "model_repository": str(repository / BACKBONE),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    yield model
    model.finalize()
    gc.unfreeze()
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def text(*rows: str) -> list[Tensor]:
    return [Tensor("TEXT", bytes_of(*rows))]


def test_what_was_loaded_is_never_looked_through_again(model: Any) -> None:
    assert gc.get_freeze_count() > 100_000


def test_requests_are_answered_later_each_once(model: Any) -> None:
    requests = [TritonRequest(text("w1", "w2 w3"), ["EMBEDDING", "TRUNCATED", "VFM_2"]) for _ in range(20)]
    model.execute(requests)
    for request in requests:
        response = request.sender.response()
        assert response.error is None
        assert response.tensors["EMBEDDING"].shape == (2, 32)
        assert response.tensors["VFM_2"].shape == (2, 3)
        assert response.tensors["TRUNCATED"].tolist() == [[False], [False]]


@pytest.mark.parametrize(
    ("inputs", "outputs", "parameters", "code"),
    [
        (text("w1"), ["EMBEDDING"], "", "INVALID_ARG"),
        (text("w1"), ["EMBEDDING", "VFM_2", "VFM_3"], "", "INVALID_ARG"),
        (text("w1"), ["EMBEDDING", "VFM_9"], "", "INVALID_ARG"),
        (text("w1"), ["EMBEDDING", "VFM_2"], '{"slo_ms": "soon"}', "INVALID_ARG"),
        ([Tensor("TEXT", np.array([[b"\xff"]], dtype=np.object_))], ["EMBEDDING", "VFM_2"], "", "INVALID_ARG"),
        (text("w1"), ["EMBEDDING", "VFM_2"], "{ half", "INTERNAL"),
        (text("w1"), ["SCORES", "VFM_2"], "", "INVALID_ARG"),
        ([Unreadable()], ["EMBEDDING", "VFM_2"], "", "INTERNAL"),
        ([], ["EMBEDDING", "VFM_2"], "", "INVALID_ARG"),
    ],
)
def test_what_is_wrong_with_one_request_is_its_own_matter(
    model: Any, inputs: list[Any], outputs: list[str], parameters: str, code: str
) -> None:
    wrong, right = TritonRequest(inputs, outputs, parameters), TritonRequest(text("w1"), ["VFM_2"], '{"slo_ms": 50}')
    model.execute([wrong, right])
    response = wrong.sender.response()
    assert response.error is not None
    assert response.error.code == getattr(TritonError, code)
    assert right.sender.response().error is None


def test_an_id_that_is_no_text_is_its_own_requests_matter(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `execute` raises is the server's answer to all requests of the call."""
    before, wrong, after = (TritonRequest(text("w1"), ["VFM_2"]) for _ in range(3))
    monkeypatch.setattr(wrong, "request_id", lambda: b"\xff".decode())
    model.execute([before, wrong, after])
    response = wrong.sender.response()
    assert response.error is not None
    assert response.error.code == TritonError.INVALID_ARG
    assert "the request's id or a parameter of it is not valid UTF-8" in response.error.message
    assert before.sender.response().error is after.sender.response().error is None


@pytest.mark.parametrize("outputs", [["STATUS"], ["EMBEDDING", "STATUS", "VFM_0", "VFM_2"]])
def test_a_request_for_the_status_is_answered_with_that_alone(model: Any, outputs: list[str]) -> None:
    """Also where all outputs are requested, as Triton's `generate` does."""
    request = TritonRequest([Tensor("TASK", bytes_of(""))], outputs)
    model.execute([request])
    response = request.sender.response()
    assert response.error is None
    assert response.tensors.keys() == {"STATUS"}
    status = BackboneStatus.model_validate_json(response.tensors["STATUS"].item())
    assert (status.name, status.family, [task.name for task in status.tasks]) == (BACKBONE, "text-encoder", ["embed"])


def test_a_line_that_cannot_be_logged_is_no_error_of_who_logs_it(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(text: str) -> None:
        raise UnicodeEncodeError("utf-8", text, 0, 1, "odd")

    log = logging.getLogger("fmplex")
    log.info("task %s: \ud800 \0 \x1b[31m né", "x\udcff n\udcc3\udca9")
    assert Logger.lines[-1] == ("info", "task x\\xff né: \\ud800 \\x00 \\x1b[31m né")
    monkeypatch.setattr(Logger, "log_info", refuse)
    log.info("said")
    assert "UnicodeEncodeError" in capsys.readouterr().err


def test_an_error_says_names_that_are_no_text(triton: Any) -> None:
    sender = Sender()
    error = TaskRefused("x\udcff/task.json", "weights", "'\ud800\0' is no file", "Rename it")
    triton._send(triton.Destination(sender, [], decoupled=False), Failed(error), True)
    response = sender.response()
    assert response.error is not None
    assert response.error.message == "x\\xff/task.json: weights: '\\ud800\\x00' is no file. Rename it"


def test_pythons_log_goes_to_tritons(model: Any) -> None:
    log = logging.getLogger("fmplex")
    for level in (logging.INFO, logging.WARNING, logging.CRITICAL):
        log.log(level, "said at %d", level)
    assert Logger.lines[-3:] == [("info", "said at 20"), ("warn", "said at 30"), ("error", "said at 50")]
