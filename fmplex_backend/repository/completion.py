"""Entries of tasks that lack something are written to the end: a config, a binding, a tag, their name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.binding import AUTO, choose_backbone
from fmplex_backend.repository.config import load_task_config
from fmplex_backend.repository.configs import CONFIG, Terms, backbone_parameters, backbone_stepped_into, tags_in
from fmplex_backend.repository.tags import claimed, put_tag
from fmplex_backend.repository.writer import ModelRepository


class Completion(ModelRepository):
    """A repository whose incomplete tasks are completed, each atomically.

    Args:
        prefer: of several backbones that fit a task, by the task's name.
    """

    def __init__(self, root: str | Path, prefer: Callable[[str, Sequence[str]], str | None] | None = None) -> None:
        super().__init__(root)
        self._prefer = prefer

    def complete(self, name: str) -> str:
        """Write what a task's entry lacks; says what that was. Raises TaskProblem or Refused where that cannot be.

        A tag that another directory has, too, is replaced.
        """
        with self._locked():
            is_there = (self.root / name / CONFIG).exists()
            backbone = self._choose(name) if not is_there or self._unbound(self._proto(name)) else ""
            # Backbones were asked, which may take seconds: what stands there now is what is completed.
            if not (self.root / name / CONFIG).exists():
                return self._write_entry(name, backbone)
            proto = self._proto(name)
            words = [] if proto.name in ("", name) else [f"its name, in the place of {proto.name!r}"]
            proto.name = name
            if backbone and (steps := self._unbound(proto)):
                for step in steps:
                    step.model_name = backbone
                words.append(f"the backbone {backbone!r}")
            words += self._tag(name, proto)
            if words:
                self._replace_config(name, proto)
            return " and ".join(words)

    def _unbound(self, proto: Any) -> list[Any]:
        """The steps of an entry into whatever backbone fits."""
        if (self.root / AUTO).is_dir():
            return []
        return [step for step in proto.ensemble_scheduling.step if step.model_name == AUTO]

    def _tag(self, name: str, proto: Any) -> list[str]:
        """Give an entry a tag, unless it has one to itself."""
        steps = proto.ensemble_scheduling.step
        backbone = backbone_stepped_into(proto) or (str(steps[0].model_name) if steps else "")
        if backbone_parameters(self.root, backbone) is None:
            raise TaskProblem(
                f"{self.root / name / CONFIG}: ensemble_scheduling.step.model_name: there is no backbone {backbone!r} "
                f"in {self.root}, which has {', '.join(self.backbones()) or 'none'}. Name one of them, or {AUTO!r}"
            )
        others = claimed(self.root, [each for each in self.names() if each != name], backbone)
        own = tags_in(proto, backbone)
        if len(own) == 1 and own[0] not in others and own[0] < self.slots(backbone):
            return []
        tag = self._free_tag(name, backbone)
        put_tag(proto, backbone, tag)
        return [f"the tag VFM_{tag}"]

    def _write_entry(self, name: str, backbone: str) -> str:
        tag = self._free_tag(name, backbone)
        pipeline = self._saved(self._version(name), backbone)
        proto = self._entry(name, backbone, pipeline, tag, Terms()).to_proto()
        self._replace_config(name, proto)
        return f"{CONFIG}, with the backbone {backbone!r} and the tag VFM_{tag}"

    def _choose(self, name: str) -> str:
        file = self._version(name) / "task.json"
        prefer = None if self._prefer is None else partial(self._prefer, name)
        return choose_backbone(self.root, self.names(), file, load_task_config(file), prefer)

    def _version(self, name: str) -> Path:
        versions = self.versions(name)
        return self.root / name / str(versions[-1] if versions else 1)
