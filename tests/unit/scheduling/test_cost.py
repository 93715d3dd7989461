"""The cost model: learns a machine from its passes, and is not thrown by a bad one."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_backend.scheduling import CostModel
from fmplex_backend.types import PassShape, Work

Machine = tuple[float, float, float, float]  # seconds: fixed, per token, per area, per adapter group
MACHINE: Machine = (2e-3, 2e-6, 1e-9, 3e-4)
PROFILE = [(1, 16, 0), (1, 256, 0), (8, 64, 0), (32, 16, 2), (32, 128, 1)]  # rows, longest, adapter groups


def seconds(shape: PassShape, machine: Machine = MACHINE) -> float:
    """What the machine takes."""
    fixed, per_token, per_area, per_group = machine
    area = shape.tokens * shape.longest
    return fixed + per_token * shape.tokens + per_area * area + per_group * shape.adapter_groups


def shape(rng: random.Random) -> PassShape:
    """Any pass."""
    longest = rng.randint(8, 512)
    return PassShape(rng.randint(1, 32) * longest, longest, rng.randint(0, 4))


def teach(model: CostModel, rng: random.Random, passes: int, noise: float, slower: float = 1.0) -> None:
    """Random passes on the machine."""
    for _ in range(passes):
        seen = shape(rng)
        model.observe(seen, 8, slower * seconds(seen) * rng.lognormvariate(0, noise))


def ratios(model: CostModel) -> list[float]:
    """Predicted over true, for passes of all sizes."""
    rng = random.Random(5)
    shapes = [shape(rng) for _ in range(200)]
    return [model.predict(seen) / seconds(seen) for seen in shapes]


def coefficients(model: CostModel) -> Machine:
    """In the order of `Machine`."""
    return model.fixed, model.per_token, model.per_area, model.per_group


def test_what_holds_passes_up_is_one_factor_for_all() -> None:
    model = CostModel()
    for number in range(400):  # the long passes alone are held up
        seen = PassShape(256, 64, 0) if number % 2 else PassShape(256, 8, 0)
        elapsed = seconds(seen) * (1.5 if number % 2 else 1.0)
        model.observe(seen, 8, elapsed, seconds(seen))
    short, long = PassShape(256, 8, 0), PassShape(256, 64, 0)
    assert model.predict(long) / model.predict(short) == pytest.approx(seconds(long) / seconds(short), rel=0.01)
    assert model.predict(long) / seconds(long) == pytest.approx(1.25, rel=0.02)


def test_a_stall_that_was_no_work_changes_little(rng: random.Random) -> None:
    model = CostModel()
    for _ in range(200):
        seen = shape(rng)
        model.observe(seen, 8, 1.1 * seconds(seen), seconds(seen))
    before = model.predict(PassShape(256, 8, 0))
    model.observe(PassShape(256, 8, 0), 8, 1.0, seconds(PassShape(256, 8, 0)))
    assert model.predict(PassShape(256, 8, 0)) == pytest.approx(before, rel=0.04)


@pytest.mark.parametrize("machine", [MACHINE, (5e-3, 0.0, 2e-9, 0.0), (1e-4, 3e-5, 0.0, 1e-3), (1e-2, 1e-6, 1e-8, 0.0)])
def test_it_finds_the_coefficients(rng: random.Random, machine: Machine) -> None:
    model = CostModel()
    for _ in range(6000):
        seen = shape(rng)
        model.observe(seen, 8, seconds(seen, machine))
    assert coefficients(model) == pytest.approx(machine, rel=1e-2, abs=1e-10)


@pytest.mark.parametrize(("noise", "mean", "worst"), [(0.02, 0.01, 0.05), (0.1, 0.03, 0.12), (0.2, 0.06, 0.2)])
def test_it_predicts_through_noise(rng: random.Random, noise: float, mean: float, worst: float) -> None:
    model = CostModel()
    teach(model, rng, 400, noise)
    assert fmean(ratios(model)) == pytest.approx(1.0, abs=mean)
    assert ratios(model) == pytest.approx([1.0] * 200, abs=worst)


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_it_finds_noisy_coefficients(rng: random.Random, noise: float) -> None:
    model = CostModel()
    found: list[Machine] = []
    for _ in range(40):
        teach(model, rng, 50, noise)
        found.append(coefficients(model))
    means = [fmean(values) for values in zip(*found, strict=True)]
    assert means == pytest.approx(list(MACHINE), rel=0.15)


@pytest.mark.parametrize("slower", [2.0, 0.5])
def test_it_follows_a_machine_that_changes(rng: random.Random, slower: float) -> None:
    model = CostModel()
    teach(model, rng, 400, 0.05)
    teach(model, rng, 100, 0.05, slower)
    assert fmean(ratios(model)) / slower == pytest.approx(1.0, abs=0.12)
    teach(model, rng, 100, 0.05, slower)
    assert fmean(ratios(model)) / slower == pytest.approx(1.0, abs=0.03)


def test_a_stalled_pass_teaches_little(rng: random.Random) -> None:
    model = CostModel()
    teach(model, rng, 400, 0.05)
    before = ratios(model)
    model.observe(shape(rng), 8, 1.0)
    assert ratios(model) == pytest.approx(before, rel=0.02)


def test_a_pass_that_ended_at_once_teaches_little(rng: random.Random) -> None:
    model = CostModel()
    teach(model, rng, 400, 0.05)
    before = ratios(model)
    model.observe(shape(rng), 8, 1e-6)
    assert fmean(ratios(model)) == pytest.approx(fmean(before), rel=0.1)
    assert ratios(model) == pytest.approx(before, rel=0.25)


@pytest.mark.parametrize("elapsed", [0.0, -1.0])
def test_a_clock_that_stands_still_teaches_nothing(rng: random.Random, elapsed: float) -> None:
    model = CostModel()
    teach(model, rng, 50, 0.05)
    before = coefficients(model)
    for _ in range(3):
        model.observe(shape(rng), 8, elapsed)
    assert coefficients(model) == pytest.approx(before, rel=0.05)


def test_a_profile_of_five_shapes_is_a_start(rng: random.Random) -> None:
    shapes = [PassShape(rows * longest, longest, groups) for rows, longest, groups in PROFILE]
    model = CostModel()
    model.seed((seen, seconds(seen)) for seen in shapes)
    assert coefficients(model) == pytest.approx(MACHINE, rel=1e-3)
    noisy = CostModel()
    noisy.seed((seen, seconds(seen) * rng.lognormvariate(0, 0.03)) for seen in shapes)
    assert fmean(ratios(noisy)) == pytest.approx(1.0, abs=0.2)


def test_an_empty_profile_keeps_the_defaults() -> None:
    model = CostModel(fixed=1e-2, per_token=1e-5)
    model.seed([])
    assert coefficients(model) == pytest.approx((1e-2, 1e-5, 0.0, 0.0))


def test_passes_of_one_shape_are_learned_too() -> None:
    model = CostModel()
    seen = PassShape(512, 16, 1)
    for _ in range(100):
        model.observe(seen, 32, 0.05)
    assert model.predict(seen) == pytest.approx(0.05, rel=1e-3)


@given(
    passes=st.lists(
        st.tuples(
            st.integers(1, 64), st.integers(1, 8192), st.integers(0, 64), st.floats(-1.0, 1e4) | st.floats(0, 1e-9)
        ),
        max_size=60,
    )
)
def test_it_is_never_negative(passes: list[tuple[int, int, int, float]]) -> None:
    model = CostModel()
    for rows, longest, groups, elapsed in passes:
        model.observe(PassShape(rows * longest, longest, groups), rows, elapsed)
        assert all(0.0 <= value < float("inf") for value in coefficients(model))
        assert model.portion(Work(0, 0, 0)) > 0.0  # shares are taken in proportion to it
        assert model.batch(Work(1, 1, 1), 1) > 0.0


def test_the_fixed_part_is_shared_among_the_usual_number() -> None:
    model = CostModel(fixed=8e-3, per_token=1e-5)
    work = Work(1, 100, 10_000)
    assert model.portion(work) == pytest.approx(9e-3, rel=1e-6)
    seen = PassShape(800, 100, 0)
    for _ in range(200):
        model.observe(seen, 8, model.predict(seen))
    assert 8 * model.portion(work) == pytest.approx(model.predict(seen), rel=0.01)


def test_a_batch_is_estimated_whole() -> None:
    model = CostModel(fixed=1e-3, per_token=1e-5, per_area=1e-8)
    model.per_group = 1e-4
    assert model.batch(Work(4, 400, 40_000), 2) == pytest.approx(1e-3 + 4e-3 + 4e-4 + 2e-4, rel=1e-6)


def test_passes_and_seconds_outside_them_count_once_for_a_batch() -> None:
    model = CostModel(fixed=1e-3, per_token=1e-5)
    for _ in range(300):
        model.observe_batch(3, 2e-3)
    assert model.once(0) == pytest.approx(3e-3 + 2e-3, rel=1e-3)
    assert model.batch(Work(4, 400, 40_000), 0) == pytest.approx(5e-3 + 4e-3, rel=1e-3)
    assert model.predict(PassShape(400, 100, 0)) == pytest.approx(1e-3 + 4e-3, rel=1e-3)  # of one pass, as before


@pytest.mark.parametrize("slower", [1.0, 1.5])
def test_passes_of_one_shape_leave_the_others_as_they_were(rng: random.Random, slower: float) -> None:
    model = CostModel()
    teach(model, rng, 400, 0.05)
    seen = PassShape(13 * 16, 16, 0)
    for _ in range(300):
        model.observe(seen, 13, slower * seconds(seen) * rng.lognormvariate(0, 0.1))
    assert fmean(ratios(model)) == pytest.approx(slower, rel=0.1)
