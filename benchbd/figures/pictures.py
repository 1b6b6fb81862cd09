"""Pictures of one cell, drawn from its record and store: what was attacked, what a defense found, what it changed.

Each is written as PNG, SVG and PDF. Which images are shown is fixed by their order in the test set, never by how well
they look, and equal inputs give equal files.

A published record has no store, and its images may not be at hand: what can be drawn without them is drawn, and a line
says what the rest takes. What a method noted and kept is its author's own: a picture reads it only in the form that it
is made of, and else is left out.
"""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib.style
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from benchbd.base.content import commit
from benchbd.base.errors import DataAbsentError, DataError, StoreError, UsageError, brief
from benchbd.contract.context import stream
from benchbd.contract.encoder import Encoder
from benchbd.contract.evaluator import Predictions
from benchbd.contract.images import SIZE, ImageSet
from benchbd.contract.specs import TriggerSpec
from benchbd.contract.trigger import Trigger
from benchbd.data.library import DataLibrary
from benchbd.engine.store import Store
from benchbd.planning.board import Board
from benchbd.records.models import Record
from benchbd.report.writers.safe import plain
from benchbd.stages.artifact import Artifact
from benchbd.stages.work import ENCODER, KEPT, REFERENCES, read_predictions
from benchbd.toolkit.distill import attention_map

SHOWN = 8  # samples in a row

MAPPED = 4  # samples whose attention is drawn

POINTS = 800  # test images in the plane of features

INVERTED = 6  # inverted triggers in a row


# Paul Tol's bright orange, and his muted colours for the other classes: for readers of any colour vision.
TARGET = "#EE7733"

CLASSES = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499")

HIT, REST, INK = "#B3440F", "#BBBBBB", "#000000"  # HIT: the target's, dark enough to be read

