"""Groups on the real server: a reply holds what each task answers alone, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from asking import Hammer, ask_grpc, ask_http
from google.protobuf import text_format
from sentences import mixture
from tritonclient.grpc import model_config_pb2
from waiting import busy, published

from fmplex import Answers, AsyncClient, Busy, Client, Label, ServerProblem, Vector
from fmplex_backend.repository.configs import Terms
from fmplex_backend.repository.grouping import GroupRepository
from testing import device
from testing.clients import Answer, Outputs, Question
from testing.repositories import copy_repository
from testing.servers import Serving, eventually, serving

DEMO = Path(__file__).parents[2] / "model_repository"
OTHERS = (
    *("smollm2", "assistant", "headline"),
    *("patchtst", "load-kind", "rate-anomaly", "rate-forecast"),
    *("dino", "kind", "object"),
)
HEADS = ("topic", "question", "routing", "mentions")  # they share the backbone's rows
GROUPS = {"guard": ("sentiment", "topic", "entities", "embed"), "heads": HEADS, "busy": ("question", "emotion")}
TEXTS = mixture(14)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The demo's tasks and three groups of them; `emotion` takes one request at a time."""
    folder = tmp_path_factory.mktemp("groups")
    repository = copy_repository(DEMO, folder / "repository", without=OTHERS)
    file = repository / "minilm" / "config.pbtxt"
    config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    config.parameters["dtype"].string_value = device.dtype()
    file.write_text(str(config), encoding="utf-8")
    models = GroupRepository(repository)
    models.set("emotion", Terms(max_queue=1))
    for name, members in GROUPS.items():
        models.create(name, members)
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


def ask(server: Serving, protocol: str, questions: Sequence[Question]) -> list[Answer]:
    if protocol == "http":
        return ask_http(server.http_url, questions)
    return ask_grpc(server.grpc_url, questions)


def own(outputs: Outputs, member: str) -> Outputs:
    """What a group's reply has of one task."""
    return {name.removeprefix(f"{member}."): each for name, each in outputs.items() if name.startswith(f"{member}.")}


def errors_in(answer: Answer) -> list[str]:
    return [text.decode() for text in answer.good()["errors"][0]]


def check_same(one: Outputs, other: Outputs, tolerance: float) -> None:
    """Of the same requests; receipts may differ."""
    assert one.keys() == other.keys()
    for name in one.keys() - {"usage"}:
        if one[name].dtype == np.float32:
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance)
        else:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_group_answers_as_each_of_its_tasks_alone(server: Serving, protocol: str) -> None:
    rows = [tuple(TEXTS[start : start + size]) for size in (1, 7) for start in range(0, len(TEXTS), size)]
    members = GROUPS["guard"]
    grouped = ask(server, protocol, [Question("guard", texts) for texts in rows])
    for member in members:
        alone = ask(server, protocol, [Question(member, texts) for texts in rows])
        for one, other in zip(grouped, alone, strict=True):
            check_same(own(one.good(), member), other.good(), 1e-5)  # rounding: batches of other sizes
    for texts, answer in zip(rows, grouped, strict=True):
        assert errors_in(answer) == [""] * len(members)
        receipts = np.stack([answer.outputs[f"{member}.usage"] for member in members])
        assert answer.outputs["usage"].tolist() == receipts.max(axis=0).tolist()
        assert answer.batch_items >= len(members) * len(texts), "its requests were in several batches"


def test_tasks_that_share_all_rows_answer_the_same_to_the_last_digit_but_one(server: Serving) -> None:
    """One request at a time: a batch is then of the same rows, whether one task asks or four."""
    with server.client() as client:
        for text in TEXTS:
            grouped = client.ask(Question("heads", (text,))).good()
            for member in HEADS:
                check_same(own(grouped, member), client.ask(Question(member, (text,))).good(), 1e-6)


