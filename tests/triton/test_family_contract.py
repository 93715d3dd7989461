"""What every family must do on the real server. The tests know no family: each is asked through its `FamilyCase`.

To add a family: write a subclass of tests/support/family_cases.py's FamilyCase in a file of its own beside it (how its
backbone and its tasks are written, what they must answer by a computation that uses nothing of the backend, how their
files are broken, what the Task-API fits), and a line in tests/support/contract_cases.py.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import Backlog, TaskClient, ask_items
from changing import Change, Others, loaded, remove
from contract_cases import CASES
from family_cases import BACKBONE, FamilyCase, Reference
from measuring import figure, undisturbed
from reference import difference
from tolerances import tolerance
from waiting import METRICS_S, Samples, published

from fmplex import Backbone, Client, Task
from fmplex_backend.repository.configs import Terms
from fmplex_backend.repository.writer import ModelRepository
from testing.clients import Answer, Question
from testing.device import torch_device
from testing.servers import Serving, eventually, serving

FIRST_BROKEN_TAG, NEW_TAG, CHANGING_TAG, SPOILT_TAG, TWIN_TAG = 100, 200, 220, 221, 222
WEIGHTS = (3.0, 1.0)
FAIR = 0.98


@dataclass(frozen=True)
class House:
    """A server with a backbone of a family, a task of each variant it serves, and tasks that are broken."""

    case: FamilyCase
    serving: Serving
    references: Mapping[str, Reference]

    @property
    def urls(self) -> dict[str, str]:
        """For FMplex's clients, by protocol."""
        return {"grpc": self.serving.grpc_url, "http": f"http://{self.serving.http_url}"}

    def check(self, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
        """Every row against the reference; all problems at once."""
        problems = {
            f"{question.task}: {problem}"
            for question, answer in zip(questions, answers, strict=True)
            for row, item in enumerate(question.texts)
            if (problem := difference(answer.good(), row, self.references[question.task](item)))
        }
        assert not problems

    def published(self) -> Samples:
        """Samples of /metrics that have all been published after this call."""
        return published(self.serving, self.case.served[0], self.case.short[0])

    @contextlib.contextmanager
    def new_task(self, name: str, tag: int, variant: str) -> Iterator[Path]:
        """A task that comes while the server runs, for as long as the block lasts; its directory."""
        with loaded(self.serving, self.case.write_task(self.serving.repository, name, tag, variant)) as directory:
            yield directory


def broken_name(name: str) -> str:
    """Of the task that is broken in this way."""
    return f"broken-{name}"


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.family)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One server for all tests of a family."""
    case: FamilyCase = request.param
    folder = tmp_path_factory.mktemp(case.family)
    repository = folder / "repository"
    repository.mkdir()
    case.write_backbone(repository, BACKBONE, case.bmax)
    references = {
        variant: case.reference(case.write_task(repository, variant, tag, variant) / "1")
        for tag, variant in enumerate(case.served)
    }
    for tag, (name, broken) in enumerate(case.broken.items(), FIRST_BROKEN_TAG):
        broken.spoil(case.write_task(repository, broken_name(name), tag, broken.variant))
    with serving(repository, folder, variables=dict(case.variables)) as server:
        assert not server.refused
        yield House(case, server, references)


@pytest.fixture
def client(house: House) -> Iterator[TaskClient]:
    """One that asks by hand."""
    with TaskClient(house.serving.grpc_url) as client:
        yield client


@pytest.fixture
def others_go_on(house: House) -> Iterator[None]:
    """Clients of two tasks."""
    rivals = {name: house.references[name] for name in house.case.rivals}
    with Others(house.serving, rivals, house.case.items[:6], BACKBONE, TaskClient).go_on(clients=4):
        yield


def ask(client: TaskClient, task: str, *items: Any) -> Answer:
    """One request."""
    return client.ask(Question(task, items))


# -- equal to the model alone


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("items", [1, 7, 32])
def test_equal_to_the_model_alone(house: House, protocol: str, items: int) -> None:
    """Each task by itself: the other rows of a request, and what they make it be padded to, change nothing."""
    asked = [house.case.items[n % len(house.case.items)] for n in range(items)]
    turns = [asked[n:] + asked[:n] for n in range(len(house.case.served))]
    questions = [Question(task, tuple(own)) for task, own in zip(house.case.served, turns, strict=True)]
    house.check(questions, ask_items(house.urls[protocol], questions, clients=1))


def shuffled(house: House, seed: int) -> list[Question]:
    """Every item to every task, 1 to 5 in a request."""
    order = random.Random(seed)
    questions = []
    for task in house.case.served:
        left = list(house.case.items)
        order.shuffle(left)
        while left:
            size = order.choice((1, 1, 1, 2, 5))
            questions.append(Question(task, tuple(left[:size]), {**house.case.parameters}))
            left = left[size:]
    order.shuffle(questions)
    return questions


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_equal_when_tasks_and_adapters_share_batches(house: House, protocol: str) -> None:
    questions = shuffled(house, seed=len(protocol))
    batches = house.published()["fmplex_backbone_batches_total", "", ""]
    house.check(questions, ask_items(house.urls[protocol], questions))
    batches = house.published()["fmplex_backbone_batches_total", "", ""] - batches
    steps = sum(house.case.steps(question, house.references) for question in questions)
    assert 0 < batches < steps / 2, "most requests shared their batch"


def test_adapters_change_what_decoders_see(house: House) -> None:
    """Else the tests above would prove nothing."""
    case = house.case
    bare = next(variant for variant in case.served if variant not in case.adapted)
    plain = case.states(house.references[bare], case.short[0])
    for variant in case.adapted:
        assert np.abs(case.states(house.references[variant], case.short[0]) - plain).max() > 0.01, variant


def test_the_backbone_counts_its_tasks_and_adapters(house: House) -> None:
    adapted, served = len(house.case.adapted), len(house.case.served)
    eventually(lambda: house.serving.metric("backbone_vfms") == served, "every vFM is counted")
    eventually(lambda: house.serving.metric("backbone_adapters") == adapted, "every adapter is counted")


# -- hot add, replace, remove


@pytest.mark.usefixtures("others_go_on")
def test_a_task_comes_and_goes(house: House, client: TaskClient) -> None:
    """Its first answer is right; one that is gone is answered with an error."""
    for number, variant in enumerate(house.case.served[:6]):
        name, item = f"new-{number}", house.case.items[number]
        with house.new_task(name, NEW_TAG + number, variant) as directory:
            assert not difference(ask(client, name, item).good(), 0, house.case.reference(directory / "1")(item))
        assert ask(client, name, item).status in ("NOT_FOUND", "UNAVAILABLE")


@pytest.mark.usefixtures("others_go_on")
def test_a_new_version_is_served_whole(house: House, tmp_path: Path) -> None:
    case, items = house.case, house.case.items[:8]
    first, *later = case.versions
    with house.new_task("changing", CHANGING_TAG, first) as directory:
        change = Change(house.serving, directory, case.reference(directory / "1"), items, TaskClient)
        with change.asked() as hammer:
            for number, variant in enumerate(later, start=2):
                built = case.write_version(tmp_path / str(number), "changing", variant)
                moving = shutil.copytree(built, tmp_path / "moving")
                change.arrives(hammer, case.reference(built), partial(moving.rename, directory / str(number)))


# -- fail closed, fail alone


@pytest.mark.usefixtures("others_go_on")
def test_a_broken_task_names_file_field_and_remedy(house: House, client: TaskClient) -> None:
    for name, broken in house.case.broken.items():
        answer = ask(client, broken_name(name), house.case.short[0])
        assert answer.status == "INTERNAL", name
        missing = [words for words in (broken_name(name), *broken.says) if words not in answer.message]
        assert not missing, f"{missing} not in: {answer.message}"


@pytest.mark.usefixtures("others_go_on")
def test_refusals_are_counted(house: House, client: TaskClient) -> None:
    name = broken_name(house.case.broken_versions[0])
    before = house.published().get(("fmplex_failures_total", name, "refused"), 0.0)
    for _ in range(3):
        assert ask(client, name, house.case.short[0]).error
    eventually(
        lambda: house.serving.metric("failures_total", name, "refused") == before + 3, "three more refusals on /metrics"
    )


@pytest.mark.usefixtures("others_go_on")
def test_a_broken_version_leaves_the_old_one_serving(house: House, client: TaskClient, tmp_path: Path) -> None:
    case, item = house.case, house.case.items[3]
    with house.new_task("spoilt", SPOILT_TAG, case.versions[0]) as directory:
        old = case.reference(directory / "1")(item)
        assert not difference(ask(client, "spoilt", item).good(), 0, old)
        for number, name in enumerate(case.broken_versions, start=2):
            case.write_version(tmp_path / name / "1", "spoilt", case.broken[name].variant)
            case.broken[name].spoil(tmp_path / name)
            (tmp_path / name / "1").rename(directory / str(number))
            house.serving.load("spoilt")
            for _ in range(5):
                assert not difference(ask(client, "spoilt", item).good(), 0, old), name


# -- fair by weight, charged by measured time


def increase(after: Samples, before: Samples, family: str, task: str = "") -> float:
    """Of a counter."""
    key = (f"fmplex_{family}", task, "")
    return after[key] - before.get(key, 0.0)


def received(after: Samples, before: Samples, task: str) -> float:
    """Seconds that count for a task's share: of the backbone, and of preparing its requests."""
    return sum(increase(after, before, f"{part}_seconds_total", task) for part in ("service", "preparation"))