STYLE = {
    "svg.hashsalt": "benchbd",  # element ids by content: equal figures are equal files
    "text.parse_math": False,  # a class may be called "$1"
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

    store: the root of the store that the record was computed in. board: the record's own, whose trigger may be a file;
    without it the trigger must be a white square. What store and ``library`` lack is left out, with what needs it.

    UsageError where the cell was not evaluated, nothing at all can be drawn, or no trigger that is known is the
    record's. DataError where the images are not those of the record. StoreError where ``out`` cannot be written.
    """
    if "evaluate" not in record.stages:
        raise UsageError(f"record {record.name} was not evaluated ({record.status}: {record.reason})")
    scene = Scene(record, store, library, torch.device(device), board)
    stem = record.name.removesuffix(".json")
    paths: list[Path] = []
    left_out: list[str] = []
    absent: dict[str, list[str]] = defaultdict(list)
    with matplotlib.style.context(["default", STYLE]):
        for name, picture in PICTURES.items():
            try:
                made = picture(scene)
            except Absent as what:
                absent[str(what)].append(name)
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


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """``name.png``, ``name.svg`` and ``name.pdf``, each replaced atomically and without a date."""
    dated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    paths = [folder / f"{name}.{form}" for form in dated]
    figure.draw_without_rendering()  # lay it out once for all
    figure.set_layout_engine("none")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, (form, metadata) in zip(paths, dated.items(), strict=True):
            commit(path, partial(figure.savefig, format=form, dpi=DPI, metadata=metadata))
    except OSError as error:
        raise StoreError(f"figures cannot be written to {folder} ({error.strerror or error})") from error
    return paths


# What the pictures are made of


class Absent(Exception):  # noqa: N818 - what a picture says that it lacks
    """A picture takes something that is not at hand; the text says what would bring it."""


class Picture(NamedTuple):
    """figure: what was drawn. without: (what is absent, the part that was drawn without it)."""

    figure: Figure
    without: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Scene:
    """A record, and where the store and the data are that it speaks of. What they hold is read when it is asked for.

    Properties raise Absent where the store lacks a stage or the library the images.
    """

    record: Record
    store: Path
    library: DataLibrary
    device: torch.device
    board: Board | None

    def artifact(self, kind: str) -> Artifact:
        """A stage of the record, verified."""
        record, key = self.record, self.record.stages[kind]
        artifact = Store(self.store, writable=False).get(key)
        if artifact is None:
            raise Absent(
                f"no {kind} stage {key[:12]} of record {record.name} in {self.store}: name the store that the record "
                f"was computed in, or compute it here with benchbd run --board {record.board} --attack {record.attack} "
                f"--defense {record.defense} --seed {record.seed} --store {self.store}"
            )
        return artifact

    @property
    def size(self) -> int:
        """Of the images in pixels, as the board says."""
        return SIZE if self.board is None else self.board.image_size

    def images(self, split: str, digest: str) -> ImageSet:
        """A split of the record's task, on the CPU. DataError where its images are not those of the record."""
        task = self.record.task
        try:
            found = self.library.load(task, split, self.size)
        except DataAbsentError as error:
            raise Absent(str(error)) from error
        if found.digest != digest:
            raise DataError(
                f"data set {task}: its {split} split has the digest {found.digest[:12]}, "
                f"that of the record is {digest[:12]}; the pictures need the same images"
            )
        return found

    @cached_property
    def test(self) -> ImageSet:
        """The test images, on the CPU."""
        return self.images("test", self.record.identity["evaluate"]["data"]["test"])

    @cached_property
    def trigger(self) -> Trigger:
        """The one that was evaluated."""
        try:
            size = self.test.size
        except Absent:
            size = self.size
        return find_trigger(self.record.identity["evaluate"]["params"]["trigger"], self.board, size)

    @cached_property
    def triggered(self) -> Tensor:
        """Every test image with the trigger, uint8 (N, 3, H, W), where the evaluation had it."""
        drawn_on = str(self.record.machine.get("device", ""))
        if self.trigger.wander is not None and drawn_on.endswith("CPU") != (self.device.type == "cpu"):
            raise Absent(
                "the random positions that were evaluated can be drawn only on the kind of device that did it, "
                f"{drawn_on}"
            )
        positions = stream(self.record.identity["evaluate"]["seed"], "positions", self.device)
        return self.trigger.stamp(self.test.pixels.to(self.device), positions).cpu()

    @cached_property
    def predictions(self) -> Predictions:
        """Of the record's evaluator."""
        return read_predictions(self.artifact("evaluate"))

    @cached_property
    def references(self) -> Tensor:
        """The reference inputs, uint8 (r, 3, H, W): the store's, else the rows of the training split that they are."""
        if "reference" not in self.record.stages:
            return torch.empty(0)
        try:
            return load_file(self.artifact("reference").blob(REFERENCES))["pixels"]
        except Absent:
            rows = whole_numbers(self.record.reference.get("rows"))
            if not rows:
                raise
        train = self.images("train", self.record.identity["reference"]["data"]["train"])
        return train.pixels[[row for row in rows if row < len(train)]]

    @cached_property
    def kept(self) -> dict[str, Tensor]:
        """What the defense kept, by name."""
        blob = self.artifact("defend").blob(KEPT)
        return load_file(blob) if blob.is_file() else {}

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """By title: what was published and, where there is a defense, what it made of that."""
        record = self.record
        attacked = "attack" in record.stages
        before = f"attack {record.attack}" if attacked else "clean encoder"
        kinds = {before: "attack" if attacked else "pretrain"}
        if "defend" in record.stages:
            kinds = {f"before: {before}": kinds[before], f"after: defense {record.defense}": "defend"}
        return {title: Encoder.load(self.artifact(kind).blob(ENCODER), self.device) for title, kind in kinds.items()}

    @cached_property
    def labels(self) -> Tensor:
        assert self.test.labels is not None
        return self.test.labels

    def samples(self, count: int) -> list[int]:
        """Rows of the test set whose true class is not the target, in order; fewer where there are not so many."""
        rows = (self.labels != self.record.target).nonzero()[:, 0]
        return sorted(rows[spread(self.labels[rows], count)].tolist(), key=lambda row: int(self.labels[row]))

    def class_name(self, label: int) -> str:
        """At most two lines of 16 characters; the number of a class without a name."""
        names = self.test.classes
        name = names[label] if 0 <= label < len(names) else str(label)
        return "\n".join(textwrap.wrap(name, 16, max_lines=2, placeholder="…"))

    def entitle(self, figure: Figure, what: str) -> None:
        """Say above the figure what it shows, of which cell, and the cell's numbers."""
        record = self.record
        cell = (
            f"attack {record.attack}, defense {record.defense}, pre-trained on {record.pretrain}, task {record.task}, "
            f"target {record.target_name}, seed {record.seed}, evaluator {record.evaluator}"
        )
        numbers = [f"ACC {record.metrics.acc:.1f}, ASR {record.metrics.asr:.1f}"] if record.metrics else []
        if record.undefended and "defend" in record.stages:
            numbers.append(f"undefended {record.undefended.acc:.1f}, {record.undefended.asr:.1f}")
        if record.baseline:
            numbers.append(f"clean encoder {record.baseline.ca:.1f}, {record.baseline.asr_b:.1f}")
        width = int(14 * figure.get_figwidth())  # characters of the title's size that fit
        figure.suptitle(
            "\n".join(textwrap.fill(line, width) for line in (what, cell, "in percent: " + "; ".join(numbers)))
        )


def find_trigger(digest: str, board: Board | None, size: int) -> Trigger:
    """The trigger of this digest among those of the board and all white squares, at a fixed or a random position.

    Records name triggers by digest alone.
    """
    specs = [] if board is None else [board.trigger, *chain.from_iterable(row.triggers or () for row in board.rows)]
    of_files = (Trigger.load(spec.file) for spec in specs if spec.file is not None)
    squares = (Trigger.square(side, size, center=center) for side in range(size) for center in (False, True))
    for patch in chain(of_files, squares):
        for place in (TriggerSpec(position="fixed"), TriggerSpec(position="random")):
            trigger = replace(patch, wander=place.wander)
            if trigger.digest == digest:
                return trigger
    of_board = "" if board is None else f" and none of board {board.name}"
    raise UsageError(
        f"the record's trigger {digest[:12]} is no white square{of_board}: give the board whose trigger it is"
    )


def spread(labels: Tensor, count: int) -> Tensor:
    """Indices, int64 (<= count,), of images that spread over the classes of ``labels`` (N,).

    The first image of every class, then the second of every class, and so on; where there are more classes than
    ``count``, the first image of classes at equal distances.
    """
    classes = labels.unique()
    if len(classes) > count:
        classes = classes[torch.linspace(0, len(classes) - 1, count).round().long()]
    members = [(labels == label).nonzero()[:, 0].tolist() for label in classes]
    ordered = [index for nth in zip_longest(*members) for index in nth if index is not None]
    return torch.tensor(ordered[:count], dtype=torch.int64)


class Plane(NamedTuple):
    """coordinates: (N, 2). share: the part of the variance that each axis holds, 0..1."""

    coordinates: Tensor
    share: tuple[float, float]


def plane(features: Tensor) -> Plane:
    """The first two principal components of standardised (N, d) features, N and d at least 2.

    A column of no variance stays 0. Each axis points where its largest loading is positive, so that signs are fixed.
    """
    x = features.double()
    x = x - x.mean(0)
    x = x / x.std(0).clamp_min(1e-12)
    _, values, axes = torch.linalg.svd(x, full_matrices=False)
    axes = axes[:2]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    variance = values.square()
    first, second = (variance[:2] / variance.sum().clamp_min(1e-12)).tolist()
    return Plane(x @ (axes * largest.sign()).T, (first, second))


# What a method noted and kept, where it has the form that a picture is made of

Amount = Annotated[float, Field(ge=0, le=1e12)]

StageName = Annotated[str, Field(pattern=r"\A[!-~]{1,40}\z")]  # one that fits a picture and can be printed in it


class Information(BaseModel):
    """The note ``mi`` of a defense that weights the stages of the encoder by mutual information.

    beta: the weight of each stage. information: nats, None where it is not known; by stage, where it was estimated.
    saturated: stages at a limit of the estimator. uniform_fallback: whether the estimates could not be told apart.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    beta: dict[StageName, Amount] = Field(min_length=1, max_length=64)
    information: dict[StageName, Amount | None] = {}
    saturated: list[StageName] = []
    uniform_fallback: bool = False


def noted_information(findings: Mapping[str, Any]) -> Information | str:
    """The note of a record's defense, or why there is none to draw."""
    noted = findings.get("defend")
    if not isinstance(noted, Mapping) or "mi" not in noted:
        return "noted no mutual information"
    try:
        return Information.model_validate(noted["mi"])
    except ValidationError as error:
        place = brief(plain(".".join(map(str, ("mi", *error.errors()[0]["loc"])))))
        return f"has a note of its own at {place}, in another form than this picture reads"


def inverted_triggers(kept: Mapping[str, Tensor], size: int) -> tuple[Tensor, Tensor] | str:
    """Masks (K, 1, H, W) and patterns (K, 3, H, W), float32 in [0, 1], or why there are none to draw."""
    if not {"inverted.mask", "inverted.pattern"} <= set(kept):
        return "kept no inverted trigger"
    parts = kept["inverted.mask"], kept["inverted.pattern"]
    for name, part, channels in zip(("mask", "pattern"), parts, (1, 3), strict=True):
        sound = part.is_floating_point() and part.ndim == 4
        if not sound or part.shape != (len(parts[0]), channels, size, size) or not len(part):
            kind = f"{part.dtype} {tuple(part.shape)}".removeprefix("torch.")
            return f"kept inverted.{name} as {kind}, not as floats (K, {channels}, {size}, {size})"
    mask, pattern = (part.float() for part in parts)  # first: the smallest floats cannot be compared
    for name, part in (("mask", mask), ("pattern", pattern)):
        if not bool(((part >= 0) & (part <= 1)).all()):
            return f"kept inverted.{name} with values outside 0 to 1"
    return mask, pattern


def whole_numbers(value: object) -> list[int]:
    """A list of numbers from 0 on as it is, anything else as an empty one."""
    sound = isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
    return value if isinstance(value, list) and sound else []


# The pictures: a figure, or why there is none


def draw_trigger(scene: Scene) -> Picture | str:
    """The patch, the reference inputs, and a row of test images above the same ones triggered, with predictions."""
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
    stamped = at_hand("test images", "test", "triggered")
    judged = stamped and at_hand("predictions", "predictions")
    references = scene.references if at_hand("reference inputs", "references") else torch.empty(0)
    rows = scene.samples(SHOWN) if stamped else []
    columns = max(len(rows), 4)
    figure = Figure(figsize=(1.05 * columns + 0.9, 5.6 if rows else 2.6), layout="constrained")
    grid = figure.subplots(3 if rows else 1, columns, squeeze=False)
    patch, *others = grid[0]
    show_patch(patch, trigger)
    patch.set_title("trigger")
    patch.set_xlabel("fixed position" if trigger.wander is None else "random position")
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
    """As many as there are places, with the class that the clean classifier gave them where the record says so."""
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
    for axes, image in zip(grid[:, 0], (truth, trigger.pattern / 255, trigger.pattern / 255), strict=True):
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
    """Where each stage looks, clean and triggered, before and after the repair; one colour scale a column."""
    encoders = scene.encoders
    rows = scene.samples(MAPPED)
    pictures = torch.stack([part[row] for row in rows for part in (scene.test.pixels, scene.triggered)])
    names = [label for row in rows for label in (scene.class_name(int(scene.labels[row])), "triggered")]
    maps = {title: attention(encoder, pictures) for title, encoder in encoders.items()}
    if not any(maps.values()):
        return "every stage's map has one position"
    widths = [1.0]
    for stages in maps.values():
        widths += [0.12] + [1.0] * len(stages)  # a gap before each encoder
    figure = Figure(figsize=(0.9 * sum(widths) + 0.7, 0.87 * len(pictures) + 1.0), layout="constrained")
    columns = iter(figure.subplots(1, len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})[0])
    inputs = next(columns)
    show_stack(inputs, pictures.float() / 255)
    inputs.set_yticks(range(len(names)), names, rotation="vertical", va="center")
    inputs.tick_params(left=False)
    inputs.set_xlabel("input")
    inputs.set_ylabel("test images, each clean and triggered")
    for title, stages in maps.items():
        next(columns).set_axis_off()
        for number, (name, values) in enumerate(stages.items()):
            axes = next(columns)
            show_stack(axes, values[:, None])
            axes.set_xlabel(name)
            if number == 0:
                axes.set_title(title, loc="left")
    scene.entitle(figure, "Attention of each stage: sum of squares over channels; one colour scale a column")
    return Picture(figure)


