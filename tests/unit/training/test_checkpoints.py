"""A fitting that was killed resumes from its checkpoint and ends at the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from task_fixtures import (
    fitted,
    flowers,
    labelled,
    spam,
)

from fmplex import (
    Backbone,
    Classifier,
    LoRA,
    Projection,
    Task,
    TaskProblem,
)


def fitted_flowers(backbone: Backbone, adapter: LoRA | None = None) -> Task:
    task = Task("flower", backbone, adapter=adapter, encoder=Projection(2, tokens=3), decoder=Classifier())
    task.fit(*flowers(300), epochs=25, learning_rate=2e-2, progress=False)
    return task


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from task_fixtures import labelled, tiny_backbone
from fmplex import Classifier, LoRA, Task
from fmplex.training import state
from fmplex.training import epochs as training
training.CHECKPOINT_STEPS = 2
root, out = Path({root!r}), Path(sys.argv[1])
task = Task("spam", tiny_backbone(root), adapter=LoRA(r=4, dropout=0.1), decoder=Classifier(["ham", "spam"]))
slow = len(sys.argv) > 2
if slow:
    import time
    step = state.State.update
    def waiting(self):
        step(self)
        time.sleep(0.05)
    state.State.update = waiting
task.fit(*labelled(300), validation=0.2, epochs=4, batch_size=16, checkpoint=out / "checkpoint", progress=False)
out.mkdir(exist_ok=True)
task.write(out)
"""


@pytest.mark.slow  # three processes that import torch and train
def test_a_killed_training_goes_on_and_ends_at_the_same_weights(tmp_path: Path, root: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[2] / "support"), root=str(root)))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, script, whole], check=True, timeout=120)
    with subprocess.Popen([sys.executable, script, killed, "slow"]) as process:
        end = time.monotonic() + 100
        while _step(killed) < 20:  # in the second epoch
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.kill()
    assert not (killed / "task.json").exists()
    subprocess.run([sys.executable, script, killed], check=True, timeout=120)
    assert not (killed / "checkpoint").exists()
    for file in ("decoder.safetensors", "adapter/adapter_model.safetensors"):
        one, other = load_file(whole / file), load_file(killed / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), file


def _step(folder: Path) -> int:
    try:
        numbers = json.loads((folder / "checkpoint" / "state.json").read_text())
    except (OSError, ValueError):
        return 0
    return len(numbers["history"]["steps"])


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, backbone: Backbone) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "state.json").write_text('{"digest": "other"}')
    torch_state = fitted(spam(backbone), labelled(20)).fitted.head
    from safetensors.torch import save_file

    save_file(torch_state, folder / "state.safetensors")
    with pytest.raises(TaskProblem, match="other data, options or another task"):
        spam(backbone, adapter=LoRA(r=2)).fit(*labelled(40), checkpoint=folder, progress=False)


def test_a_killed_fitting_goes_on(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted_flowers(backbone)
    task = Task("flower", backbone, encoder=Projection(2, tokens=3), decoder=Classifier())
    settings: dict[str, Any] = {"epochs": 25, "learning_rate": 2e-2, "progress": False, "checkpoint": tmp_path / "at"}

    from fmplex.training import epochs as training

    real, seen = training.Epochs._end_epoch, []

    def killed(self: Any, state: Any) -> None:
        real(self, state)
        seen.append(state.epoch)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Epochs, "_end_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            task.fit(*flowers(300), **settings)
    task = Task("flower", backbone, encoder=Projection(2, tokens=3), decoder=Classifier())
    task.fit(*flowers(300), **settings)
    for name, each in whole.fitted.encoder.items():
        assert torch.equal(each, task.fitted.encoder[name])
