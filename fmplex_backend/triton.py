"""The boundary to Triton: tensors to calls, replies to responses, errors to statuses. Only importer of pb_utils.

Triton imports this file in a throw-away interpreter too, for `auto_complete_config`: torch is imported only when a
backbone is really loaded.
"""

from __future__ import annotations

import gc
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from fmplex_backend.error_status import STATUS_IN_ERRORS, with_status
from fmplex_backend.errors import BackboneRefused, ExecutionFailed, FmplexError, InvalidRequest
from fmplex_backend.families import family
from fmplex_backend.files import native
from fmplex_backend.interface import STATUS, TASK, backbone_outputs, tag_of
from fmplex_backend.printable import printable
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.server_variables import GRPC_ADDRESS, HTTP_ADDRESS, METRICS_S
from fmplex_backend.serving.intake import Call
from fmplex_backend.serving.loaded_entries import LoadedEntries
from fmplex_backend.serving.metrics import Publisher, period_of
from fmplex_backend.serving.readiness import Readiness
from fmplex_backend.serving.server_models import ServerModels
from fmplex_backend.serving.service import Service
from fmplex_backend.shared_memory import unlink_region
from fmplex_backend.types import Answer, Failed, Reply

if TYPE_CHECKING:
    from fmplex_backend.scheduling import CostModel
    from fmplex_backend.types import Runtime

log = logging.getLogger("fmplex")
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """One backbone: what Triton calls."""

    service: Service
    publisher: Publisher
    models: ServerModels
    decoupled: bool  # whether the config's transaction policy lets a request have several responses
    batched: bool = True  # whether its tensors have a batch dimension; in here all have

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Add the family's tensors and the tags, so that a backbone's config stays ten lines."""
        document = auto_complete_model_config.as_dict()
        file = Path(document["name"], "config.pbtxt")
        config = load_backbone_config(file, _parameters(document))
        served = family(config.family)
        task, status = (replace(each, dims=(*served.leading, *each.dims)) for each in (TASK, STATUS))
        for spec in (*(each.tensor for each in served.inputs), *served.optional_inputs, task):
            auto_complete_model_config.add_input(
                {"name": spec.name, "data_type": spec.data_type, "dims": list(spec.dims), "optional": True}
            )
        for spec in backbone_outputs(served.outputs, config.vfm_slots, 0 if served.streams else config.group_members):
            dims = (status if spec is STATUS else spec).dims
            auto_complete_model_config.add_output({"name": spec.name, "data_type": spec.data_type, "dims": list(dims)})
        if not served.batched:
            _check_unbatched(file, document)
        elif document["max_batch_size"] == 0:
            auto_complete_model_config.set_max_batch_size(32)
        if served.streams:
            _check_decoupled(file, document)
            auto_complete_model_config.set_model_transaction_policy({"decoupled": True})
        if served.batched:
            auto_complete_model_config.set_dynamic_batching()  # waiting requests then share one call of `execute`
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the backbone and the tasks that are there."""
        # The 400,000 objects of torch and transformers live as long as the process. Collections while they are made
        # scan them again and again, for a sixth of the load. One that scans them afterwards would stop every thread for
        # 160 ms, which the tasks of the current batch would be charged for.
        gc.disable()
        try:
            self._load(args)
            gc.collect()
            gc.freeze()
        finally:
            gc.enable()

    def _load(self, args: dict[str, str]) -> None:
        _log_to_triton()
        unlink_region()
        _check_numpy()
        document = json.loads(args["model_config"])
        directory = Path(native(args["model_repository"]))
        file = directory / "config.pbtxt"
        config = load_backbone_config(file, _parameters(document))
        period_s = period_of(os.environ.get(METRICS_S))
        self.decoupled = _is_decoupled(document)
        _check_instances(file, document)

        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.batched = family(config.family).batched
        max_items = family(config.family).max_items(config, document["max_batch_size"])

        def make_runtime(cost: CostModel) -> Runtime:
            return family(config.family).make_runtime(config, file, device, max_items, cost.predict)

        self.models = ServerModels(
            directory,
            is_ready=getattr(pb_utils, "is_model_ready", None),  # None: a server before 23.07
            unload=getattr(pb_utils, "unload_model", None),
            readiness=Readiness(os.environ.get(HTTP_ADDRESS, "")),
            entries=LoadedEntries(os.environ.get(GRPC_ADDRESS, ""), args["model_name"]),
        )
        self.service = Service(
            directory.parent, args["model_name"], config, max_items, make_runtime, models=self.models
        )
        self.service.start()
        self.publisher = Publisher(self.service, pb_utils.MetricFamily, period_s)
        self.publisher.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests in and return: they are answered later, from the reply threads."""
        self.models.is_serving = True
        calls = []
        for request in requests:
            to = Destination(request.get_response_sender(), request.requested_output_names(), self.decoupled)
            try:
                calls.append(self._call(request, to))
            except Exception as error:  # raised from here, it would be the answer to every request of the call
                _send(to, Failed(_unreadable(error)), True)
        self.service.submit(*calls)
        self.service.coalesce_calls()

    def _call(self, request: Any, to: Destination) -> Call:
        """Copy what a request holds; raises whatever pb_utils, numpy and json raise."""
        # Arrays with memory of their own (python_backend/src/pb_tensor.cc copies the server's): they may stay when the
        # request has been answered.
        inputs = {tensor.name(): self._with_batch(tensor.as_numpy()) for tensor in request.inputs()}
        parameters = json.loads(text) if (text := request.parameters()) else {}
        request_id, requested = request.request_id(), to.names
        to.status_in_errors = STATUS_IN_ERRORS in parameters
        asks_status = TASK.name in inputs
        to.batched = self.batched or asks_status
        if asks_status:
            to.names = [STATUS.name]  # `generate` requests every output there is
        return Call(inputs, requested, parameters, partial(_send, to), to.sender.is_cancelled, request_id)

    def _with_batch(self, array: Any) -> Any:
        return array if self.batched else array[None]

    def finalize(self) -> None:
        """Answer the requests that are left, and end the threads."""
        self.publisher.stop()
        self.service.stop()
        self.models.close()


def _unreadable(error: Exception) -> FmplexError:
    if isinstance(error, UnicodeDecodeError):  # over HTTP the server passes on any bytes
        return InvalidRequest(f"the request's id or a parameter of it is not valid UTF-8: {error}. Send one that is")
    return ExecutionFailed(f"the request cannot be read: {error}")


@dataclass(slots=True)
class Destination:
    """Where a request's responses go."""

    sender: Any
    names: list[str]  # the requested outputs, the tag among them
    decoupled: bool  # several responses may be sent
    status_in_errors: bool = False  # the client sees no other
    batched: bool = True  # else tensors go without the batch dimension


