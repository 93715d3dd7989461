"""Random situations for planners."""

from __future__ import annotations

from hypothesis import strategies as st

from fmplex_controller.planner.situation import Backbone, Binding, Latency, Model, Server, Situation, Task

TOKENS = (8, 16, 64, 128)


def affine(fixed: float, per_token: float) -> Latency:
    """Seconds of a batch: `fixed`, and `per_token` for each token of its rows."""
    return lambda rows, tokens: fixed + per_token * rows * tokens


@st.composite
def situations(draw: st.DrawFn, *, existing: bool = True) -> Situation:
    """Up to 3 models, 4 servers, 12 tasks; with `existing` some backbones and any bindings, sound or not."""
    models = tuple(
        Model(
            f"m{number}", draw(st.integers(100, 400)), affine(draw(st.floats(1e-4, 1e-2)), draw(st.floats(1e-6, 1e-4)))
        )
        for number in range(draw(st.integers(1, 3)))
    )
    servers = tuple(
        Server(f"s{number}", draw(st.integers(200, 1500)), draw(st.sampled_from([1.0, 2.0])))
        for number in range(draw(st.integers(1, 4)))
    )
    tasks = tuple(
        Task(
            f"t{number}",
            draw(st.sampled_from(models)).name,
            draw(st.floats(0, 300)),
            draw(st.sampled_from(TOKENS)),
            draw(st.sampled_from([None, 0.002, 0.05, 0.2, 1.0])),
            draw(st.integers(0, 100)),
        )
        for number in range(draw(st.integers(0, 12)))
    )
    if not existing:
        return Situation(servers, models, tasks)
    backbones = tuple(
        Backbone(f"b{number}", draw(st.sampled_from(models)).name, draw(st.sampled_from(servers)).name)
        for number in range(draw(st.integers(0, 5)))
    )
    bindings = []
    for task in tasks:
        own = [backbone.name for backbone in backbones if backbone.model == task.model]
        kind = draw(st.sampled_from(["none", "one", "two"]))
        if kind == "two" and len(own) > 1:
            bindings += [Binding(task.name, own[0], 0.25), Binding(task.name, own[1], 0.75)]
        elif kind != "none" and own:
            bindings.append(Binding(task.name, draw(st.sampled_from(own))))
    return Situation(servers, models, tasks, backbones, tuple(bindings))