@torch.no_grad()
def attention(encoder: Encoder, pixels: Tensor) -> dict[str, Tensor]:
    """The attention map of each stage for uint8 (N, 3, H, W) images, (N, H', W'), L2-normalised, on the CPU.

    A stage whose map has one position has no attention and is left out.
    """
    maps = encoder.intermediates(pixels.to(encoder.device).float() / 255)[1]
    wide = {name: value for name, value in maps.items() if value.shape[2] * value.shape[3] > 1}
    return {name: attention_map(value).view(len(value), *value.shape[2:]).cpu() for name, value in wide.items()}


def draw_information(scene: Scene) -> Picture | str:
    """What a defense estimated of each stage, and the weights that it made of it."""
    if "defend" not in scene.record.stages:
        return "there is no defense"
    noted = noted_information(scene.record.findings)
    if isinstance(noted, str):
        return f"defense {scene.record.defense} {noted}"
    weights, information = noted.beta, noted.information
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(weights)
    estimates = [math.nan if (value := information.get(name)) is None else value for name in names]
    remarks = [
        *(["not estimated"] if not information else []),
        *([f"saturated: {', '.join(noted.saturated)}"] if noted.saturated else []),
    ]
    for axes, values, colour, label, form in (
        (left, estimates, CLASSES[2], "I(map; feature) [nats]", "{:.3f}"),
        (right, list(weights.values()), CLASSES[0], "layer weight β", "{:.0f}"),
    ):
        bars = axes.bar(names, [0 if math.isnan(value) else value for value in values], color=colour)
        axes.bar_label(bars, ["n/a" if math.isnan(value) else form.format(value) for value in values], padding=2)
        axes.margins(y=0.15)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("stage of the encoder")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title("; ".join(remarks))
    right.set_title("estimates cannot be told apart: uniform" if noted.uniform_fallback else "")
    scene.entitle(figure, "Mutual information of each stage, and its weight in the repair")
    return Picture(figure)