def _send(to: Destination, reply: Reply, final: bool) -> None:
    """Send a part of a reply, or the last one: exactly one final response, whatever the reply is.

    Raises ExecutionFailed where a part cannot be sent; the request then fails.
    """
    if isinstance(reply, Answer) and not final:
        _send_part(to, reply)
        return
    response = _final_response(reply, to)
    try:
        to.sender.send(response, flags=FINAL)
    except Exception as error:  # e.g. too little shared memory for these tensors: an error needs less
        log.exception("sending an answer")
        with suppress(Exception):  # a sender that is closed has sent its final response
            to.sender.send(_error_response(ExecutionFailed(f"the answer cannot be sent: {error}"), to), flags=FINAL)


def _send_part(to: Destination, part: Answer) -> None:
    """A part has some of the requested outputs, and the receipt."""
    if not to.decoupled:
        raise ExecutionFailed(
            "its family answers in parts, but the backbone's config.pbtxt does not let a request have several "
            "responses: model_transaction_policy { decoupled: true }"
        )
    names = [name for name in to.names if name in part.tensors or tag_of(name) is not None]
    try:
        to.sender.send(_response(part, names, to.batched))
    except Exception as error:
        raise ExecutionFailed(f"a part of the answer cannot be sent: {error}") from error


def _final_response(reply: Reply, to: Destination) -> Any:
    """The answer's tensors, or an error: also where a requested output is missing or Triton does not take a tensor."""
    if isinstance(reply, Failed):
        return _error_response(reply.error, to)
    missing = [name for name in to.names if tag_of(name) is None and name not in reply.tensors]
    if missing:  # of a request to the backbone itself: a task's entry is checked when it is read
        gives = ", ".join(reply.tensors)
        return _error_response(InvalidRequest(f"this task does not make {', '.join(missing)}, but {gives}"), to)
    try:
        return _response(reply, to.names, to.batched)
    except Exception as error:
        return _error_response(ExecutionFailed(f"the answer's tensors cannot be sent: {error}"), to)


