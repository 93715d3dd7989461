"""Parameters of backbones: strings of a config.pbtxt, checked."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fmplex_backend.repository.parameters import BackboneConfig


def test_a_batch_ends_at_95_percent_of_a_full_one_by_default() -> None:
    assert BackboneConfig.model_validate({"model": "m"}).batch_efficiency == 0.95
    assert BackboneConfig.model_validate({"model": "m", "batch_efficiency": "1"}).batch_efficiency == 1.0


@pytest.mark.parametrize("wrong", ["0.5", "1.01", "nan", "inf", "-1", "95%", ""])
def test_a_batch_efficiency_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BackboneConfig.model_validate({"model": "m", "batch_efficiency": wrong})
    assert caught.value.errors()[0]["loc"] == ("batch_efficiency",)


def test_strings_become_numbers() -> None:
    config = BackboneConfig.model_validate({"model": "m", "vfm_slots": "12", "threads": "0"})
    assert (config.vfm_slots, config.threads, config.dtype, config.scheduler) == (12, 0, "auto", "bfq")


@pytest.mark.parametrize(
    "wrong",
    [{"vfm_slots": "0"}, {"max_queue": "0"}, {"threads": "-1"}, {"scheduler": "lifo"}, {"dtype": "int8"}, {"x": "1"}],
)
def test_what_is_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        BackboneConfig.model_validate({"model": "m"} | wrong)
    assert caught.value.errors()[0]["loc"] == tuple(wrong)
