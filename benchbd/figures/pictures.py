"""Pictures of one cell, drawn from its record and store: the attack, a defense's findings, and its effect.

Each is written as PNG, SVG and PDF. The order of the test set alone decides which images are shown, and equal
inputs give equal files.

A published record has no store, and its images may be absent: every picture that needs neither is drawn, and a line
names what the others need. Notes and kept tensors of a method have any form: a picture reads them only in the form
that it needs, and is otherwise left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.style
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from benchbd.base.content import commit
from benchbd.base.errors import StoreError, UsageError
from benchbd.data.library import DataLibrary
from benchbd.figures.charts import draw_information, draw_pruning
from benchbd.figures.noted import inverted_triggers, whole_numbers
from benchbd.figures.panels import (
    CLASSES,
    HIT,
    INK,
    REST,
    TARGET,
    Picture,
    border,
    marks,
    show,
    show_patch,
    show_stack,
)
from benchbd.figures.scene import Absent, Scene, plane
from benchbd.nets.encoder import Encoder
from benchbd.planning.board import Board
from benchbd.records.models import Record
from benchbd.toolkit.distill import attention_map

SHOWN = 8  # samples in a row

MAPPED = 4  # samples whose attention is drawn

AVERAGED = 256  # samples whose mean attention is drawn

AT_ONCE = 64  # images whose maps are in memory

POINTS = 800  # test images in the plane of features

INVERTED = 6  # inverted triggers in a row

STYLE = {
    "svg.hashsalt": "benchbd",  # element ids from the content: equal figures are equal files
    "text.parse_math": False,  # a class may have the name "$1"
    "pdf.fonttype": 42,  # TrueType: venues refuse the default
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "figure.titlesize": 9.0,
}

DPI = 150


@dataclass(frozen=True)
class Drawn:
    """paths: the files, in order. left_out: a line for each picture that does not apply to the cell."""

    paths: list[Path]
    left_out: list[str]


def draw(
    record: Record,
    out: Path,
    *,
    store: Path,
    library: DataLibrary,
    device: torch.device | str = "cpu",
    board: Board | None = None,
) -> Drawn:
    """Write the pictures of a record as ``out/<record>_<picture>.png``, ``.svg`` and ``.pdf``.

    store: the root of the store that the record was computed in. board: the record's own, whose trigger may be of any
    kind; without it the trigger must be a white square. Parts that need what store and ``library`` lack are left
    out.

    UsageError if the cell was not evaluated, nothing can be drawn, or no known trigger is the
    record's. DataError if the images are not those of the record. StoreError if ``out`` cannot be written.
    """
    if "evaluate" not in record.stages:
        raise UsageError(f"record {record.name} was not evaluated ({record.status}: {record.reason})")
    scene = Scene(record, store, library, torch.device(device), board)
    stem = record.name.removesuffix(".json")
    paths: list[Path] = []
    left_out: list[str] = []
    absent: dict[str, list[str]] = defaultdict(list)
    with styled():
        for name, made in pictures_of(scene):
            if isinstance(made, Absent):
                absent[str(made)].append(name)
                continue
            if isinstance(made, str):
                left_out.append(f"{name}: {made}")
                continue
            paths += save(made.figure, out, f"{stem}_{name}")
            for reason, part in made.without:
                absent[reason].append(part)
    left_out += [f"{', '.join(names)}: {reason}" for reason, names in absent.items()]
    if not paths:
        raise UsageError(f"record {record.name}: nothing to draw: {'; '.join(left_out)}")
    return Drawn(paths, left_out)


def styled() -> AbstractContextManager[None]:
    """In the block, pictures are drawn in STYLE, whatever a user's own settings are."""
    return matplotlib.style.context(["default", STYLE])


