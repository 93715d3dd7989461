"""A task's entry is written for another backbone of the same model: `model_name`, and a tag that is free there."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fmplex_backend.errors import BackboneRefused, TaskProblem
from fmplex_backend.families import family
from fmplex_backend.files import read_text
from fmplex_backend.interface import tag_name, tag_of
from fmplex_backend.repository.binding import fits, same_model
from fmplex_backend.repository.config import load_backbone_config, load_task_config
from fmplex_backend.repository.configs import (
    CONFIG,
    backbone_parameters,
    backbone_stepped_into,
    read_config,
    tags_in,
)
from fmplex_backend.repository.loadable import check_loadable
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.repository.tags import claimed, first_free, put_tag
from fmplex_backend.repository.tasks import Stamp, stamp
from fmplex_backend.repository.terms import AHEAD, REBOUND_AT
from fmplex_backend.repository.versions import Version, served_version
from fmplex_backend.repository.writer import ModelRepository

NO_STAMP: Stamp = 0, 0, 0
LEAST_AHEAD_S = 1e-6  # of the digits that are written: less is nothing


@dataclass(frozen=True, slots=True)
class Seen:
    """A task as it stands in the repository: its backbone, its entry, and the files of the version that is served."""

    backbone: str
    entry: Stamp
    version: Version


@dataclass(frozen=True, slots=True)
class Rebound:
    """A task whose binding has changed, and what that was before.

    `at` is `rebound_at` as it stands in its entry: whoever binds the task anew, be it to the same backbone with the
    same tag, writes another one.

    `as_seen` says whether nothing was written of the task between a look at it and this change.

    `former_tag` is None where the entry had several, which no server takes. Then they are in `odd_tags`: of each of its
    steps into the former backbone, by the tag's name, the output that it is shown as.
    """

    task: str
    former: str
    backbone: str
    tag: int
    at: str
    former_tag: int | None
    odd_tags: tuple[Mapping[str, str], ...] = ()
    as_seen: bool = False


class Rebinding(ModelRepository):
    """A repository whose tasks change their backbones, each atomically."""

    def backbone_of(self, name: str) -> str:
        """The backbone that a task is bound to; raises TaskProblem where there is none."""
        return backbone_stepped_into(self._task_entry(name))

    def seen(self, name: str) -> Seen:
        """A task as it stands there now; raises TaskProblem where it is bound to no backbone, or Refused."""
        entry = self._stamp(name)  # first: what is written meanwhile is seen to be
        proto = self._task_entry(name)
        return self._seen(name, proto, entry)

    def rebind(self, name: str, backbone: str, ahead_s: float = 0.0, seen: Seen | None = None) -> Rebound | None:
        """Write a task's entry for another backbone; None where it is bound to that already.

        A server goes on sending requests to the former one until it loads the task again. Raises as `check` does.

        Args:
            ahead_s: the seconds of the former backbone's time by which the task has had more than its share there; it
                begins with them on the new one.
            seen: as the task was when it was looked at before.
        """
        with self._locked():
            entry = self._stamp(name)
            proto = self._task_entry(name)
            former = backbone_stepped_into(proto)
            if former == backbone:
                return None
            slots = self._check(name, proto, former, backbone).vfm_slots
            own = tags_in(proto, former)
            former_tag = own[0] if len(own) == 1 else None
            odd = () if former_tag is not None else tuple(map(_tags_shown, _steps(proto, former)))
            tag = self._tag_there(name, former_tag, backbone, slots)
            as_seen = self._seen(name, proto, entry) == seen
            _step_into(proto, former, backbone)
            put_tag(proto, backbone, tag)
            at = _put_ahead(proto, ahead_s)
            self._replace_config(name, proto)
            return Rebound(name, former, backbone, tag, at, former_tag, odd, as_seen)

    def check(self, name: str, backbone: str) -> None:
        """Raise TaskProblem or Refused where there is no such task or backbone, or that is of another model."""
        proto = self._task_entry(name)
        self._check(name, proto, backbone_stepped_into(proto), backbone)

    def retag(self, rebound: Rebound) -> Rebound | None:
        """Give a task that was rebound a tag that no other one has on any backbone; None where it was bound anew."""
        with self._locked():
            now = self._proto(rebound.task)
            if not _is_bound_by(rebound, now):
                return None
            slots = self.slots(rebound.backbone)
            tag = self._tag_there(rebound.task, None, rebound.backbone, slots, not_this=rebound.tag)
            put_tag(now, rebound.backbone, tag)
            self._replace_config(rebound.task, now)
            return replace(rebound, tag=tag)

    def undo(self, rebound: Rebound) -> None:
        """Bind the task as it was, unless somebody has bound it anew since; whatever else has changed stays."""
        with self._locked():
            now = self._proto(rebound.task)
            if not _is_bound_by(rebound, now):
                return
            _step_into(now, rebound.backbone, rebound.former)
            if rebound.former_tag is not None:
                put_tag(now, rebound.former, rebound.former_tag)
            else:
                _put_odd_tags(now, rebound)
            _take_ahead(now)
            self._replace_config(rebound.task, now)

    def _stamp(self, name: str) -> Stamp:
        try:
            return stamp(self.root / name / CONFIG)
        except OSError:  # who reads it next says what is wrong
            return NO_STAMP

    def _seen(self, name: str, proto: Any, entry: Stamp) -> Seen:
        version = served_version(self.root / name / CONFIG, proto)
        return Seen(backbone_stepped_into(proto), entry, version)

    def _task_entry(self, name: str) -> Any:
        proto = read_config(self.root / name / CONFIG)
        if not backbone_stepped_into(proto):
            self.task(name)  # raises, naming the tasks there are
            raise TaskProblem(f"{self.root / name} is bound to no backbone yet. Write one into its {CONFIG}")
        return proto

    def _check(self, name: str, proto: Any, former: str, backbone: str) -> BackboneConfig:
        """Raise TaskProblem or Refused where the task cannot be on that backbone; else the backbone's parameters."""
        config = self._backbone_config(backbone)
        if config is None:
            known = ", ".join(self.backbones()) or "none"
            raise TaskProblem(f"there is no backbone {backbone!r} in {self.root}, which has {known}. Name one of them")
        check_loadable(self.root / backbone)
        file = self.root / name / CONFIG
        task = load_task_config(served_version(file, proto).path / "task.json")
        if config.family != task.family:
            raise TaskProblem(
                f"{name!r} is a task of the family {task.family!r}, {backbone!r} is of {config.family!r}. Name a "
                "backbone of the same model"
            )
        if not fits(task.backbone, config, self.root / backbone / CONFIG):
            assert task.backbone is not None
            raise TaskProblem(
                f"{name!r} was trained for {task.backbone.model!r}, and {backbone!r} is {config.model!r}. Name a "
                "backbone of the same model"
            )
        other = self._backbone_config(former) if task.backbone is None else None
        if other is not None:
            files = self.root / former / CONFIG, self.root / backbone / CONFIG
            if not same_model(family(config.family), (other, config), files):
                raise TaskProblem(
                    f"{name!r} does not say which model it was trained for; it is on {former!r}, which is "
                    f"{other.model!r}, and {backbone!r} is {config.model!r}. Name a backbone of the same model"
                )
        return config

    def _backbone_config(self, name: str) -> BackboneConfig | None:
        """None where the repository has no such backbone; raises TaskProblem where it cannot be read."""
        parameters = backbone_parameters(self.root, name)
        if parameters is None:
            return None
        try:
            return load_backbone_config(self.root / name / CONFIG, parameters)
        except BackboneRefused as error:
            raise TaskProblem(f"{name!r} cannot be read: {error}") from None

    def _tag_there(self, name: str, own: int | None, backbone: str, slots: int, not_this: int | None = None) -> int:
        """The tag it has, unless another task has it, on whatever backbone; else one that no task has anywhere.

        A task that has left this backbone mostly has there the tag that it had here. While the server has it loaded,
        this backbone cannot tell whether requests with that tag are its.
        """
        others = [each for each in self.names() if each != name]
        if own is not None and own < slots and not any(self._has_tag(each, own) for each in others):
            return own
        anywhere = {tag for each in self.backbones() for tag in claimed(self.root, others, each)}
        if not_this is not None:
            anywhere.add(not_this)
        tag = first_free(name, anywhere, slots)
        return self._free_tag(name, backbone) if tag is None else tag

    def _has_tag(self, name: str, tag: int) -> bool:
        """By the text of its entry: parsing every one would take milliseconds each."""
        try:
            text = read_text(self.root / name / CONFIG, errors="replace")
        except OSError:
            return False
        return re.search(rf"{tag_name(tag)}\b", text) is not None