def test_rows_are_computed_once_and_all_have_one_deadline(server: Serving) -> None:
    before = published(server, HEADS[0])
    with server.client() as client:
        client.ask(Question("heads", ("a text that nobody else has sent",), {"slo_ms": "0.001"})).good()
    after = published(server, HEADS[0])
    gained = {sample: value - before.get(sample, 0.0) for sample, value in after.items()}
    assert gained["fmplex_backbone_rows_saved_total", "", ""] == len(HEADS) - 1
    assert gained["fmplex_group_requests_total", "heads", ""] == 1
    for member in HEADS:
        assert gained["fmplex_rows_shared_total", member, ""] == 1
        assert gained["fmplex_deadline_misses_total", member, ""] == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_requests_with_bad_parameters_are_all_answered(server: Serving, protocol: str) -> None:
    """Of an ensemble of parallel steps some would never be in Triton 2.51, and then nobody's."""
    wrong = [Question("guard", ("a",), {"slo_ms": "soon"}), Question("guard", (b"\xff\xfe",))]
    answers = ask(server, protocol, wrong * 150)
    assert len(answers) == 300
    assert all(answer.error is not None for answer in answers)
    assert {"slo_ms is 'soon'" in str(answer.error) for answer in answers[::2]} == {True}
    assert {"no task of 'guard' answers" in str(answer.error) for answer in answers[1::2]} == {True}
    if protocol == "grpc":
        assert {answer.status for answer in answers} == {"INVALID_ARGUMENT"}
    (answer,) = ask(server, protocol, [Question("guard", ("a",))])
    assert errors_in(answer) == [""] * 4


def test_one_whose_queue_is_full_fails_alone(server: Serving) -> None:
    with busy(server, "embed"):
        answers = ask_grpc(server.grpc_url, [Question("busy", (text,)) for text in TEXTS], 16)
    failed = [answer for answer in answers if errors_in(answer)[1]]
    assert failed, "its queue was never full"
    for answer in failed:
        question, emotion = errors_in(answer)
        assert question == ""
        assert emotion.startswith("[UNAVAILABLE] 'emotion' has 1 requests waiting, its max_queue is 1")
        assert answer.outputs["emotion.SCORES"].shape == answer.outputs["emotion.LABEL"].shape == (1, 0)
        assert answer.outputs["question.SCORES"].shape[1] > 0


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_task_that_is_removed_is_named_and_comes_back(server: Serving, protocol: str) -> None:
    task, aside = server.repository / "topic", server.repository.parent / f"topic-{protocol}"

    def told() -> str:
        (answer,) = ask(server, protocol, [Question("guard", ("a goal in the last minute",))])
        return errors_in(answer)[1]

    shutil.move(task, aside)
    eventually(lambda: bool(told()), "it is missed")
    (answer,) = ask(server, protocol, [Question("guard", ("a goal in the last minute",))])
    assert [bool(text) for text in errors_in(answer)] == [False, True, False, False]
    assert "'topic' is asked by VFM_4, and no task has it" in errors_in(answer)[1]
    assert "fmplex group create guard sentiment topic entities embed --replace" in errors_in(answer)[1]
    assert answer.outputs["topic.SCORES"].shape == (1, 0)
    assert answer.outputs["sentiment.LABEL"].shape == (1, 1)
    with Client(server.grpc_url) as client:
        assert "topic" in client.status("minilm", "guard").tasks[0].error
    shutil.move(aside, task)
    eventually(lambda: not told(), "it is back")


def test_the_clients_give_a_dict(server: Serving) -> None:
    texts = ["A wonderful film.", "Two goals in Paris."]
    with Client(server.grpc_url) as grpc, Client(f"http://{server.http_url}") as http:
        found = grpc.predict("guard", texts)
        over_http = http.predict("guard", texts)
        sentiment = grpc.predict("sentiment", texts)
        answers = grpc.submit("guard", texts).result(30)
    for row, each in enumerate(found):
        assert isinstance(each, Answers)
        assert list(each) == list(GROUPS["guard"])
        assert not each.problems
        label, expected, vector = each["sentiment"], sentiment[row], each["embed"]
        assert isinstance(label, Label)
        assert isinstance(expected, Label)
        assert isinstance(vector, Vector)
        assert label.label == expected.label
        assert label.scores == pytest.approx(expected.scores, abs=1e-6)
        for other in (over_http[row], answers[row]):
            assert isinstance(other, Answers)
            again = other["sentiment"]
            assert isinstance(again, Label)
            assert again.scores == pytest.approx(label.scores, abs=1e-6)


