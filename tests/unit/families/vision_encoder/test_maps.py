"""Maps of pictures: the grid, what masks may be, and targets by patches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional
from vision_fixtures import MODELS, SIDE, picture, save_vision, vision_runtime

from fmplex_backend.decoders.decoder import TOKENS
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.vision_encoder import dense
from fmplex_backend.families.vision_encoder.depth import DepthMap
from fmplex_backend.families.vision_encoder.fitting import VisionFittingInputs
from fmplex_backend.families.vision_encoder.maps import enlarged
from fmplex_backend.families.vision_encoder.masks import UNKNOWN, numbers_of, resized, values_of
from fmplex_backend.families.vision_encoder.pictures import Picture
from fmplex_backend.families.vision_encoder.results import LabelMap, ValueMap
from fmplex_backend.families.vision_encoder.sections import ImageFile
from fmplex_backend.families.vision_encoder.segmentation import SegmentationMap

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(
    ("grid", "size"), [((4, 4), (32, 32)), ((7, 5), (9, 40)), ((16, 16), (5, 3)), ((1, 1), (6, 6))]
)
def test_a_map_is_enlarged_as_torch_does_it(
    grid: tuple[int, int], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmplex_backend.families.vision_encoder.maps.BLOCK", 3 * size[1] * 2)  # two rows at a time
    patches = np.random.default_rng(0).normal(size=(*grid, 3)).astype(np.float32)
    channels = torch.from_numpy(patches).permute(2, 0, 1)[None]
    wanted = functional.interpolate(channels, size=size, mode="bilinear", align_corners=False)
    blocks = list(enlarged(patches, size))
    assert len(blocks) == -(-size[0] // 2)
    np.testing.assert_allclose(np.concatenate(blocks), wanted[0].permute(1, 2, 0).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_every_backbone_has_a_grid_of_states_and_sees_the_whole_picture(tmp_path: Path, kind: str) -> None:
    runtime = vision_runtime(save_vision(tmp_path / kind, kind))
    stride = runtime.anatomy.stride
    assert stride == (8 if kind != "swin" else 4) * (2 if kind == "convnext" else 1)
    wide = picture(1, 20, 90)
    wide[:, :20] = 255  # a crop of the middle would not show it
    pixels = runtime.preprocessor.read(wide, whole=True)
    assert pixels.shape == (3, SIDE, SIDE)
    assert pixels.values[:, :, 0].min() == pixels.values.max()
    states = runtime.anatomy.states(runtime.model, runtime.preprocessor.normalised(_tensor(pixels), torch.float32))
    assert states.patches.shape[1] == (SIDE // stride) ** 2
    at_48 = runtime.preprocessor.read(wide, 48, whole=True)
    assert runtime.in_memory([at_48], TOKENS) == len(at_48.data) + 4 * runtime.hidden * (48 // stride) ** 2


def _tensor(pixels: Any) -> torch.Tensor:
    return torch.from_numpy(pixels.values.copy())[None]


def test_a_square_is_resized_as_the_processor_does_it(tmp_path: Path) -> None:
    preprocessor = vision_runtime(save_vision(tmp_path / "vit", "vit")).preprocessor
    square = picture(3, 77, 77)
    assert preprocessor.read(square, whole=True).data == preprocessor.read(square).data


def test_a_backbone_without_a_grid_has_no_maps(tmp_path: Path) -> None:
    runtime = vision_runtime(save_vision(tmp_path / "vit", "vit"))
    runtime.anatomy = replace(runtime.anatomy, stride=None)
    inputs = VisionFittingInputs(ImageFile(), runtime)
    with pytest.raises(TaskProblem, match=r"states of a vit are no square grid of patches.*another kind of decoder"):
        inputs.features(runtime.model, runtime.model, TOKENS)


@pytest.mark.parametrize("suffix", [".png", ".npy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_are_read_as_they_are_stored(tmp_path: Path, suffix: str, dtype: Any) -> None:
    numbers = np.array([[0, 1, 2], [2, 255, 1]], dtype=dtype)
    file = tmp_path / f"mask{suffix}"
    if suffix == ".png":
        Image.fromarray(numbers).save(file)
    else:
        np.save(file, numbers)
    wanted = [[0, 1, 2], [2, UNKNOWN, 1]]
    assert numbers_of(file, 3).tolist() == wanted
    assert numbers_of(numbers, 0).tolist() == wanted
    assert numbers_of(numbers, 256).tolist() == numbers.tolist()  # then 255 is a label
    assert numbers_of(numbers[:1, :, None].astype(np.int64) - 1, 2).tolist() == [[UNKNOWN, 0, 1]]


def test_a_palette_s_index_counts() -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 2]], dtype=np.uint8), mode="L").convert("P")
    image.putdata([0, 1, 1, 2])
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    assert numbers_of(image, 3).tolist() == [[0, 1], [1, 2]]
    assert numbers_of(np.array([[True, False]]), 2).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (Image.new("RGB", (4, 4)), "it is RGB, and a mask has one channel"),
        (np.zeros((4, 4), np.float32), "float32"),
        (np.full((2, 2), 3, np.uint8), "it has the number 3, and the labels have 0 to 2"),
        (np.zeros((2, 2, 3), np.uint8), r"uint8 \[2, 2, 3\]"),
        ("sky", "a mask is a picture of one channel"),
    ],
)
def test_what_is_no_mask_says_so(given: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        numbers_of(given, 3)


def test_damaged_masks_are_named_with_their_row(tmp_path: Path) -> None:
    decoder = SegmentationMap(["a", "b"], size=4)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    for name in ("bad.png", "bad.npy"):
        rows = Rows([Picture(picture(0))] * 2, [np.eye(40, 48, dtype=np.uint8), tmp_path / name], [], "data.csv")
        with pytest.raises(TaskProblem, match=rf"data\.csv, row 1: .*{name}: it cannot be read.*leave the row out"):
            decoder.targets(rows)
    turned = Rows([Picture(picture(0))], [np.eye(48, 40, dtype=np.uint8)], [])
    with pytest.raises(TaskProblem, match="row 0: its mask: it has 40 x 48 pixels, and its picture 48 x 40"):
        decoder.targets(turned)


def test_depths_know_what_they_do_not_know() -> None:
    found = values_of(np.array([[0, 1000], [2500, 0]], dtype=np.uint16), 0.001)
    np.testing.assert_allclose(found, [[np.nan, 1.0], [2.5, np.nan]])
    np.testing.assert_allclose(values_of(np.array([[np.inf, -1.5]]), 3.0), [[np.nan, -1.5]])
    with pytest.raises(ValueError, match="bool"):
        values_of(np.array([[True]]), 1.0)


def test_a_picture_s_size_is_that_of_its_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(picture(0, 20, 30)).save(tmp_path / "turned.jpg", exif=exif)
    turned = Picture(tmp_path / "turned.jpg")
    assert turned.size() == turned.pixels(10_000).shape[:2] == (30, 20)
    assert Picture(picture(0, 20, 30)).size() == (20, 30)
    whole = (tmp_path / "turned.jpg").read_bytes()
    for end in range(4, 200, 7):  # within the segments of its header
        with pytest.raises(ValueError, match=r"a picture of .* bytes is (no JPEG|damaged)"):
            Picture(whole[:end]).size()


def test_resizing_takes_the_nearest_pixel() -> None:
    small = np.array([[1, 2], [3, 4]])
    assert resized(small, (4, 2)).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert resized(resized(small, (10, 6)), (2, 2)).tolist() == small.tolist()


def test_patches_have_shares_of_labels() -> None:
    mask = np.zeros((1, 4, 4), np.int16)
    mask[0, :2, 2:] = [[1, 1], [1, 2]]
    mask[0, 2:] = UNKNOWN
    mask[0, 3, 3] = 1
    shares = dense.label_shares(torch.from_numpy(mask), 4, 3)
    assert shares.tolist() == [[[1, 0, 0], [0, 0.75, 0.25], [0, 0, 0], [0, 0.25, 0]]]
    several = torch.from_numpy(np.concatenate([mask, mask[:, ::-1].copy()] * 40))
    assert torch.equal(dense.label_shares(several, 4, 3)[-2:], dense.label_shares(several[:2], 4, 3))
    tiny = dense.label_shares(torch.zeros(1, 1, 1, dtype=torch.int16), 4, 2)
    assert tiny.sum() == 1  # three patches of four have no pixel


def test_the_loss_is_that_of_every_pixel() -> None:
    torch.manual_seed(0)
    decoder = SegmentationMap(["a", "b", "c"], size=8)
    masks, values = torch.randint(-1, 3, (5, 8, 8), dtype=torch.int16), torch.randn(5, 16, 3)
    by_pixel = values.view(5, 4, 4, 3).repeat_interleave(2, 1).repeat_interleave(2, 2)
    for weights in (None, torch.tensor([1.0, 2.0, 0.5])):
        wanted = functional.cross_entropy(by_pixel.flatten(0, 2), masks.long().flatten(), weights, ignore_index=UNKNOWN)
        assert float(decoder.loss(values, masks, weights)) == pytest.approx(float(wanted), abs=1e-5)
    known = masks != UNKNOWN
    right = (by_pixel.argmax(-1) == masks)[known].float().mean()
    assert decoder.figure_of(values, masks) == ("pixel_accuracy", pytest.approx(float(right)))


def test_values_are_means_of_what_is_known() -> None:
    depth = torch.tensor([[[1.0, 3.0, 5.0, torch.nan], [torch.nan, 2.0, torch.nan, torch.nan]]])
    found = dense.means(depth, 2**2)
    wanted = [[[2.0, 1.0], [5.0, 0.5], [2.0, 0.5], [0.0, 0.0]]]
    assert found.tolist() == wanted
    values = torch.tensor([[2.0], [4.0], [3.0], [100.0]])
    assert float(dense.squared_error(values, found[0])) == pytest.approx((0 + 0.5 + 0.5) / 2)
    assert float(DepthMap(size=2).loss(values[None], depth, None)) == pytest.approx(0.5)


def test_figures_of_depths_are_over_all_known_pixels() -> None:
    numbers = np.random.default_rng(0)
    depths = [(1e4 + numbers.normal(place, 2, (5 + place, 8))).astype(np.float32) for place in range(4)]
    depths[1][2:] = np.nan
    depths[2][:] = np.nan
    maps = [(1e4 + numbers.normal(0, 2, (3, 4))).astype(np.float32) for _ in depths]
    pictures = [Picture(picture(0, 8 * len(depth), 64)) for depth in depths]
    rows = Rows(pictures, depths, [], "rows")
    found = DepthMap(size=(3, 4)).figures(rows, [{"MAP": each} for each in maps])
    errors = [resized(each, depth.shape) - depth.astype(np.float64) for each, depth in zip(maps, depths, strict=True)]
    error, wanted = (np.concatenate([each.ravel() for each in parts]) for parts in (errors, depths))
    assert found.figures == {
        "rmse": pytest.approx(np.sqrt(np.nanmean(error**2)), abs=1e-3),
        "mae": pytest.approx(np.nanmean(np.abs(error)), abs=1e-3),
        "mean_rmse": pytest.approx(np.nanstd(wanted.astype(np.float64)), abs=1e-3),
    }
    with pytest.raises(TaskProblem, match="no pixel has a known value"):
        DepthMap(size=2).figures(Rows([pictures[2]], [depths[2]], [], "rows"), [{"MAP": maps[0]}])


def test_results_read_as_people_want_them() -> None:
    found = LabelMap(np.array([[0, 0], [2, 0]], np.uint8), {"sky": 0.6, "sea": 0.1, "land": 0.3})
    assert found.shares == {"sky": 0.75, "land": 0.25}
    assert found.shown() == "sky 75.0%, land 25.0%"
    assert found.mask("land").tolist() == [[False, False], [True, False]]
    assert found.resized(4, 6).shape == (4, 6)
    with pytest.raises(KeyError, match="tree"):
        found.mask("tree")
    assert ValueMap(np.array([[1.0, 3.0]], np.float32)).shown() == "2 x 1 values: 1 to 3, mean 2"


def test_maps_are_drawn_over_their_pictures(tmp_path: Path) -> None:
    from fmplex.cli.plotting import draw

    labels = LabelMap(np.array([[0, 0], [21, 0]], np.uint8), {f"label {number}": 0.0 for number in range(22)})
    values = ValueMap(np.array([[1.0, 3.0]], np.float32))
    draw(tmp_path / "maps.png", [picture(0), picture(1)], [labels, values], [None, None])
    with Image.open(tmp_path / "maps.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 100


def test_sizes_and_labels_have_limits() -> None:
    assert SegmentationMap(size=16).size == (16, 16)
    assert DepthMap(size=(3, 4)).size == (3, 4)
    for wrong in (0, (8, 4096), (1, 2, 3)):
        with pytest.raises(ValidationError, match="size"):
            SegmentationMap(size=wrong)
    with pytest.raises(ValidationError, match="257 labels"):
        SegmentationMap([str(number) for number in range(257)])
