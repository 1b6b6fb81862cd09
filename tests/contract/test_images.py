"""Image sets, triggers and reference files: the released formats, and refusals in one line."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchbd import DataError, ImageSet, Trigger, UsageError
from benchbd.base import arrays
from benchbd.base.arrays import read_npz
from benchbd.contract.images import to_float
from benchbd.data.references import load_references


def random_pixels(n: int, size: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)


def write_pictures(folder: Path, colours: dict[str, int], size: int = 32) -> None:
    for name, level in colours.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(folder / name)


def test_images_of_a_folder(tmp_path: Path) -> None:
    """All pictures in the order of their paths, resized; no labels; a draw depends on the seed alone."""
    levels = {"b/2.png": 30, "a.png": 10, "b/1.png": 20, "c/z.png": 40}
    write_pictures(tmp_path, levels, size=40)
    whole = ImageSet.from_folder(tmp_path)
    assert whole.pixels[:, 0, 0, 0].tolist() == [10, 20, 30, 40]
    assert tuple(whole.pixels.shape) == (4, 3, 32, 32)
    assert whole.labels is None
    assert whole.pixels.is_contiguous()
    assert ImageSet.from_folder(str(tmp_path), 64, images=9).pixels.shape[-1] == 64
    drawn = [ImageSet.from_folder(tmp_path, images=2, seed=seed).pixels[:, 0, 0, 0].tolist() for seed in range(20)]
    assert all(pair == sorted(pair) and len(pair) == 2 for pair in drawn)
    assert len({tuple(pair) for pair in drawn}) > 1
    assert drawn[3] == ImageSet.from_folder(tmp_path, images=2, seed=3).pixels[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"size": 0}, "size 0: must be a whole number from 32 to 224"),
        ({"size": "a"}, "size 'a': must be a whole number from 32 to 224"),
        ({"size": 225}, "size 225: must be a whole number from 32 to 224"),
        ({"size": True}, "size True: must be a whole number from 32 to 224"),
        ({"images": 0}, "images 0: must be a whole number from 1 on"),
        ({"images": -3}, "images -3: must be a whole number from 1 on"),
        ({"images": 2.0}, r"images 2\.0: must be a whole number from 1 on"),
        ({"seed": -1}, "seed -1: must be a whole number from 0 to 9223372036854775807"),
        ({"seed": 2**64}, "seed 18446744073709551616: must be a whole number from 0 to 9223372036854775807"),
    ],
)
def test_numbers_out_of_bounds_are_one_line(tmp_path: Path, given: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=f"^{line}$"):
        ImageSet.from_folder(tmp_path, **given)


def test_a_folder_without_pictures_is_one_line(tmp_path: Path) -> None:
    for place, line in {
        tmp_path / "absent": "no such folder",
        Path(__file__): "a folder of pictures is expected",
        Path(__file__).parent / "__init__.py": "a folder of pictures is expected",
        tmp_path: "it is empty: no picture below it",
    }.items():
        with pytest.raises(DataError, match=f"^{place}: {line}$"):
            ImageSet.from_folder(place)
    write_pictures(tmp_path, {"whole.png": 1})
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"half\.png: "):
        ImageSet.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("size", "image", "first", "last"), [(10, 32, 21, 30), (5, 32, 26, 30), (3, 32, 28, 30), (50, 224, 173, 222)]
)
def test_square_sits_one_pixel_from_the_corner(size: int, image: int, first: int, last: int) -> None:
    trigger = Trigger.square(size, image)
    assert trigger.size == image
    assert trigger.box == (first, first, last, last)
    expected = torch.zeros(image, image, dtype=torch.bool)
    expected[first : last + 1, first : last + 1] = True
    assert torch.equal(~trigger.keep, expected.expand(3, -1, -1))
    stamped = trigger.stamp(random_pixels(2, image))
    assert (stamped[:, :, expected] == 255).all()
    assert int(expected.sum()) == size * size


def test_stamp_replaces_masked_pixels_and_nothing_else() -> None:
    images, trigger = random_pixels(5), Trigger.square(5)
    before = images.clone()
    stamped = trigger.stamp(images)
    assert torch.equal(images, before)
    assert stamped.dtype == torch.uint8
    assert torch.equal(stamped[:, trigger.keep], images[:, trigger.keep])
    assert (stamped != images).any()
    assert torch.equal(stamped, (images * trigger.keep + trigger.pattern))  # the released x * tm + t
    assert torch.equal(trigger.stamp(stamped), stamped)
    assert torch.equal(trigger.stamp(images[0]), stamped[0])  # a single image too
    white = torch.full_like(images, 255)
    assert torch.equal(trigger.stamp(white), white)


def test_stamped_keeps_labels_and_names() -> None:
    images = ImageSet(random_pixels(2), torch.tensor([1, 0]), ("a", "b"))
    stamped = Trigger.square(3).stamped(images)
    assert torch.equal(stamped.pixels, Trigger.square(3).stamp(images.pixels))
    assert stamped.labels is not None
    assert stamped.labels.tolist() == [1, 0]
    assert stamped.classes == ("a", "b")


def test_empty_trigger_changes_nothing() -> None:
    trigger, images = Trigger.square(0), random_pixels(3)
    assert trigger.box is None
    assert torch.equal(trigger.stamp(images), images)


def test_trigger_must_fit() -> None:
    for size in (32, 33, -1):
        with pytest.raises(UsageError, match=r"sizes are 0\.\.31"):
            Trigger.square(size)
    assert Trigger.square(31).box == (0, 0, 30, 30)
    with pytest.raises(UsageError, match="32x32 images does not fit images of 64x64"):
        Trigger.square(3).stamp(random_pixels(1, 64))


def test_white_after_normalisation() -> None:
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    pixel = to_float(Trigger.square().stamp(random_pixels(1)))[0, :, 25, 25]
    assert ((pixel - mean) / std).tolist() == pytest.approx([2.514, 2.597, 2.754], abs=1e-3)


def patterned() -> Trigger:
    """A coloured, asymmetric trigger: mistakes in axis order become visible."""
    keep = torch.ones(3, 32, 32, dtype=torch.bool)
    keep[:, 2:5, 20:30] = False
    pattern = torch.zeros(3, 32, 32, dtype=torch.uint8)
    pattern[:, 2:5, 20:30] = torch.arange(90, dtype=torch.uint8).view(3, 3, 10)
    return Trigger(pattern, keep)


def test_a_wandering_patch_is_whole_and_alone() -> None:
    """At every position: the same patch, holes included, and no other pixel changes."""
    keep = patterned().keep.clone()
    keep[1, 3, 24] = True  # a hole in one channel
    trigger = Trigger(torch.where(keep, 0, patterned().pattern), keep, (0.1, 0.9))
    pixels = random_pixels(40).clamp(min=100)  # the pattern is darker
    before = pixels.clone()
    stamped = trigger.stamp(pixels, torch.Generator().manual_seed(1))
    assert torch.equal(pixels, before)
    assert stamped.dtype == torch.uint8
    places = set()
    for one, clean in zip(stamped, pixels, strict=True):
        rows, columns = (one != clean).any(0).nonzero(as_tuple=True)
        shift = (int(rows.min()) - 2, int(columns.min()) - 20)
        moved = [a.roll(shift, (1, 2)) for a in (trigger.keep, trigger.pattern)]
        assert torch.equal(one, torch.where(moved[0], clean, moved[1]))
        places.add(shift)
    assert len(places) > 30
    again = trigger.stamp(pixels, torch.Generator().manual_seed(1))
    assert torch.equal(again, stamped)
    assert not torch.equal(trigger.stamp(pixels, torch.Generator().manual_seed(2)), stamped)


@pytest.mark.parametrize(
    ("side", "size", "wander", "first", "last"),
    [
        (10, 32, (0.10, 0.90), 3, 18),  # the official BASSL's test images: int(28.8 - 10)
        (10, 32, (0.25, 0.75), 8, 14),  # and its poisons
        (10, 32, (0, 1), 0, 22),
        (16, 32, (0.25, 0.75), 8, 8),
        (20, 32, (0.25, 0.75), 8, 8),  # 24 - 20 is below 8: the lower end
        (31, 32, (0.25, 0.75), 1, 1),  # nor out of the image
        (5, 100, (0.29, 0.4), 29, 35),  # 0.29 * 100 is 28.999999999999996
    ],
)
def test_places_are_uniform(side: int, size: int, wander: tuple[float, float], first: int, last: int) -> None:
    images, starts = 200 if size == 100 else 2000, last - first + 1
    trigger = Trigger.square(side, size).within(*wander)
    marked = trigger.stamp(torch.zeros(images, 3, size, size, dtype=torch.uint8), torch.Generator().manual_seed(0))
    white = marked[:, 0] == 255
    assert white.sum((1, 2)).tolist() == [side * side] * images
    rows, columns = (white.any(axis).int().argmax(1) for axis in (2, 1))
    for found in (rows, columns):
        counts = torch.bincount(found - first, minlength=starts)
        assert int(found.min()) >= first
        assert counts.shape == (starts,)
        assert bool((abs(counts - images / starts) < 5 * (images / starts) ** 0.5).all())
    if starts > 1:
        both = torch.stack([rows, columns]).double()
        assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / images**0.5  # the two are independent


def test_wandering_on_any_shape() -> None:
    trigger, images = Trigger.square(5).within(0.1, 0.9), random_pixels(6)

    def stamp(pixels: Tensor) -> Tensor:
        return trigger.stamp(pixels, torch.Generator().manual_seed(3))

    assert torch.equal(stamp(images.view(2, 3, 3, 32, 32)).view(6, 3, 32, 32), stamp(images))
    assert stamp(images[0]).shape == (3, 32, 32)
    assert stamp(images[:0]).shape == (0, 3, 32, 32)
    strided = images.to(memory_format=torch.channels_last)
    assert torch.equal(stamp(strided), stamp(images))
    assert torch.equal(strided, images)
    assert torch.equal(Trigger.square(0).within(0.1, 0.9).stamp(images, torch.Generator()), images)


def test_only_a_wandering_trigger_draws() -> None:
    images, generator = random_pixels(3), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert torch.equal(Trigger.square(5).stamp(images, generator), Trigger.square(5).stamp(images))
    assert torch.equal(generator.get_state(), state)
    wandering = Trigger.square(5).within(0.1, 0.9)
    for stamp in (lambda: wandering.stamp(images), lambda: wandering.stamped(ImageSet(images))):
        with pytest.raises(UsageError, match="a trigger at random places needs a generator"):
            stamp()
    stamped = wandering.stamped(ImageSet(images, torch.tensor([2, 0, 1])), torch.Generator().manual_seed(4))
    assert torch.equal(stamped.pixels, wandering.stamp(images, torch.Generator().manual_seed(4)))
    assert stamped.labels is not None
    assert stamped.labels.tolist() == [2, 0, 1]


def test_what_wandering_leaves_and_changes(tmp_path: Path) -> None:
    fixed, wandering = Trigger.square(10), Trigger.square(10).within(0.1, 0.9)
    assert fixed.wander is None
    assert fixed.digest == "4b6ef9214d36b28b4bdceedb4c91bddadaa75f985ac3da1cf8348005a69394a3"  # published records
    others = [wandering, fixed.within(0.1, 0.8), fixed.within(0.25, 0.75), Trigger.square(9).within(0.1, 0.9)]
    assert len({fixed.digest, *(other.digest for other in others)}) == 5
    assert fixed.within(0, 1).digest == fixed.within(0.0, 1.0).digest
    assert wandering.to("cpu").digest == wandering.digest == fixed.within(0.3, 0.4).within(0.1, 0.9).digest
    assert (wandering.size, wandering.box) == (fixed.size, fixed.box) == (32, (21, 21, 30, 30))
    wandering.save(tmp_path / "patch.npz")
    assert Trigger.load(tmp_path / "patch.npz").digest == fixed.digest  # a file holds the patch alone
    for low, high in ((0.5, 0.4), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1)):
        with pytest.raises(UsageError, match="wanders within 0 <= low <= high <= 1"):
            fixed.within(low, high)


def test_saved_trigger_has_the_released_format(tmp_path: Path) -> None:
    trigger = patterned()
    trigger.save(tmp_path / "trigger.npz")
    with np.load(tmp_path / "trigger.npz") as file:
        assert (file["t"].shape, file["t"].dtype) == ((1, 32, 32, 3), np.float64)
        assert (file["tm"].shape, file["tm"].dtype) == ((1, 32, 32, 3), np.int64)
        assert file["t"][0, 3, 21, 2] == trigger.pattern[2, 3, 21] == 71
        assert file["tm"][0, 3, 21].tolist() == [0, 0, 0]
        assert file["tm"][0, 21, 3].tolist() == [1, 1, 1]
    again = Trigger.load(tmp_path / "trigger.npz")
    assert torch.equal(again.pattern, trigger.pattern)
    assert torch.equal(again.keep, trigger.keep)
    assert again.digest == trigger.digest != Trigger.square().digest


@pytest.mark.parametrize("leading_axis", [True, False])
@pytest.mark.parametrize("dtypes", [(np.float64, np.int64), (np.uint8, np.float32), (np.int32, np.bool_)])
def test_released_variants_load_alike(tmp_path: Path, leading_axis: bool, dtypes: tuple[type, type]) -> None:
    t, tm = (a.permute(1, 2, 0).numpy() for a in (patterned().pattern, patterned().keep))
    if leading_axis:
        t, tm = t[None], tm[None]
    np.savez(tmp_path / "t.npz", t=t.astype(dtypes[0]), tm=tm.astype(dtypes[1]), info=np.array(["x"]))
    loaded = Trigger.load(tmp_path / "t.npz")
    assert loaded.pattern.dtype == torch.uint8
    assert loaded.keep.dtype == torch.bool
    assert loaded.digest == patterned().digest


ZEROS, ONES = np.zeros((1, 32, 32, 3)), np.ones((1, 32, 32, 3))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"t": ZEROS}, "no array 'tm'"),
        ({"t": ZEROS, "tm": ONES[:, :16]}, "must both be"),
        ({"t": ZEROS[0, :, :16], "tm": ONES[0, :, :16]}, "must both be"),
        ({"t": ZEROS[0, :, :, 0], "tm": ONES[0, :, :, 0]}, "must both be"),
        ({"t": np.zeros((1, 0, 0, 3)), "tm": np.ones((1, 0, 0, 3))}, "must both be"),
        ({"t": np.zeros((0, 32, 32, 3)), "tm": np.ones((0, 32, 32, 3))}, "must both be"),
        ({"t": ZEROS, "tm": ONES / 2}, "only 0 and 1"),
        ({"t": ZEROS + 0.5, "tm": ONES * 0}, "integers"),
        ({"t": ZEROS + 256, "tm": ONES * 0}, "integers"),
        ({"t": ZEROS - 1, "tm": ONES * 0}, "integers"),
        ({"t": ZEROS + np.nan, "tm": ONES * 0}, "integers"),
        ({"t": np.full((1, 32, 32, 3), "a"), "tm": ONES * 0}, "integers"),
        ({"t": ZEROS + 9, "tm": ONES}, "t must be 0 wherever tm is 1"),
        ({"t": ZEROS, "tm": ONES}, "a trigger that replaces no pixel: nothing is 0 in tm"),
        ({"t": ZEROS + 1, "tm": ONES * 0}, r"t must be in units of 0\.\.255, not of 0\.\.1"),
        ({"t": ZEROS == 0, "tm": ONES * 0}, r"t must be in units of 0\.\.255, not of 0\.\.1"),
    ],
)
def test_bad_triggers_are_refused_in_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=reason) as caught:
        Trigger.load(tmp_path / "bad.npz")
    assert str(caught.value).startswith(str(tmp_path / "bad.npz"))
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused_in_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", x=np.arange(2000))
    good = (tmp_path / "good.npz").read_bytes()
    single = io.BytesIO()
    np.save(single, np.arange(3))
    objects = io.BytesIO()
    np.savez(objects, x=np.array([object()]))
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("x.npy", "no header")
    contents = {
        "empty": b"",
        "text": b"hello",
        "npy": single.getvalue(),
        "objects": objects.getvalue(),
        "zip": other.getvalue(),
        "short": good[: len(good) // 2],
    }
    reasons = {"empty": "an empty file", "text": "it is text", "npy": "it is a .npy", "objects": "it holds Python obj"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=reasons.get(name, "not a readable npz")) as caught:
            read_npz(tmp_path / name, "x")
        assert "pickle" not in str(caught.value), name
        assert str(caught.value).startswith(f"{tmp_path / name}: "), name
        assert "\n" not in str(caught.value), name
    with pytest.raises(DataError, match="no such file"):
        read_npz(tmp_path / "absent.npz", "x")
    with pytest.raises(DataError):
        read_npz(tmp_path, "x")  # a folder


def test_a_flipped_byte_is_caught_or_harmless(tmp_path: Path) -> None:
    """Whatever byte is damaged: the array is intact, or the error is a DataError."""
    array = np.arange(40)
    np.savez_compressed(tmp_path / "good.npz", x=array)
    good = (tmp_path / "good.npz").read_bytes()
    refused = 0
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 0xFF
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            assert np.array_equal(read_npz(tmp_path / "bad.npz", "x")["x"], array), position
        except DataError:
            refused += 1
    assert refused > len(good) / 3


def test_references(tmp_path: Path) -> None:
    x = random_pixels(3).permute(0, 2, 3, 1).numpy()
    for y in (np.array([1, 0, 1]), np.array([[1], [0], [1]], dtype=np.uint8)):  # DRUPE's are (r, 1)
        np.savez(tmp_path / "ref.npz", x=x, y=y, info=np.array(["x"]))
        loaded = load_references(tmp_path / "ref.npz", 1, 32)
        assert torch.equal(loaded, random_pixels(3)[[0, 2]])
        assert loaded.is_contiguous()
    with pytest.raises(DataError, match=r"no reference of class 2; it has \[0, 1\]"):
        load_references(tmp_path / "ref.npz", 2, 32)
    with pytest.raises(DataError, match="x must be uint8"):
        load_references(tmp_path / "ref.npz", 1, 224)
    for bad in ({"x": x.astype(np.float32), "y": y}, {"x": x, "y": y[:2]}, {"x": x[0], "y": y[:1]}):
        np.savez(tmp_path / "bad.npz", **bad)
        with pytest.raises(DataError, match="x must be uint8"):
            load_references(tmp_path / "bad.npz", 1, 32)


@pytest.mark.parametrize(
    "pixels",
    [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8)],
    ids=["float", "channels last", "single image"],
)
def test_images_of_another_kind_are_refused(pixels: Tensor) -> None:
    with pytest.raises(DataError, match=r"images are uint8 \(N, 3, H, W\), not "):
        ImageSet(pixels)


@pytest.mark.parametrize("labels", [torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.zeros(2, 1).long()])
def test_labels_of_another_kind_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError, match=r"labels are int64 \(2,\), not "):
        ImageSet(random_pixels(2), labels)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"std": (0.2, 0.0, 0.2)}, "std is three finite numbers, each above 0, not"),
        ({"std": (0.2, float("nan"), 0.2)}, "std is three finite numbers, each above 0, not"),
        ({"mean": (0.5, 0.5)}, "mean is three finite numbers, not"),
        ({"mean": (0.5, float("inf"), 0.5)}, "mean is three finite numbers, not"),
    ],
)
def test_a_normalisation_that_cannot_be_divided_by_is_refused(
    declared: dict[str, tuple[float, ...]], reason: str
) -> None:
    with pytest.raises(DataError, match=f"^{reason}"):
        ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), **declared)


def test_digest_is_of_the_content() -> None:
    def images(**changes: object) -> ImageSet:
        given = {"pixels": random_pixels(4), "labels": torch.tensor([0, 1, 1, 0]), "classes": ("a", "b")}
        return ImageSet(**(given | changes))  # type: ignore[arg-type]

    same = images(pixels=random_pixels(4).to(memory_format=torch.channels_last))
    assert images().digest == same.digest
    assert images().digest == images(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)).digest
    changed = random_pixels(4)
    changed[3, 2, 31, 31] ^= 1
    others = [
        images(pixels=changed),
        images(pixels=random_pixels(4).view(4, 3, 16, 64)),
        images(labels=torch.tensor([0, 1, 1, 1])),
        images(labels=None),
        images(classes=("a", "c")),
    ]
    assert len({images().digest, *(other.digest for other in others)}) == 6


def test_normalization_is_computed_from_the_pixels() -> None:
    pixels = (random_pixels(20).float() * torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1)).byte()
    floats = pixels.double() / 255
    mean, std = ImageSet(pixels).normalization()
    assert mean == pytest.approx(floats.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert std == pytest.approx(floats.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    declared = ImageSet(pixels, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert declared.normalization() == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert all(s > 0 for s in ImageSet(torch.zeros_like(pixels)).normalization()[1])


def test_unlabeled_owns_its_storage() -> None:
    images = ImageSet(random_pixels(4), torch.arange(4), ("a", "b", "c", "d"), (0.5,) * 3, (0.2,) * 3)
    given = ImageSet(images.pixels[:2], images.labels[:2] if images.labels is not None else None, images.classes)
    clone = given.unlabeled()
    assert clone.labels is None
    assert clone.classes == ()
    assert clone.pixels.untyped_storage().nbytes() == 2 * 3 * 32 * 32  # no other image lies behind it
    clone.pixels.zero_()
    assert torch.equal(images.pixels, random_pixels(4))
    assert images.unlabeled().normalization() == images.normalization()


def test_subsets_are_copies_in_the_given_order() -> None:
    images = ImageSet(random_pixels(4), torch.tensor([5, 6, 5, 7]))
    part = images.subset(torch.tensor([3, 0]))
    assert torch.equal(part.pixels, random_pixels(4)[[3, 0]])
    assert part.labels is not None
    assert part.labels.tolist() == [7, 5]
    part.pixels.zero_()
    assert torch.equal(images.pixels, random_pixels(4))
    assert torch.equal(images.of_class(5).pixels, random_pixels(4)[[0, 2]])
    assert len(images.of_class(9)) == 0
    with pytest.raises(DataError, match="no labels"):
        images.unlabeled().of_class(5)


def test_batches_are_in_order_and_in_unit_range() -> None:
    images = ImageSet(random_pixels(5))
    parts = list(images.batches(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat(parts), random_pixels(5).float() / 255)


@pytest.mark.parametrize(("size", "box"), [(10, (11, 11, 20, 20)), (5, (13, 13, 17, 17))])
def test_a_square_in_the_middle(size: int, box: tuple[int, int, int, int]) -> None:
    centred = Trigger.square(size, center=True)
    assert centred.box == box
    assert centred.digest != Trigger.square(size).digest


def save_png(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_triggers_from_pictures_and_arrays_are_that_of_the_npz(tmp_path: Path) -> None:
    """The white square as a patch, with alpha, on black, and as arrays of these: one digest."""
    square = Trigger.square(10)
    patch, black = np.full((10, 10, 3), 255, np.uint8), square.pattern.permute(1, 2, 0).numpy()
    alpha = np.dstack([np.where(black, black, 77), black[..., 0]])
    for number, pixels in enumerate((patch, black, alpha, patch[:, :, :1].repeat(4, 2))):
        save_png(tmp_path / f"{number}.png", pixels)
        np.save(tmp_path / f"{number}.npy", pixels[None] if number % 2 else pixels)
        for suffix in ("png", "npy"):
            assert Trigger.load(tmp_path / f"{number}.{suffix}").digest == square.digest, (number, suffix)
    Image.fromarray(black).quantize(2).save(tmp_path / "palette.png")
    assert Trigger.load(tmp_path / "palette.png").digest == square.digest
    assert Trigger.load(tmp_path / "0.png", 64).digest == Trigger.square(10, 64).digest
    (tmp_path / "0.npz").write_bytes((tmp_path / "0.png").read_bytes())  # recognised by its content, not by its name
    assert Trigger.load(tmp_path / "0.npz").digest == square.digest


def test_a_release_that_repeats_its_trigger_holds_one(tmp_path: Path) -> None:
    square = Trigger.square(10)
    square.save(tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz") as file:
        t, tm = (np.repeat(file[name], 3, 0) for name in ("t", "tm"))
    np.savez(tmp_path / "three.npz", t=t, tm=tm)
    assert Trigger.load(tmp_path / "three.npz").digest == square.digest
    np.savez(tmp_path / "three.npz", t=t, tm=tm[:1])
    assert Trigger.load(tmp_path / "three.npz").digest == square.digest
    t[2, 25, 25] = 7
    np.savez(tmp_path / "three.npz", t=t, tm=tm)
    with pytest.raises(DataError, match=r"3 triggers in one file, and number 2 is not number 0: give each task a file"):
        Trigger.load(tmp_path / "three.npz")


def test_pictures_and_arrays_that_are_no_trigger(tmp_path: Path) -> None:
    blended = np.dstack([np.full((5, 5, 3), 9), np.full((5, 5), 128)]).astype(np.uint8)
    large = np.zeros((40, 40, 3), np.uint8)
    for pixels, reason in (
        (blended, "alpha must be 0 .* or 255"),
        (large, r"of at most 32x32, not \(40, 40, 3\)"),
        (large[:32, :32], "replaces no pixel"),
        (blended * np.array([1, 1, 1, 0], np.uint8), "replaces no pixel"),
    ):
        with pytest.raises(DataError, match=reason):
            Trigger.load(save_png(tmp_path / "t.png", pixels))
    np.save(tmp_path / "t.npy", np.full((4, 4, 3), 0.5))
    with pytest.raises(DataError, match=r"t\.npy: .* only integers 0\.\.255"):
        Trigger.load(tmp_path / "t.npy")
    np.save(tmp_path / "t.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(DataError, match=r"t\.npy: not a readable \.npy file \(it holds Python objects"):
        Trigger.load(tmp_path / "t.npy")
    Image.fromarray(large[:8, :8]).save(tmp_path / "t.jpg")
    with pytest.raises(DataError, match="not a readable npz file \\(it is a JPEG picture"):
        Trigger.load(tmp_path / "t.jpg")
    content = (tmp_path / "t.png").read_bytes()
    (tmp_path / "t.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable picture"):
        Trigger.load(tmp_path / "t.png")


def test_references_from_pictures_and_arrays_are_of_the_target(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = random_pixels(3).permute(0, 2, 3, 1).numpy()
    np.save(tmp_path / "three.npy", x)
    assert torch.equal(load_references(tmp_path / "three.npy", 7, 32), random_pixels(3))
    np.save(tmp_path / "one.npy", x[0])
    for path in (tmp_path / "one.npy", save_png(tmp_path / "one.png", x[0])):
        assert torch.equal(load_references(path, 7, 32), random_pixels(3)[:1])
    assert not caplog.messages
    large = save_png(tmp_path / "large.png", np.full((40, 50, 3), 9, np.uint8))
    assert torch.equal(load_references(large, 7, 32), torch.full((1, 3, 32, 32), 9, dtype=torch.uint8))
    assert caplog.messages == [f"{large}: resized from 50x40 to 32x32"]
    np.save(tmp_path / "wrong.npy", x.astype(np.float32))
    with pytest.raises(DataError, match=r"x must be uint8 \(r, 32, 32, 3\), not float32"):
        load_references(tmp_path / "wrong.npy", 7, 32)


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (32, 32, 1), (32, 32, 2), (32, 32, 5), (0, 32, 3), (32, 0, 3), (), (32, 32)]
)
def test_arrays_that_are_no_references(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(
        DataError, match=r"x\.npy: references are uint8 \(H, W, 3\), or \(r, 32, 32, 3\) where .*, not uint8 \("
    ):
        load_references(tmp_path / "x.npy", 1, 32)


def test_the_transparency_of_a_reference_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Resized like a picture of a data set: after its transparency is dropped."""
    large = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    plain = load_references(save_png(tmp_path / "plain.png", large[..., :3]), 1, 32)
    caplog.clear()
    clear = save_png(tmp_path / "clear.png", large)
    assert torch.equal(load_references(clear, 1, 32), plain)
    assert caplog.messages[0] == f"{clear}: transparency is left out; the colours below it are read"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_large_array_is_read_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Any) -> None:
    monkeypatch.setattr(arrays, "LARGE", 1000)
    rows = np.random.default_rng(0).integers(0, 2**31, (7, 211))
    save(tmp_path / "x.npz", x=rows, y=rows[:, :1], turned=rows.T)
    found = read_npz(tmp_path / "x.npz", "x", "y", "turned")
    assert all(np.array_equal(found[name], array) for name, array in (("x", rows), ("y", rows[:, :1])))
    assert np.array_equal(found["turned"], rows.T)
    found["x"][0] = 0  # it is writable, like any other
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 4] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match="not a readable npz file"):
        read_npz(tmp_path / "x.npz", "x")