def test_a_client_finds_the_error_in_the_place_of_an_answer(server: Serving) -> None:
    async def ask_many() -> list[Answers]:
        async with AsyncClient(server.grpc_url, timeout=60) as client:
            replies = await asyncio.gather(*(client.predict("busy", text) for text in TEXTS))
        return [each for (each,) in replies if isinstance(each, Answers)]

    with busy(server, "embed"):
        found = asyncio.run(ask_many())
    assert len(found) == len(TEXTS)
    problems = [each.problems for each in found if each.problems]
    assert problems
    assert all(isinstance(each["emotion"], Busy) for each in problems)


def test_members_come_and_go_while_it_is_asked(server: Serving) -> None:
    models = GroupRepository(server.repository)
    shared = ("question", "routing")
    models.create("moving", shared)
    server.load("moving")

    def check(question: Question, answer: Answer) -> str:
        wrong = [text for text in errors_in(answer) if text]
        missing = [name for name in shared if answer.outputs[f"{name}.SCORES"].shape[1] == 0]
        return f"{wrong} {missing}" if wrong or missing else ""

    with Hammer(server.grpc_url, [Question("moving", (text,)) for text in TEXTS[:8]], check, clients=8) as hammer:
        for members in ((*shared, "topic"), ("mentions", *shared), shared):
            models.create("moving", members, replace=True)
            hammer.wait_for(40)  # by the entry that the server still has
            server.load("moving")
            hammer.wait_for(40)
    with Client(server.grpc_url) as client:
        assert client.status("minilm", "moving").tasks[0].members == shared


def test_a_group_whose_entry_is_wrong_is_refused_by_file_and_field(server: Serving) -> None:
    file = server.repository / "heads" / "config.pbtxt"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('value: "topic.SCORES"', 'value: "routing.SCORES"', 1), encoding="utf-8")
    try:
        with Client(server.grpc_url) as client, pytest.raises(ServerProblem) as raised:
            client.load("heads")
        assert "heads" in str(raised.value)
    finally:
        file.write_text(text, encoding="utf-8")
    with Client(server.grpc_url) as client:
        client.load("heads")
        (found,) = client.predict("heads", "fine again")
    assert isinstance(found, Answers)
    assert not found.problems


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_kept_answers_are_those_of_the_version_that_is_served(server: Serving, protocol: str) -> None:
    """By itself and by a group; `topic` says so, `question` does not."""
    text = f"a text that is asked again over {protocol}"
    models = GroupRepository(server.repository)
    task_json = server.repository / "topic" / "1" / "task.json"
    before, count = task_json.read_text(encoding="utf-8"), _hits(server)

    def one(task: str) -> Outputs:
        (answer,) = ask(server, protocol, [Question(task, (text,))])
        return answer.good()

    try:
        models.set("topic", Terms(cache=True))
        eventually(lambda: not one("topic")["usage"].any(), "its answer is kept")
        kept, heads = one("topic"), one("heads")
        assert not heads["topic.usage"].any()
        assert heads["question.usage"][0, 2] > 0
        check_same(own(heads, "topic"), kept, 0)
        assert _hits(server) >= count + 3
        task_json.write_text(before.replace('"description": "', '"description": "x'), encoding="utf-8")
        assert before != task_json.read_text(encoding="utf-8")
        eventually(lambda: one("topic")["usage"].any(), "the changed version answers for itself")
        assert not one("topic")["usage"].any()
        check_same(one("topic"), kept, 1e-6)
    finally:
        task_json.write_text(before, encoding="utf-8")
        models.set("topic", Terms(cache=False))
    eventually(lambda: all(one("topic")["usage"].any() for _ in range(3)), "nothing is kept any more")


def _hits(server: Serving) -> int:
    with Client(server.grpc_url) as client:
        return client.status("minilm", "topic").tasks[0].cache_hits
