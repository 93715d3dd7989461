"""Whether a server would serve a task: its version is loaded as the server does it, and runs once."""

from __future__ import annotations

from fmplex.task.backbone import Backbone
from fmplex_backend import families
from fmplex_backend.errors import FmplexError, TaskRefused
from fmplex_backend.repository.check import load_checked
from fmplex_backend.repository.config import load_task_config
from fmplex_backend.repository.tasks import TaskSpec


def check_task(spec: TaskSpec, backbone: Backbone) -> None:
    """Raise TaskRefused for what the loader would refuse, and where the version does not answer a valid request."""
    try:
        extensions = load_checked(backbone.load, spec)
        reads = families.input_named(extensions.takes)
        assert reads is not None, "a family's own encoder takes it"
        item = reads.probe(load_task_config(spec.version.path / "task.json").encoder.size())
        backbone.attach(extensions)
        try:
            backbone.replies(extensions, [item], backbone.family.probe_parameters)
        finally:
            backbone.detach(extensions)
    except FmplexError:
        raise
    except Exception as error:  # of an installed package's code, or of files that nothing here foresees
        problem = f"trying it once raised {type(error).__name__}: {error}"
        raise TaskRefused(spec.version.path, "(whole version)", problem, "Save it again from its program") from error