def _steps(proto: Any, backbone: str) -> list[Any]:
    return [step for step in proto.ensemble_scheduling.step if step.model_name == backbone]


def _step_into(proto: Any, former: str, backbone: str) -> None:
    for step in _steps(proto, former):
        step.model_name = backbone


def _tags_shown(step: Any) -> dict[str, str]:
    return {name: shown for name, shown in step.output_map.items() if tag_of(name) is not None}


def _put_odd_tags(proto: Any, rebound: Rebound) -> None:
    for step, tags in zip(_steps(proto, rebound.former), rebound.odd_tags, strict=False):
        for name in _tags_shown(step):
            del step.output_map[name]
        for name, shown in tags.items():
            step.output_map[name] = shown


def _is_bound_by(rebound: Rebound, now: Any) -> bool:
    """Whether an entry still has the binding that was written with `rebound`."""
    is_there = backbone_stepped_into(now) == rebound.backbone
    has_tag = {*tags_in(now, rebound.backbone)} == {rebound.tag}
    return (
        is_there and has_tag and REBOUND_AT in now.parameters and now.parameters[REBOUND_AT].string_value == rebound.at
    )


def _put_ahead(proto: Any, ahead_s: float) -> str:
    """Write what a task begins with, and when it was rebound, which is returned as it is written."""
    _take_ahead(proto)
    if ahead_s >= LEAST_AHEAD_S:
        proto.parameters[AHEAD].string_value = f"{ahead_s:.6f}"
    proto.parameters[REBOUND_AT].string_value = at = f"{time.time():.6f}"
    return at


def _take_ahead(proto: Any) -> None:
    for key in (AHEAD, REBOUND_AT):
        proto.parameters.pop(key, None)