def set_weights(house: House, weights: Mapping[str, float]) -> None:
    """Returns once they are in effect."""
    for task, weight in weights.items():
        ModelRepository(house.serving.repository).set(task, Terms(weight=weight))
        house.serving.load(task)

    def shown() -> bool:
        samples = house.serving.metrics()
        return all(samples.get(("fmplex_weight", task, "")) == weight for task, weight in weights.items())

    eventually(shown, "the weights are on /metrics", period=METRICS_S)


@contextlib.contextmanager
def weighted(house: House, weights: Mapping[str, float]) -> Iterator[None]:
    """Weights of tasks, in effect for as long as the block lasts."""
    set_weights(house, weights)
    try:
        yield
    finally:
        set_weights(house, dict.fromkeys(weights, 1.0))


def test_backlogged_tasks_share_by_weight(house: House) -> None:
    """3:1 in seconds, between two looks at the account; both tasks have requests waiting all the while."""
    case = house.case
    weights = dict(zip(case.rivals, WEIGHTS, strict=True))
    light = case.rivals[1]
    clients = dict(zip(case.rivals, (8 * case.bmax, 3 * case.bmax), strict=True))

    def measure(backlog: Backlog) -> None:
        looks = [house.published()]
        enough = backlog.answered[light] + case.counted

        def counted() -> bool:
            backlog.check()
            looks.append(house.serving.metrics())
            return backlog.answered[light] >= enough

        eventually(counted, f"{light} is served", 150, period=0.5)
        looks.append(house.published())
        waiting = [look["fmplex_queue_depth", task, ""] for look in looks for task in weights]
        figure(min(waiting) > 0, f"both are backlogged: {waiting}")
        before, *_, after = looks
        shares = [received(after, before, task) / weight for task, weight in weights.items()]
        assert min(shares) / max(shares) > FAIR, shares

    # Items that take the backbone long: else the clients, in need of a core as well, may not keep up with it.
    with weighted(house, weights), Backlog(house.serving.grpc_url, case.long, clients) as backlog:
        eventually(lambda: all(backlog.answered[task] >= clients[task] for task in clients), "all are answered", 120)
        undisturbed(partial(measure, backlog))


