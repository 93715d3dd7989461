"""Ask the demo's tasks about pictures, and draw each picture with its answers.

    python clients/examples/picture_answers.py --out answers.svg cat.jpg car.png

Without files it draws pictures of its own: shapes in the colours of things that the tasks know. A server with the
demo's repository must run (`make demo`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, ImageDraw, ImageFilter

from fmplex import Client, Label, ServerProblem

TASKS = ("object", "kind")
SHOWN = 2  # labels of a task
SIDE, DRAWN = 64, 512  # pixels of a picture of its own, and while it is drawn
COLUMNS = 3


def ground(above: str, below: str, at: int) -> tuple[Any, Any]:
    """A picture in two colours, one over the other, and its pen."""
    picture = Image.new("RGB", (DRAWN, DRAWN), above)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, at, DRAWN, DRAWN), fill=below)
    return picture, pen


def airplane() -> Any:
    picture, pen = ground("#8fbfe8", "#8fbfe8", DRAWN)
    pen.polygon([(40, 290), (430, 240), (480, 262), (430, 284), (60, 320)], fill="#f4f4f4")
    pen.polygon([(210, 270), (120, 120), (170, 116), (320, 262)], fill="#d0d4d8")
    pen.polygon([(220, 286), (150, 420), (200, 420), (330, 276)], fill="#b4bac0")
    pen.polygon([(40, 292), (30, 200), (70, 204), (120, 288)], fill="#c03434")
    return picture


def ship() -> Any:
    picture, pen = ground("#bcd2e4", "#28557e", 330)
    pen.polygon([(50, 290), (470, 290), (430, 370), (100, 370)], fill="#30343c")
    pen.rectangle((150, 220, 380, 290), fill="#f0f0ec")
    pen.rectangle((210, 170, 320, 220), fill="#e4e4e0")
    pen.rectangle((255, 110, 290, 170), fill="#b83a2a")
    pen.rectangle((50, 340, 480, 352), fill="#a03028")
    return picture


def automobile() -> Any:
    picture, pen = ground("#c8ccd0", "#6a6a6c", 330)
    pen.rounded_rectangle((50, 250, 470, 360), 40, fill="#b41e22")
    pen.polygon([(130, 255), (190, 170), (350, 170), (420, 255)], fill="#b41e22")
    pen.polygon([(155, 250), (200, 185), (262, 185), (262, 250)], fill="#2c3640")
    pen.polygon([(278, 250), (278, 185), (340, 185), (390, 250)], fill="#2c3640")
    for wheel in (145, 375):
        pen.ellipse((wheel - 48, 312, wheel + 48, 408), fill="#161616")
        pen.ellipse((wheel - 22, 338, wheel + 22, 382), fill="#b8b8b8")
    return picture


def truck() -> Any:
    picture, pen = ground("#cfd8de", "#787672", 360)
    pen.rectangle((40, 130, 330, 340), fill="#e8e6e0")
    pen.polygon([(340, 190), (420, 190), (470, 262), (470, 340), (340, 340)], fill="#2b5ea8")
    pen.polygon([(360, 205), (412, 205), (445, 258), (360, 258)], fill="#243038")
    pen.rectangle((40, 340, 470, 360), fill="#303030")
    for wheel in (110, 210, 410):
        pen.ellipse((wheel - 42, 326, wheel + 42, 410), fill="#141414")
        pen.ellipse((wheel - 18, 350, wheel + 18, 386), fill="#a8a8a8")
    return picture


def bird() -> Any:
    picture, pen = ground("#7d9a5b", "#5e7a42", 380)
    pen.ellipse((160, 190, 380, 340), fill="#8a5a34")
    pen.ellipse((310, 130, 420, 240), fill="#8a5a34")
    pen.polygon([(412, 175), (470, 192), (412, 205)], fill="#e0a030")
    pen.polygon([(180, 250), (50, 200), (70, 260), (40, 300), (190, 300)], fill="#6a4222")
    pen.polygon([(200, 210), (330, 240), (230, 320)], fill="#5a3818")
    pen.ellipse((360, 165, 382, 187), fill="#101010")
    for leg in (250, 300):
        pen.line((leg, 335, leg, 410), fill="#c08030", width=10)
    return picture


def frog() -> Any:
    picture, pen = ground("#6d5a3c", "#57462c", 380)
    pen.ellipse((110, 220, 400, 420), fill="#5f9a34")
    pen.ellipse((140, 150, 370, 310), fill="#6aa83c")
    for eye in (180, 330):
        pen.ellipse((eye - 36, 120, eye + 36, 192), fill="#6aa83c")
        pen.ellipse((eye - 20, 134, eye + 20, 174), fill="#e8d060")
        pen.ellipse((eye - 8, 142, eye + 8, 168), fill="#101010")
    pen.arc((180, 200, 330, 290), 20, 160, fill="#304a18", width=8)
    pen.ellipse((70, 350, 190, 430), fill="#4f842a")
    pen.ellipse((320, 350, 440, 430), fill="#4f842a")
    return picture


OWN: Mapping[str, Callable[[], Any]] = {each.__name__: each for each in (airplane, automobile, ship, truck, bird, frog)}


def drawn(name: str) -> Any:
    """A picture of its own, with the soft edges and the noise of a photograph."""
    soft = OWN[name]().filter(ImageFilter.GaussianBlur(4)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(len(name)).normal(0, 3, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8))


def caption(answers: Mapping[str, Label]) -> str:
    """A line for each task: its labels, the likeliest first."""
    lines = []
    for task, answer in answers.items():
        ranked = sorted(answer.scores.items(), key=lambda each: -each[1])[:SHOWN]
        lines.append(f"{task}: " + ", ".join(f"{label} {score:.2f}" for label, score in ranked))
    return "\n".join(lines)


def draw(out: Path, pictures: Sequence[Any], captions: Sequence[str]) -> None:
    """Write the pictures in rows, each over its caption."""
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // COLUMNS)
    figure = Figure(figsize=(2.6 * COLUMNS, 2.8 * rows), layout="constrained")
    every = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axes in every:
        axes.set_axis_off()
    for axes, picture, below in zip(figure.axes, pictures, captions, strict=False):
        axes.imshow(picture, interpolation="none")
        axes.set_title(below, fontsize=7, y=-0.18, loc="left", family="monospace")
    figure.savefig(out)


def main(
    files: Annotated[list[Path] | None, typer.Argument(help="Pictures; without any it draws some.")] = None,
    url: Annotated[str, typer.Option(help="The server.")] = "localhost:8001",
    out: Annotated[Path, typer.Option(help="A .png, .svg or .pdf file to write.")] = Path("answers.svg"),
) -> None:
    """Ask and draw."""
    pictures = [Image.open(file).convert("RGB") for file in files or ()] or [drawn(name) for name in OWN]
    with Client(url) as client:
        answers = {task: client.predict(task, pictures) for task in TASKS}
    each = [{task: found[place] for task, found in answers.items()} for place in range(len(pictures))]
    captions = list(map(caption, each))
    draw(out, pictures, captions)
    print("\n\n".join(captions))


if __name__ == "__main__":
    try:
        typer.run(main)
    except ServerProblem as error:
        raise SystemExit(str(error)) from None