def pictures_of(scene: Scene) -> Iterator[tuple[str, Picture | str | Absent]]:
    """The name of each picture with the picture, or why it does not apply to the cell, or what it lacks."""
    for name, picture in PICTURES.items():
        try:
            made: Picture | str | Absent = picture(scene)
        except Absent as what:
            made = what
        yield name, made


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``name.png``, ``name.svg`` and ``name.pdf``, each replaced atomically and without a date."""
    dated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    paths = [folder / f"{name}.{form}" for form in dated]
    figure.draw_without_rendering()  # one layout for all formats
    figure.set_layout_engine("none")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, (form, metadata) in zip(paths, dated.items(), strict=True):
            commit(path, partial(figure.savefig, format=form, dpi=DPI, metadata=metadata))
    except OSError as error:
        raise StoreError(f"figures cannot be written to {folder} ({error.strerror or error})") from error
    return paths


# The pictures: each function returns a figure, or why there is none


def draw_trigger(scene: Scene) -> Picture | str:
    """The patch, the reference inputs, and a row of test images above the same images triggered, with predictions."""
    without: list[tuple[str, str]] = []

    def at_hand(part: str, *names: str) -> bool:
        try:
            for name in names:
                getattr(scene, name)
        except Absent as what:
            without.append((str(what), f"{part} of trigger"))
            return False
        return True

    trigger = scene.trigger
    stamped = scene.shows_images and at_hand("test images", "test", "triggered")
    judged = stamped and at_hand("predictions", "predictions")
    seen = scene.shows_images and at_hand("reference inputs", "references")
    references = scene.references if seen else torch.empty(0)
    rows = scene.samples(SHOWN) if stamped else []
    columns = max(len(rows), 4) if scene.shows_images else 1
    figure = Figure(figsize=(1.05 * columns + 0.9, 5.6 if rows else 2.6), layout="constrained")
    grid = figure.subplots(3 if rows else 1, columns, squeeze=False)
    patch, *others = grid[0]
    show_patch(patch, trigger)
    patch.set_title("trigger")
    kind = "" if trigger.kind == "patch" else f"{trigger.kind}, "
    patch.set_xlabel(f"{kind}{'fixed' if trigger.wander is None else 'random'} position")
    show_references(scene, others, references)
    for column, row in enumerate(rows):
        above, below = grid[1, column], grid[2, column]
        label = int(scene.labels[row])
        show(above, scene.test.pixels[row])
        show(below, scene.triggered[row])
        above.set_title(scene.class_name(label))
        if judged:
            hit = int(scene.predictions.triggered[row])
            above.set_xlabel(predicted_label(scene, int(scene.predictions.clean[row]), label))
            below.set_xlabel(predicted_label(scene, hit, label))
            if hit == scene.record.target:
                border(below, TARGET)
                below.set_xlabel(f"{scene.class_name(hit)}\n(hit)", color=HIT, weight="bold")
    for axes in grid[1:, len(rows) :].flat:
        axes.set_axis_off()
    for axes, name in zip(grid[:, 0], ("attack", "clean", "triggered"), strict=False):
        axes.set_ylabel(name)
    shown = "true class above each test image" if rows else ""
    said = f"{shown}, predicted class below; framed: hits of the target" if judged else shown
    scene.entitle(figure, f"Trigger: {said}" if said else "Trigger")
    return Picture(figure, tuple(without))


def show_references(scene: Scene, places: Sequence[Axes], references: Tensor) -> None:
    """Show one reference per place, with the class that the clean classifier gave it if the record has that."""
    predicted = whole_numbers(scene.record.reference.get("predicted"))
    for number, axes in enumerate(places):
        if number >= len(references):
            axes.set_axis_off()
            continue
        show(axes, references[number])
        axes.set_title("reference")
        if number < len(predicted):
            axes.set_xlabel(predicted_label(scene, predicted[number], scene.record.target))


def predicted_label(scene: Scene, predicted: int, expected: int) -> str:
    return f"{scene.class_name(predicted)} {'✓' if predicted == expected else '✗'}"


def draw_inversion(scene: Scene) -> Picture | str:
    """Masks and patterns that the defense inverted, beside the true trigger."""
    if "defend" not in scene.record.stages:
        return "there is no defense"
    found = inverted_triggers(scene.kept, scene.trigger.size)
    if isinstance(found, str):
        return f"defense {scene.record.defense} {found}"
    masks, patterns = found
    shown = min(len(masks), INVERTED)
    figure = Figure(figsize=(1.5 * (shown + 1) + 0.9, 5.2), layout="constrained")
    grid = figure.subplots(3, shown + 1, squeeze=False)
    trigger = scene.trigger
    truth = (~trigger.keep).float().mean(0, keepdim=True)
    for axes, image in zip(grid[:, 0], (truth, marks(trigger), marks(trigger)), strict=True):
        show(axes, image)
    grid[0, 0].set_title("true trigger")
    grid[0, 0].set_xlabel(f"{truth.sum():.0f} pixels")
    for number in range(shown):
        mask, pattern = masks[number], patterns[number]
        column = grid[:, number + 1]
        for axes, image in zip(column, (mask, pattern, mask * pattern), strict=True):
            show(axes, image)
        column[0].set_title(f"inverted {number + 1}" if len(masks) > 1 else "inverted")
        column[0].set_xlabel(f"{mask.sum():.1f} pixels")
    for axes, name in zip(grid[:, 0], ("mask", "pattern", "mask x pattern"), strict=True):
        axes.set_ylabel(name)
    more = f", the first {shown} of {len(masks)}" if len(masks) > shown else ""
    scene.entitle(figure, f"Inverted triggers{more}: white is 1")
    return Picture(figure)


def draw_attention(scene: Scene) -> Picture | str:
    """The attention of each stage, clean and triggered, before and after the repair; one colour scale per column. The
    mean over many images if none may be shown."""
    encoders = scene.encoders
    rows = scene.samples(MAPPED if scene.shows_images else AVERAGED)
    pictures = torch.stack([part[row] for row in rows for part in (scene.test.pixels, scene.triggered)])
    maps = {title: attention(encoder, pictures) for title, encoder in encoders.items()}
    if not any(maps.values()):
        return "every stage's map has one position"
    if scene.shows_images:
        what, of = "Attention of each stage", "test images, each clean and triggered"
        names = [label for row in rows for label in (scene.class_name(int(scene.labels[row])), "triggered")]
        columns = [("", "input", pictures.float() / 255)]
    else:
        what, of = f"Attention of each stage, mean over {len(rows)} test images", "test images"
        names, columns = ["clean", "triggered"], []
    for title, stages in maps.items():
        for name, values in stages.items():
            tiles = values if scene.shows_images else values.unflatten(0, (-1, 2)).mean(0)
            columns.append((title if name == next(iter(stages)) else "", name, tiles[:, None]))
    figure = stacked(columns, names, of)
    scene.entitle(figure, f"{what}: sum of squares over channels; one colour scale a column")
    return Picture(figure)


def stacked(columns: Sequence[tuple[str, str, Tensor]], names: Sequence[str], of: str) -> Figure:
    """A column of images for each (title, name, images), with a gap before a title. names: of the rows, which ``of``
    describes."""
    gaps = [bool(title) and number > 0 for number, (title, _, _) in enumerate(columns)]
    widths = [width for gap in gaps for width in ([0.12, 1.0] if gap else [1.0])]
    figure = Figure(figsize=(0.9 * sum(widths) + 0.7, 0.87 * len(names) + 1.0), layout="constrained")
    places = iter(figure.subplots(1, len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})[0])
    for number, (title, name, stack) in enumerate(columns):
        if gaps[number]:
            next(places).set_axis_off()
        axes = next(places)
        show_stack(axes, stack)
        axes.set_title(title, loc="left")
        axes.set_xlabel(name)
        if number == 0:
            axes.set_yticks(range(len(names)), names, rotation="vertical", va="center")
            axes.tick_params(left=False)
            axes.set_ylabel(of)
    return figure


@torch.no_grad()
def attention(encoder: Encoder, pixels: Tensor) -> dict[str, Tensor]:
    """The attention map of each stage for uint8 (N, 3, H, W) images, (N, H', W'), L2-normalised, on the CPU.

    A stage whose map has one position has no attention and is left out.
    """
    parts = defaultdict[str, list[Tensor]](list)
    for piece in pixels.split(AT_ONCE):
        for name, value in encoder.intermediates(piece.to(encoder.device).float() / 255)[1].items():
            if value.shape[2] * value.shape[3] > 1:
                parts[name].append(attention_map(value).view(len(value), *value.shape[2:]).cpu())
    return {name: torch.cat(part) for name, part in parts.items()}


def draw_features(scene: Scene) -> Picture | str:
    """Clean and triggered test images in the plane of their features, before and after the repair."""
    encoders = scene.encoders
    if len(scene.test) < 2:
        return "one test image spans no plane"
    shown = torch.linspace(0, len(scene.test) - 1, min(POINTS, len(scene.test))).round().long()
    labels = scene.labels[shown]
    moved = shown[labels != scene.record.target][::2]  # half of them, or they would hide the rest
    figure = Figure(figsize=(4.3 * len(encoders) + 1.5, 4.6), layout="constrained")
    panels = figure.subplots(1, len(encoders), squeeze=False)[0]
    groups = list(class_colours(scene))
    for axes, (title, encoder) in zip(panels, encoders.items(), strict=True):
        features = encoder.extract(torch.cat([scene.test.pixels[shown], scene.triggered[moved]]))
        found = plane(F.normalize(features, dim=1).cpu())
        clean, triggered = found.coordinates.numpy()[: len(shown)], found.coordinates.numpy()[len(shown) :]
        for _, members, colour in groups:
            points = clean[torch.isin(labels, torch.tensor(members)).numpy()]
            axes.scatter(*points.T, s=9, color=colour, linewidths=0, rasterized=True)
        axes.scatter(*triggered.T, s=11, color=INK, marker="x", linewidths=0.5, alpha=0.6, rasterized=True)
        axes.set_title(title)
        axes.set_xlabel(f"first principal component ({100 * found.share[0]:.0f} % of the variance)")
        axes.set_ylabel(f"second principal component ({100 * found.share[1]:.0f} %)")
    handles = [Line2D([], [], color=colour, marker="o", linestyle="", label=name) for name, _, colour in groups]
    handles.append(Line2D([], [], color=INK, marker="x", linestyle="", label="triggered"))
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    scene.entitle(figure, f"Features of {len(shown)} test images, and of {len(moved)} of them triggered")
    return Picture(figure)


def class_colours(scene: Scene) -> Iterator[tuple[str, list[int], str]]:
    """(name, labels, colour) of each group: the target, as many classes as there are colours, and the rest."""
    target = scene.record.target
    others = [label for label in range(len(scene.test.classes)) if label != target]
    rest = others[len(CLASSES) :]
    if rest:
        yield f"{len(rest)} other classes", rest, REST
    for label, colour in zip(others, CLASSES, strict=False):
        yield scene.class_name(label), [label], colour
    yield f"{scene.class_name(target)} (target)", [target], TARGET


PICTURES: dict[str, Callable[[Scene], Picture | str]] = {
    "trigger": draw_trigger,
    "inversion": draw_inversion,
    "attention": draw_attention,
    "information": draw_information,
    "pruning": draw_pruning,
    "features": draw_features,
}