def _response(answer: Answer, names: list[str], batched: bool) -> Any:
    """Tensors [n, ...] in the order of `names`; the tag's is the receipt, the same for each of the n items.

    Without a batch dimension they are the one item's.
    """
    tensors = []
    for name in names:
        if tag_of(name) is None:
            array = np.ascontiguousarray(answer.tensors[name])
        else:
            items = len(next(iter(answer.tensors.values())))
            array = np.array([answer.usage] * items, dtype=np.int64)
        tensors.append(pb_utils.Tensor(name, array if batched else array[0]))
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _error_response(error: FmplexError, to: Destination) -> Any:
    code, message = getattr(pb_utils.TritonError, error.code), printable(str(error))
    if to.status_in_errors:
        message = with_status(error.code, message)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _parameters(document: dict[str, Any]) -> dict[str, str]:
    return {key: value["string_value"] for key, value in document.get("parameters", {}).items()}


def _is_decoupled(document: dict[str, Any]) -> bool:
    return bool(document.get("model_transaction_policy", {}).get("decoupled"))


def _check_decoupled(file: Path, document: dict[str, Any]) -> None:
    """A family that answers in parts needs it; where the config says nothing of it, it is set."""
    if "model_transaction_policy" in document and not _is_decoupled(document):
        raise BackboneRefused(
            file,
            "model_transaction_policy.decoupled",
            "it is false, but the backbone's family answers in parts",
            "Say true, or leave the field out",
        )


def _check_unbatched(file: Path, document: dict[str, Any]) -> None:
    if document["max_batch_size"]:
        raise BackboneRefused(
            file,
            "max_batch_size",
            f"it is {document['max_batch_size']}, but a request of this family has no batch dimension",
            "Leave it out; docs/serve.md names the parameter that says how many requests run together",
        )


def _check_instances(file: Path, document: dict[str, Any]) -> None:
    groups = document.get("instance_group", [])
    count = sum(group.get("count", 1) * max(1, len(group.get("gpus", []))) for group in groups)
    if count > 1:
        raise BackboneRefused(
            file,
            "instance_group",
            f"it makes {count} instances, each with a copy of the weights and queues of its own",
            "Set count: 1, and one GPU",
        )


def _check_numpy() -> None:
    """Send an array through the stub: an old stub silently copies nothing of a numpy 2 array.

    A tensor made of an array returns that array itself; only one made of foreign memory, as inputs are, shows it.
    """
    sent = np.arange(1, 65, dtype=np.int64)
    try:
        back = pb_utils.Tensor.from_dlpack("probe", pb_utils.Tensor("probe", sent).to_dlpack()).as_numpy()
        same = back.shape == sent.shape and bool((back == sent).all())
    except Exception:  # whatever a mismatch of binary interfaces raises
        same = False
    if not same:
        raise BackboneRefused(
            "the server's Python environment",
            f"numpy {np.__version__}",
            "this server's Python stub cannot read arrays of this numpy: every output would be empty",
            'Install "numpy<2" into the environment that the server uses, or use a newer server',
        )


class _TritonLog(logging.Handler):
    """Python's log records, in Triton's log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(record.levelno, printable(self.format(record)))
        except Exception:
            self.handleError(record)

    def _write(self, level: int, text: str) -> None:
        logger = pb_utils.Logger
        if level >= logging.ERROR:
            logger.log_error(text)
        elif level >= logging.WARNING:
            logger.log_warn(text)
        else:
            logger.log_info(text)


def _log_to_triton() -> None:
    log.setLevel(logging.INFO)
    log.handlers = [_TritonLog()]
    log.propagate = False