def test_charged_seconds_are_measured_seconds(house: House) -> None:
    """What tasks are charged is what the backbone was busy; whose items take long is charged so much more."""
    case, (first, second) = house.case, house.case.rivals
    asked = {first: case.longest, second: case.short}
    alone = [Question(task, (item,)) for task, items in asked.items() for item in items[:10]]
    mixed = [
        Question(task, (item,))
        for each in zip(*asked.values(), strict=True)
        for task, item in zip(asked, each, strict=True)
    ]

    def measure() -> None:
        before = house.published()
        house.check(alone, ask_items(house.serving.grpc_url, alone, clients=1))
        between = house.published()
        house.check(mixed, ask_items(house.serving.grpc_url, mixed))
        after = house.published()
        for start, end in ((before, between), (between, after)):
            charged = {task: increase(end, start, "service_seconds_total", task) for task in case.served}
            assert sum(charged.values()) == pytest.approx(increase(end, start, "backbone_busy_seconds_total"), rel=1e-6)
            assert all(not seconds for task, seconds in charged.items() if task not in asked)
            figure(charged[first] > 1.5 * charged[second], charged)
            for task in asked:
                assert 0 < charged[task] <= increase(end, start, "compute_seconds_total", task)
        for task in asked:  # each request had the backbone to itself; other work may delay it outside of its passes
            took = increase(between, before, "compute_seconds_total", task)
            served = increase(between, before, "service_seconds_total", task)
            figure(served == pytest.approx(took, rel=0.2), f"{task}: charged {served:g} s of {took:g} s")

    undisturbed(measure)


