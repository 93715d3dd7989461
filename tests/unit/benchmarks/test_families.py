"""What the benchmarks of vision, time series and audio ask, and of whom."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from benchmarks.harness.families import AUDIO, BY_NAME, CONTEXT, RATE, SERIES, TASKS, VISION, Measured
from fmplex_backend.families import input_named

EVERY = pytest.mark.parametrize("measured", BY_NAME.values(), ids=BY_NAME)


@EVERY
def test_ten_tasks_have_heads_of_several_kinds(measured: Measured) -> None:
    tasks = measured.tasks("head", Path("unused"), "unused")
    assert len({task.name for task in tasks}) == TASKS
    assert len({task.decoder for task in tasks}) >= 5
    assert {task.reads[0] for task in tasks} == {point.reads.name for point in measured.points}
    assert input_named(tasks[0].reads[0]) is not None


@EVERY
def test_inputs_are_all_different(measured: Measured) -> None:
    for point in measured.points:
        inputs = point.inputs(4)
        assert len(set(inputs)) == 4
        assert inputs == point.inputs(4)


def test_inputs_are_what_they_are_said_to_be() -> None:
    (picture,), (clip,) = (measured.points[0].inputs(1) for measured in (VISION, AUDIO))
    with Image.open(BytesIO(base64.b64decode(picture))) as image:
        assert (image.format, image.size) == ("JPEG", (500, 375))
    samples, rate = soundfile.read(BytesIO(base64.b64decode(clip)))
    assert (len(samples), rate) == (2 * RATE, RATE)
    for point in SERIES.points:
        values = np.frombuffer(base64.b64decode(point.inputs(1)[0]), dtype=np.float32)
        assert point.reads.dims == (CONTEXT, point.rows)
        assert values.size == CONTEXT * point.rows
