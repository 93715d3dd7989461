"""Which tensor of an adapter belongs to which module of a backbone, checked by the file's header alone."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from torch import nn

from fmplex_backend.adapters.kinds import MAX_RANK
from fmplex_backend.adapters.saved_modules import plain_copy
from fmplex_backend.adapters.settings import SUPPORTED, Settings, by_pattern, feedforward, targeted
from fmplex_backend.errors import TaskRefused
from fmplex_backend.safetensors_header import Header, expect_floats, expect_shape, some

PARTS = {"LORA": ("lora_A", "lora_B"), "DORA": ("lora_A", "lora_B", "lora_magnitude_vector"), "IA3": ("ia3_l",)}
ANOTHER_BACKBONE = "Was it trained for another backbone?"


class Layout:
    """The modules that an adapter's tensors are for: those that its settings mean, each of them, with shapes that fit.

    Paths are the backbone's names of modules; an adapter that was trained inside of AutoModelFor... has others.

    Args:
        by_row: the backbone's modules that an adapter may bring whole, see `saved_modules.modules_by_row`; none of a
            family whose passes have no rows of a batch.
    """

    def __init__(
        self,
        file: Path,
        weights: Path,
        settings: Settings,
        backbone: nn.Module,
        unread: Collection[str],
        by_row: Collection[str],
    ) -> None:
        self.file, self.weights, self.settings, self.unread = file, weights, settings, unread
        self.prefix = getattr(backbone, "base_model_prefix", "")
        every = dict(backbone.named_modules())
        inner = {id(_wrapped(each)) for each in every.values()}
        self.modules = {path: each for path, each in every.items() if id(each) not in inner}
        linears = {path: _wrapped(each) or each for path, each in self.modules.items()}
        self.linears = {path: each for path, each in linears.items() if isinstance(each, nn.Linear)}
        self.names: dict[tuple[str, str], str] = {}  # path and part -> the tensor's name in the file
        self.trained: dict[str, str] = {}  # path -> its name in training, which patterns are matched with
        self.by_row = by_row
        self.saved: dict[str, dict[str, str]] = {path: {} for path in self._named_to_save()}  # -> part -> tensor's name

    def check(self, header: Header) -> None:
        """Place the tensors; raises TaskRefused where they do not fit, or are not those that the settings mean."""
        expect_floats(self.weights, header)
        if not header:
            raise TaskRefused(self.weights, "(whole file)", "it holds no tensors", "Save the adapter again")
        self._check_saved()
        for name in header:
            self._place(name)
        self._check_saved_tensors(header)
        self._check_parts()
        self._check_targets()
        if self.settings.peft_type == "IA3":
            self._check_factors(header)
        else:
            self._check_pairs(header)

    def _place(self, name: str) -> None:
        """`base_model.model.encoder.layer.0.query.lora_A.weight`: its module's path here, and the part."""
        whole = name.removeprefix("base_model.model.")
        if owner := next((path for path in self.saved if self._inside(whole).startswith(f"{path}.")), None):
            self.saved[owner][self._inside(whole).removeprefix(f"{owner}.")] = name
            return
        trained, _, part = whole.removesuffix(".weight").rpartition(".")
        if part not in {each for parts in PARTS.values() for each in parts}:
            raise TaskRefused(self.weights, name, "a tensor that no supported adapter holds", f"Supported: {SUPPORTED}")
        path = trained if trained in self.modules else self._inside(trained)
        if path not in self.modules:
            problem = f"the backbone has no module {path!r}"
            raise TaskRefused(self.weights, name, problem, ANOTHER_BACKBONE)
        if (path, part) in self.names:
            problem = f"it is for the same module as {self.names[path, part]}"
            raise TaskRefused(self.weights, name, problem, "Save the adapter again")
        self.names[path, part] = name
        self.trained[path] = trained

    def _inside(self, name: str) -> str:
        """The name of a module or a tensor that was trained inside AutoModelFor..., as the backbone has it."""
        return name.removeprefix(f"{self.prefix}.") if self.prefix else name

    def _named_to_save(self) -> list[str]:
        """Paths of what `modules_to_save` names; PEFT takes whatever ends so."""
        wanted = self.settings.modules_to_save or ()
        return [path for path in self.modules if any(f".{path}".endswith(f".{self._inside(name)}") for name in wanted)]

    def _check_saved(self) -> None:
        """Raise TaskRefused where modules that are brought whole cannot be told apart by row."""
        if self.settings.modules_to_save and not self.by_row:
            problem, remedy = "tasks of this family take no modules_to_save", "Train without it"
            raise TaskRefused(self.file, "modules_to_save", problem, remedy)
        for name in self.settings.modules_to_save or ():
            if not any(f".{path}".endswith(f".{self._inside(name)}") for path in self.saved):
                raise TaskRefused(
                    self.file,
                    "modules_to_save",
                    f"the backbone has no module {name!r}",
                    "A score head is a decoder here: take it over with Task(..., adapter=Pretrained(DIR), "
                    "decoder=Classifier([...])), or train without it",
                )
        for path in self.saved:
            outer = next((other for other in self.saved if path.startswith(f"{other}.")), None)
            if outer is not None:
                problem, remedy = f"{path} lies in {outer}, which is saved too", "Name the outer one alone"
                raise TaskRefused(self.file, "modules_to_save", problem, remedy)
            if path not in self.by_row:
                raise TaskRefused(
                    self.file,
                    "modules_to_save",
                    f"what {path} makes has no row for each row of a batch: one task's cannot replace the others'",
                    "Save the smallest module around it that has, or train without it",
                )

    def _check_saved_tensors(self, header: Header) -> None:
        for path, names in self.saved.items():
            wanted = plain_copy(self.modules[path]).state_dict()
            if set(names) != set(wanted):
                problem = f"{path} has the tensors {some(wanted)}, the file {some(names) or 'none'}"
                raise TaskRefused(self.weights, path, problem, "Save the adapter again, both files together")
            for part, name in names.items():
                expect_shape(self.weights, name, header[name], tuple(wanted[part].shape), f"the backbone's {path}")

    def _check_parts(self) -> None:
        wanted = {*PARTS["DORA" if self.settings.use_dora else self.settings.peft_type]}
        for path in sorted(self.trained):
            have = {part for other, part in self.names if other == path}
            if have != wanted:
                problem = f"it has {sorted(have)}, not {sorted(wanted)}"
                raise TaskRefused(self.weights, path, problem, "Save the adapter again")
            if path not in self.linears:
                raise TaskRefused(
                    self.file,
                    "target_modules",
                    f"{path} is a {type(self.modules[path]).__name__}, only Linear modules take adapters here",
                    "Train without that target module",
                )

    def _check_targets(self) -> None:
        """Refuse what PEFT passes over: modules without tensors get weights that do nothing, other tensors none."""
        inside = any(trained != path for path, trained in self.trained.items())
        trained_as = {path: f"{self.prefix}.{path}" if inside else path for path in self.linears} | self.trained
        meant = targeted(self.file, self.settings, list(trained_as.values()))
        extra = {trained for trained in self.trained.values() if trained not in meant}
        if extra:
            problem = f"there are tensors for {some(extra)}, which it does not name"
            raise TaskRefused(self.file, self._field(), problem, "Save the adapter again, both files together")
        missing = {
            trained
            for path, trained in trained_as.items()
            if trained in meant and path not in self.trained and not self._is_unread(path)
        }
        if missing:
            problem = f"{self.weights.name} has no tensors for {some(missing)}, which it names"
            raise TaskRefused(self.file, self._field(), problem, "Save the adapter again, both files together")

    def _field(self) -> str:
        return "target_modules" if self.settings.layers_to_transform in (None, []) else "layers_to_transform"

    def _is_unread(self, path: str) -> bool:
        return any(path == each or path.startswith(f"{each}.") for each in self.unread)

    def _check_pairs(self, header: Header) -> None:
        trained = list(self.trained.values())
        ranks = by_pattern(self.file, "rank_pattern", self.settings.rank_pattern, trained)
        for path, name in self.trained.items():
            linear, rank = self.linears[path], ranks.get(name, self.settings.r)
            a, b = self.names[path, "lora_A"], self.names[path, "lora_B"]
            of = f"the backbone's {path}"
            expect_shape(self.weights, a, header[a], (-1, linear.in_features), of)
            have = header[a].shape[0]
            expect_shape(self.weights, b, header[b], (linear.out_features, have), of)
            if not 0 < have <= MAX_RANK:
                problem = f"rank {have} is not between 1 and {MAX_RANK}"
                raise TaskRefused(self.weights, a, problem, "Train with a rank that is")
            if have != rank:
                problem = f"it says {rank} for {name}, whose tensors have rank {have}"
                field = "rank_pattern" if name in ranks else "r"
                raise TaskRefused(self.file, field, problem, "Save the adapter again, both files together")
            if self.settings.use_dora:
                magnitude = self.names[path, "lora_magnitude_vector"]
                expect_shape(self.weights, magnitude, header[magnitude], (linear.out_features,), of)

    def _check_factors(self, header: Header) -> None:
        inner = feedforward(self.file, self.settings, list(self.trained.values()))
        for path, trained in self.trained.items():
            linear, name = self.linears[path], self.names[path, "ia3_l"]
            before = trained in inner
            width = linear.in_features if before else linear.out_features
            if math.prod(header[name].shape) != width:
                shape = (1, width) if before else (width, 1)
                expect_shape(self.weights, name, header[name], shape, f"the backbone's {path}")


def _wrapped(module: nn.Module) -> nn.Linear | None:
    """The Linear in a module that is wrapped already, for the adapters of other tasks."""
    base = getattr(module, "base", None)
    return base if isinstance(base, nn.Linear) else None