# -- rows that tasks share


def test_tasks_that_are_asked_the_same_share_its_rows(house: House) -> None:
    """Those without an adapter. Each is answered by its own decoder, and what they are charged adds up.

    A family that shares none has counted none by now.
    """
    case = house.case
    if not case.shares_rows:
        samples = house.serving.metrics()
        assert samples["fmplex_backbone_batches_total", "", ""] > 0
        assert samples["fmplex_backbone_rows_saved_total", "", ""] == 0
        return
    bare = [variant for variant in case.served if variant not in case.adapted]
    with house.new_task("twin", TWIN_TAG, bare[0]) as directory:
        tasks = (*bare, "twin")
        own = replace(house, references={**house.references, "twin": case.reference(directory / "1")})
        questions = [Question(task, (item,)) for item in case.items for task in tasks]
        before = house.published()
        own.check(questions, ask_items(house.serving.grpc_url, questions))
        after = house.published()
    assert all(increase(after, before, "rows_shared_total", task) > 0 for task in tasks)
    saved = increase(after, before, "backbone_rows_saved_total") / case.rows
    assert 0 < saved < len(questions) - len(case.items) + 1
    charged = [increase(after, before, "service_seconds_total", task) for task in tasks]
    assert sum(charged) == pytest.approx(increase(after, before, "backbone_busy_seconds_total"), rel=1e-6)


# -- the Task-API


def same(served: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Tensors of one item: floats about equal, others alike."""
    assert {*served} <= {*here}
    allowed = tolerance()
    for name, value in served.items():
        if np.issubdtype(value.dtype, np.floating):
            assert np.allclose(value, here[name], atol=allowed.again), name
        elif name != "LABEL" or allowed.settles(here):
            assert [_text(cell) for cell in value.ravel()] == [_text(cell) for cell in here[name].ravel()], name


def _text(cell: Any) -> Any:
    return cell.decode() if isinstance(cell, bytes) else cell


def alike(one: Any, other: Any) -> None:
    """Two results for an item."""
    assert type(one) is type(other)
    if hasattr(one, "scores"):
        assert one.scores == pytest.approx(other.scores, abs=tolerance().again)
    if hasattr(one, "text"):
        assert one == other


@pytest.fixture(scope="module")
def backbone(house: House) -> Backbone:
    """The server's, in this process."""
    return Backbone(BACKBONE, repository=house.serving.repository, device=torch_device())


def test_what_was_fitted_is_what_is_served(house: House, backbone: Backbone) -> None:
    """And what is loaded again from the repository is what was saved."""
    for kind, fit in house.case.fitted.items():
        task = fit(f"fitted-{kind}", backbone)
        path = task.deploy(house.serving.grpc_url)
        asked = house.case.asked(kind)
        here = [task.outputs([item])[0] for item in asked]
        for url in house.urls.values():
            for item, one in zip(asked, here, strict=True):
                (answer,) = ask_items(url, [Question(task.name, (item,))])
                same({name: value[0] for name, value in answer.good().items()}, one)
        with Client(house.serving.grpc_url) as client:
            (served,), (own,) = client.predict(task.name, asked[:1]), task.predict(asked[:1])
            alike(served, own)
        again = Task.load(path.parent, backbone)
        assert again.config() == task.config()
        for item, one in zip(asked, here, strict=True):
            same(again.outputs([item])[0], one)
        remove(house.serving, task.name)