def draw_features(scene: Scene) -> Picture | str:
    """Clean and triggered test images in the plane of their features, before and after the repair."""
    encoders = scene.encoders
    if len(scene.test) < 2:
        return "one test image spans no plane"
    shown = torch.linspace(0, len(scene.test) - 1, min(POINTS, len(scene.test))).round().long()
    labels = scene.labels[shown]
    moved = shown[labels != scene.record.target][::2]  # half of them, or they hide the rest
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
    """(name, labels, colour) of what is told apart: the target, as many classes as there are colours, and the rest."""
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
    "features": draw_features,
}


# Images in axes


def show(axes: Axes, image: Tensor) -> None:
    """An image without ticks: uint8, or float from 0 to 1; (3, H, W) in colour or (1, H, W) from black to white."""
    values = image.float() / 255 if image.dtype == torch.uint8 else image
    values = values.repeat_interleave(6, 1).repeat_interleave(6, 2)  # a viewer of SVG blurs what it enlarges
    plain = (values[0] if len(values) == 1 else values.permute(1, 2, 0)).numpy()
    axes.imshow(plain, cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])


def show_stack(axes: Axes, images: Tensor, side: int = 96, gap: int = 3) -> None:
    """Images below each other, the nth at y = n, each ``side`` wide with ``gap`` around it: float (N, 3, H, W) from 0
    to 1, or (N, 1, H, W) on one scale from 0 to their maximum."""
    tiles = F.pad(F.interpolate(images, size=side, mode="nearest-exact"), (gap,) * 4, value=math.nan)
    column = torch.cat(list(tiles), dim=1)
    coloured = len(column) == 3
    plain = column.nan_to_num(1.0).permute(1, 2, 0) if coloured else column[0]  # nan is left blank
    extent = (-0.5, 0.5, len(images) - 0.5, -0.5)
    top = float(images.max())
    axes.imshow(plain.numpy(), cmap="viridis", vmin=0, vmax=top, extent=extent, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def show_patch(axes: Axes, trigger: Trigger) -> None:
    """The trigger alone; what it leaves of an image is a grey chequer."""
    rows, columns = torch.meshgrid(torch.arange(trigger.size), torch.arange(trigger.size), indexing="ij")
    chequer = (150 + 30 * ((rows // 4 + columns // 4) % 2)).to(torch.uint8).expand(3, -1, -1)
    show(axes, replace(trigger, wander=None).stamp(chequer))


def border(axes: Axes, colour: str) -> None:
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2.0)
