"""Backbones that come and go in a repository: each is written after another one's entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format

from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.configs import CONFIG, backbone_parameters, is_backbone, read_config
from fmplex_backend.repository.directory import UNLOADED, set_unloaded
from fmplex_backend.repository.writer import ModelRepository

ELASTIC = "elastic"  # the parameter of backbones that a controller has written and may remove


class Backbones(ModelRepository):
    """A repository in which backbones come after the model of others, and are put away or removed."""

    def copy(self, name: str, template: str, *, elastic: bool = False) -> None:
        """Write a backbone's directory after another one's entry; one of that name that was put away is taken again.

        Args:
            elastic: whether the controller may remove it again. Such a one is always written anew.
        """
        with self._locked():
            directory = self.root / name
            if not elastic and (directory / UNLOADED).exists():
                set_unloaded(directory, False)
                return
            self.check_free(name)
            proto: Any = read_config(self.root / template / CONFIG)
            proto.name = name
            model = proto.parameters["model"].string_value
            if not Path(model).is_absolute() and (self.root / template / model).exists():
                proto.parameters["model"].string_value = f"../{template}/{model}"  # it starts beside the entry
            proto.parameters.pop(ELASTIC, None)
            if elastic:
                proto.parameters[ELASTIC].string_value = "true"
            self._write_directory(name, text_format.MessageToString(proto))

    def put_away(self, name: str) -> None:
        """Mark a backbone as not to be loaded; its directory stays. Raises TaskProblem where it has tasks."""
        with self._locked():
            self._check_empty(name)
            set_unloaded(self.root / name, True)

    def remove_elastic(self, name: str) -> None:
        """Remove a backbone that a controller has written; raises TaskProblem where it is none, or has tasks."""
        with self._locked():
            if not self._is_elastic(name):
                raise TaskProblem(f"{name!r} is not removed: no controller has written it, by its {CONFIG}")
            self._check_empty(name)
            self._move_away(name)

    def elastic(self) -> frozenset[str]:
        """Backbones that a controller has written, those left out that are kept unloaded."""
        return frozenset(
            name for name in self.backbones() if self._is_elastic(name) and not (self.root / name / UNLOADED).exists()
        )

    def _is_elastic(self, name: str) -> bool:
        return is_backbone(self.root, name) and (backbone_parameters(self.root, name) or {}).get(ELASTIC) == "true"

    def _check_empty(self, name: str) -> None:
        bound = sorted(task for task, (backbone, _) in self.tasks().items() if backbone == name)
        if bound:
            raise TaskProblem(f"{name!r} is not stopped: {', '.join(bound)} are bound to it. Rebind them first")
