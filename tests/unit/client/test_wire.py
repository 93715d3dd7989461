"""Addresses, interfaces, requests and backoff, without a server."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fmplex import ServerProblem, TaskProblem
from fmplex.client.wire import Address, Interface, array_of, backoff, batches, items_in


def test_an_interface_out_of_a_configuration() -> None:
    config = {
        "name": "spam",
        "max_batch_size": 16,
        "parameters": {"labels": {"string_value": '["ham", "spam"]'}, "decoder": {"string_value": "classification"}},
        "input": [{"name": "TEXT"}],
        "output": [{"name": "SCORES"}, {"name": "LABEL"}, {"name": "usage"}],
    }
    assert Interface.of(config) == Interface("spam", "classification", ("ham", "spam"), ("SCORES", "LABEL"), 16)
    numbers = {"name": "n", "input": [{"name": "FEATURES", "dims": ["4"]}], "output": [{"name": "SCORES"}]}
    numbers["model_transaction_policy"] = {"decoupled": True}
    assert Interface.of(numbers) == Interface(
        "n", "regression", (), ("SCORES",), 1, "FEATURES", 4, streams=True, batched=False
    )
    plain = {"name": "e", "input": [{"name": "FEATURES"}], "output": [{"name": "EMBEDDING"}]}
    assert Interface.of(plain) == Interface("e", "embedding", (), ("EMBEDDING",), 1, "FEATURES", batched=False)


@pytest.mark.parametrize(
    ("url", "host", "http", "ssl"),
    [
        ("localhost:8001", "localhost:8001", False, False),
        ("localhost", "localhost:8001", False, False),
        (" grpc://10.0.0.7/ ", "10.0.0.7:8001", False, False),
        ("[::1]", "[::1]:8001", False, False),
        ("[::1]:9", "[::1]:9", False, False),
        ("grpcs://host:1/", "host:1", False, True),
        ("grpcs://host", "host", False, True),
        ("http://host:8000", "host:8000", True, False),
        ("http://host:8000/prefix", "host:8000/prefix", True, False),
        ("https://host", "host", True, True),
    ],
)
def test_addresses(url: str, host: str, http: bool, ssl: bool) -> None:
    found = Address.of(url)
    assert (found.host, found.http, found.ssl) == (host, http, ssl)
    assert found.url.endswith(host)


@pytest.mark.parametrize("url", ["ftp://host", "", "http://", "localhost:abc", "localhost:8001/x", "::1", "a b:8001"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ServerProblem, match=r"is no address of a server. Say localhost:8001 or http://localhost:8000"):
        Address.of(url)


def test_one_item_or_several() -> None:
    assert items_in("TEXT", "a rose") == ["a rose"]
    assert items_in("TEXT", ("a", "b")) == ["a", "b"]
    assert items_in("FEATURES", np.ones((2, 3)))[1].tolist() == [1.0, 1.0, 1.0]
    assert items_in("SMELL", "rose") == ["rose"]


def test_a_table_or_its_file_is_one_series(tmp_path: Path) -> None:
    frame = pd.DataFrame({"day": ["mon", "tue"], "power": [1.5, 2.5], "heat": [10, 11]})
    frame.to_csv(tmp_path / "rates.csv", index=False)
    for given in (frame, tmp_path / "rates.csv", str(tmp_path / "rates.csv")):
        (item,) = items_in("SERIES", given)
        assert array_of("SERIES", [item])[0].tolist() == [[1.5, 10], [2.5, 11]]
    assert [each.steps for each in items_in("SERIES", [frame, [1, 2, 3]])] == [2, 3]
    with pytest.raises(TaskProblem, match=r"there is no file none\.csv"):
        items_in("SERIES", "none.csv")


def test_rows_in_batches() -> None:
    assert list(batches(["a", "b", "c"], 2)) == [["a", "b"], ["c"]]
    assert array_of("TEXT", ["é"]).tolist() == [["é".encode()]]


def test_numbers_go_as_they_are() -> None:
    found = array_of("FEATURES", [[0.5, 1], np.array([2, 3])])
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize("rows", [["a rose"], [1.0, 2.0], [[1.0], [1.0, 2.0]], [["tall"]], [None]])
def test_rows_that_are_no_numbers(rows: list[Any]) -> None:
    with pytest.raises(TaskProblem, match="reads rows of numbers, all of one length"):
        array_of("FEATURES", rows)


def test_rows_that_are_no_texts() -> None:
    with pytest.raises(TaskProblem, match=r"reads texts, not \[0.5\]"):
        array_of("TEXT", ["a rose", [0.5]])


def test_backoff_is_exponential_with_jitter_up_to_a_limit() -> None:
    found = list(islice(backoff(), 2000))
    most = [min(2.0, 0.05 * 2 ** min(number, 20)) for number in range(2000)]
    assert all(0.5 * limit <= pause <= limit for pause, limit in zip(found, most, strict=True))
