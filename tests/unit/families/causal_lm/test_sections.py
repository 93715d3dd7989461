"""What a generating task's sections may say together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fmplex_backend.families.causal_lm.sections import Generator


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"min_tokens": 300}, "min_tokens is 300, more than max_tokens, which is 256"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens is 3, more than max_tokens, which is 2"),
        ({"chat": False, "system": "You are brief."}, "need a chat"),
    ],
)
def test_a_task_that_could_answer_nothing_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Generator(**fields)
    Generator(min_tokens=2, max_tokens=2)
