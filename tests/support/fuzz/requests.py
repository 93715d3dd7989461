"""Requests that no client of good will sends, over HTTP and gRPC; the same seed gives the same request.

None asks for `classification` of strings: that ends tritonserver 2.51 itself (docs/operate.md).
"""

from __future__ import annotations

import gzip
import http.client
import json
import random
from collections.abc import Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

TIMEOUT_S = 30.0
TYPES = ("BYTES", "FP32", "INT64", "BOOL", "UINT8", "FP16", "BF16", "", "bytes", "STRING", "\x00", "X" * 1000)
SHAPES: tuple[Any, ...] = (
    *([1, 1], [1], [], [0, 1], [-1, 1], [1, -1], [2**31, 1], [2**62, 4], [33, 1], [1, 2], [1] * 50, [1, 1, 1]),
    *("x", None, [1.5, 1], ["1", 1], [[1], 1], {}, 1),
)
DATA: tuple[Any, ...] = (
    *(["hi"], "hi", [], [None], [1], [1.5], [True], [["hi"]], [[["hi"]]], [{}], [{"a": []}], {}, None, 7),
    *(["\ud800"], ["\x00"], ["a" * 1_000_000], ["é" * 10_000], ["hi"] * 33, ["hi"] * 5000, [[]], [["a"], ["b", "c"]]),
)
NUMBERS: tuple[Any, ...] = (0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 1.5, 1e308, "1", "x", None, True, [], {})
KEYS = (
    *("slo_ms", "timeout", "priority", "sequence_id", "sequence_start", "binary_data_output", "binary_data_size"),
    *(
        "shared_memory_region",
        "shared_memory_offset",
        "shared_memory_byte_size",
        "binary_data",
        "\ud800",
        "",
        "x" * 1000,
    ),
    *("triton_enable_empty_final_response", "triton_final_response", "max_tokens"),
)
OUTPUTS = ("SCORES", "LABEL", "usage", "TRUNCATED", "VFM_0", "VFM_1", "VFM_999", "STATUS", "EMBEDDING", "", "\x00", "é")
VERSIONS = ("", "/versions/1", "/versions/0", "/versions/-1", "/versions/99999999999999999999", "/versions/x")
VERBS = ("infer", "infer", "infer", "infer", "generate", "generate_stream", "ready", "config", "stats", "load", "")
METHODS = ("POST", "POST", "POST", "POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "BREW")


def http_request(seed: int, models: Sequence[str]) -> tuple[str, str, dict[str, str], bytes]:
    """Method, path, headers and body of a request to one of these models, or to none."""
    chance = random.Random(seed)
    model = chance.choice((*models, *models, "none", "%ff", "..", "%2e%2e", "a" * 5000, "%00", "é".encode().hex()))
    path = f"/v2/models/{model}{chance.choice(VERSIONS)}/{chance.choice(VERBS)}"
    if chance.random() < 0.1:
        path = chance.choice(
            ("/", "/v2", "/v2/", "//", "/v2/repository/index", "/v2/logging", "/v3", "/v2/health/x", "*")
        )
    headers = {"Content-Type": chance.choice(("application/json", "text/html", "application/octet-stream", "x" * 5000))}
    body = json.dumps(_document(chance)).encode()
    match chance.randrange(8):
        case 0:
            body = body[: chance.randrange(len(body))]
        case 1:
            body = chance.randbytes(chance.choice((0, 1, 100, 100_000)))
        case 2:
            headers["Inference-Header-Content-Length"] = str(chance.choice((*NUMBERS, len(body), len(body) - 1)))
            body += chance.randbytes(chance.choice((0, 4, 100)))
        case 3:
            headers["Content-Encoding"] = chance.choice(("gzip", "deflate", "br", "x"))
            body = gzip.compress(body) if chance.random() < 0.7 else body
        case 4:
            body = chance.choice(
                (b"[" * 50_000, b'{"a":' * 50_000, b"null", b'"x"', b"1e999", b"{}", b"[]", b"\xff\xfe")
            )
        case _:
            pass
    return chance.choice(METHODS), path, headers, body


def _document(chance: random.Random) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["hi"]}
    document: dict[str, Any] = {"inputs": [tensor]}
    for _ in range(chance.choice((1, 1, 2, 4))):
        match chance.randrange(9):
            case 0:
                tensor["datatype"] = chance.choice(TYPES)
            case 1:
                tensor["shape"] = chance.choice(SHAPES)
            case 2:
                tensor["data"] = chance.choice(DATA)
            case 3:
                tensor["name"] = chance.choice(("TEXT", "text", "", "FEATURES", "\ud800", "TEXT\x00", "x" * 10_000))
            case 4:
                tensor["parameters"] = {chance.choice(KEYS): chance.choice(NUMBERS)}
            case 5:
                document["parameters"] = {chance.choice(KEYS): chance.choice(NUMBERS) for _ in range(3)}
            case 6:
                document["outputs"] = [{"name": name} for name in chance.sample(OUTPUTS, chance.choice((1, 2, 5)))]
            case 7:
                document["inputs"] = chance.choice(([], None, {}, [None], [tensor, tensor], [tensor] * 100, "x"))
            case _:
                document["id"] = chance.choice(("", "x" * 100_000, "\x00", 7, None, [], "é"))
    if chance.random() < 0.3:  # the simple form of generate
        document = {"TEXT": chance.choice(DATA), **{key: chance.choice(NUMBERS) for key in chance.sample(KEYS, 2)}}
    return document


