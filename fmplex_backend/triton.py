"""The boundary to Triton: tensors to calls, replies to responses, errors to statuses. Only importer of pb_utils.

Triton imports this file in a throw-away interpreter too, for `auto_complete_config`: torch is imported only when a
backbone is really loaded.
"""

from __future__ import annotations

import gc
import json
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from fmplex_backend.config import load_backbone_config
from fmplex_backend.errors import BackboneRefused, ExecutionFailed, FmplexError, InvalidRequest
from fmplex_backend.interface import FAMILY_INPUTS, FAMILY_OUTPUTS, USAGE_DIMS, tag_name, tag_of
from fmplex_backend.metrics import Publisher
from fmplex_backend.service import Call, Service
from fmplex_backend.types import Failed, Reply

if TYPE_CHECKING:
    from fmplex_backend.scheduling import CostModel
    from fmplex_backend.types import Runtime

log = logging.getLogger("fmplex")
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """One backbone: what Triton calls."""

    service: Service
    publisher: Publisher

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Add the family's tensors and the tags, so that a backbone's config stays ten lines."""
        document = auto_complete_model_config.as_dict()
        config = load_backbone_config(Path(document["name"], "config.pbtxt"), _parameters(document))
        for spec in FAMILY_INPUTS[config.family]:
            auto_complete_model_config.add_input(
                {"name": spec.name, "data_type": spec.data_type, "dims": list(spec.dims), "optional": True}
            )
        for spec in FAMILY_OUTPUTS[config.family]:
            auto_complete_model_config.add_output(
                {"name": spec.name, "data_type": spec.data_type, "dims": list(spec.dims)}
            )
        for vfm in range(config.vfm_slots):
            auto_complete_model_config.add_output(
                {"name": tag_name(vfm), "data_type": "TYPE_INT64", "dims": list(USAGE_DIMS)}
            )
        if document["max_batch_size"] == 0:
            auto_complete_model_config.set_max_batch_size(32)
        auto_complete_model_config.set_dynamic_batching()  # requests that wait cross over to this process together
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the backbone and the tasks that are there."""
        _log_to_triton()
        _check_numpy()
        document = json.loads(args["model_config"])
        directory = Path(args["model_repository"])
        file = directory / "config.pbtxt"
        config = load_backbone_config(file, _parameters(document))
        _check_instances(file, document)

        import torch

        from fmplex_backend.runtime.text_encoder import TextEncoderRuntime

        gpu = args["model_instance_kind"] == "GPU"
        device = torch.device(f"cuda:{args['model_instance_device_id']}" if gpu else "cpu")
        max_items = document["max_batch_size"]

        def make_runtime(cost: CostModel) -> Runtime:
            return TextEncoderRuntime(config, file, device, max_items, cost.predict)

        self.service = Service(directory.parent, args["model_name"], config, max_items, make_runtime)
        self.service.start()
        self.publisher = Publisher(self.service, pb_utils.MetricFamily)
        self.publisher.start()
        # Of 400,000 objects that torch and transformers made none goes away. Looking through them would stop every
        # thread for 160 ms, now and then, and charge it to whoever is in the batch.
        gc.collect()
        gc.freeze()

    def execute(self, requests: list[Any]) -> None:
        """Take requests in and return: they are answered later, from the reply thread."""
        for request in requests:
            sender = request.get_response_sender()
            names = request.requested_output_names()
            try:
                inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                wishes = json.loads(request.parameters() or "{}")
            except Exception as error:  # pb_utils raises whatever numpy and json raise
                _send((sender, names), Failed(ExecutionFailed(f"the request cannot be read: {error}")))
                continue
            self.service.submit(Call(inputs, names, wishes, partial(_send, (sender, names)), sender.is_cancelled))

    def finalize(self) -> None:
        """Answer what is left, end the threads."""
        self.publisher.stop()
        self.service.stop()


def _send(where: tuple[Any, list[str]], reply: Reply) -> None:
    """Exactly one final response, whatever the reply is."""
    sender, names = where
    try:
        response = _response(reply, names)
    except Exception as error:  # a decoder's tensors that Triton does not take
        response = _error_response(ExecutionFailed(f"the answer's tensors cannot be sent: {error}"))
    try:
        sender.send(response, flags=FINAL)
    except Exception as error:  # no shared memory left for this answer: the next one's may be smaller
        log.exception("sending an answer")
        with suppress(Exception):  # where the sender has closed itself, the server has answered
            sender.send(_error_response(ExecutionFailed(f"the answer cannot be sent: {error}")), flags=FINAL)


def _response(reply: Reply, names: list[str]) -> Any:
    if isinstance(reply, Failed):
        return _error_response(reply.error)
    missing = [name for name in names if tag_of(name) is None and name not in reply.tensors]
    if missing:  # of a request to the backbone itself: a task's entry is checked when it is read
        gives = ", ".join(reply.tensors)
        return _error_response(InvalidRequest(f"this task does not make {', '.join(missing)}, but {gives}"))
    tensors = []
    for name in names:
        if tag_of(name) is None:
            tensors.append(pb_utils.Tensor(name, np.ascontiguousarray(reply.tensors[name])))
        else:
            items = len(next(iter(reply.tensors.values())))
            receipt = np.tile(np.array(reply.usage, dtype=np.int64), (items, 1))
            tensors.append(pb_utils.Tensor(name, receipt))
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _error_response(error: FmplexError) -> Any:
    code = getattr(pb_utils.TritonError, error.code)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


def _parameters(document: dict[str, Any]) -> dict[str, str]:
    return {key: value["string_value"] for key, value in document.get("parameters", {}).items()}


def _check_instances(file: Path, document: dict[str, Any]) -> None:
    groups = document.get("instance_group", [])
    count = sum(group.get("count", 1) * max(1, len(group.get("gpus", []))) for group in groups)
    if count > 1:
        raise BackboneRefused(
            file,
            "instance_group",
            f"it makes {count} instances, each with a copy of the weights and queues of its own",
            "Say count: 1, and one GPU",
        )


def _check_numpy() -> None:
    """Send an array through the stub: an old stub copies nothing of an array of numpy 2, and says nothing.

    The array that a tensor was made of comes back as it is; only one made of memory, as inputs are, shows it.
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
        logger = pb_utils.Logger
        if record.levelno >= logging.ERROR:
            logger.log_error(self.format(record))
        elif record.levelno >= logging.WARNING:
            logger.log_warn(self.format(record))
        else:
            logger.log_info(self.format(record))


def _log_to_triton() -> None:
    log.setLevel(logging.INFO)
    log.handlers = [_TritonLog()]
    log.propagate = False