def send_http(address: str, request: tuple[str, str, dict[str, str], bytes]) -> int | None:
    """The status, 0 where the server closed the connection, None where it says nothing in time."""
    method, path, headers, body = request
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except (http.client.HTTPException, ConnectionError):
        return 0
    except TimeoutError:
        return None
    finally:
        connection.close()


def grpc_request(seed: int, models: Sequence[str]) -> Any:
    """A ModelInferRequest."""
    chance = random.Random(seed)
    request = service_pb2.ModelInferRequest(
        model_name=chance.choice((*models, *models, *models, "none", "", "a" * 9999))
    )
    tensor = request.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 1])
    raw = b"\x02\x00\x00\x00hi"
    for _ in range(chance.choice((1, 1, 2, 4))):
        match chance.randrange(8):
            case 0:
                tensor.datatype = chance.choice(TYPES)
            case 1:
                shape = chance.choice([shape for shape in SHAPES if isinstance(shape, list)])
                tensor.shape[:] = [int(size) for size in shape if isinstance(size, int)]
            case 2:
                lies = (b"", b"\x01", b"\xff\xff\xff\xffhi", b"\x00\x00\x00\x80", b"\x02\x00\x00\x00\xff\xfe", raw * 40)
                raw = chance.choice((*lies, chance.randbytes(chance.choice((1, 64, 100_000)))))
            case 3:
                tensor.contents.bytes_contents.extend(chance.choice(([b"hi"], [b""], [b"\xff"], [b"a"] * 100)))
                raw = b"" if chance.random() < 0.7 else raw
            case 4:
                tensor.contents.fp32_contents.extend([float("nan")] * chance.choice((1, 1000)))
            case 5:
                given = request.parameters if chance.random() < 0.5 else tensor.parameters
                key = chance.choice([key for key in KEYS if key.isascii()])
                number = chance.choice((0, 1, -1, 2**62))
                match chance.randrange(3):
                    case 0:
                        given[key].int64_param = number
                    case 1:
                        given[key].string_param = chance.choice(("", "x", "nan", "1" * 1000))
                    case _:
                        given[key].bool_param = bool(number)
            case 6:
                for name in chance.sample(OUTPUTS, chance.choice((1, 3))):
                    request.outputs.add(name=name)
            case _:
                request.model_version = chance.choice(("1", "0", "-1", "x", "9" * 30))
                request.id = "x" * chance.choice((0, 100_000))
    request.raw_input_contents.extend([raw] * chance.choice((1, 1, 1, 1, 0, 2)) if raw else [])
    return request


def send_grpc(address: str, request: Any) -> str:
    """The status' name; DEADLINE_EXCEEDED where the server says nothing."""
    with grpc.insecure_channel(address) as channel:
        try:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
