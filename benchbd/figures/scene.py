"""The input of a cell's pictures: its record, and its artifacts and images in store and data."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from benchbd.base.errors import DataAbsentError, DataError, UsageError
from benchbd.base.pictures import SIZE
from benchbd.contract.context import stream
from benchbd.contract.evaluator import Predictions
from benchbd.contract.images import ImageSet
from benchbd.contract.specs import TriggerSpec
from benchbd.contract.trigger import Trigger
from benchbd.contract.trigger_function import TriggerFunction
from benchbd.data.library import DataLibrary
from benchbd.figures.noted import whole_numbers
from benchbd.nets.encoder import Encoder
from benchbd.planning.board import Board
from benchbd.planning.settings import Settings
from benchbd.planning.sweeps import at, point_text
from benchbd.records.models import Record
from benchbd.registry import load_registry
from benchbd.stages.base import ENCODER, REFERENCES
from benchbd.stages.evaluate import read_predictions
from benchbd.store.artifact import Artifact
from benchbd.store.store import Store
from benchbd.toolkit.patterns import make_trigger


class Absent(Exception):  # noqa: N818 - what a picture says that it lacks
    """A picture needs an input that is absent; the text names what would provide it."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A record, and the store and data that contain its inputs, which are read on first use.

    published: whether its pictures become public, so that they show no image of a data set that others own.
    Properties raise Absent if the store lacks a stage or the library the images.
    """

    record: Record
    store: Path
    library: DataLibrary
    device: torch.device
    board: Board | None
    published: bool = False

    @property
    def shows_images(self) -> bool:
        """Whether pictures may show images of the task: published ones only those that a plugin generates."""
        dataset = self.library.known(self.record.task)
        return not self.published or (dataset is not None and not dataset.needs_files)

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
        """Size of the images in pixels, from the board."""
        return SIZE if self.board is None else self.board.image_size

    def images(self, split: str, digest: str) -> ImageSet:
        """A split of the record's task, on the CPU. DataError if its images are not those of the record."""
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
        """The trigger of the evaluation."""
        try:
            size = self.test.size
        except Absent:
            size = self.size
        board = self.board and at(self.board, self.record.point)
        return find_trigger(self.record.identity["evaluate"]["params"]["trigger"], board, size)

    @cached_property
    def triggered(self) -> Tensor:
        """Every test image with the trigger, uint8 (N, 3, H, W), at the position that the evaluation used."""
        drawn_on, device = str(self.record.machine.get("device", "")), torch.device("cpu")
        if self.record.schema_version == 1 and not drawn_on.endswith("CPU"):  # the run drew positions on its own device
            if self.trigger.draws and self.device.type == "cpu":
                raise Absent(
                    "the random positions that were evaluated can be drawn only on the kind of device that did it, "
                    f"{drawn_on}"
                )
            device = self.device
        positions = stream(self.record.identity["evaluate"]["seed"], "positions", device)
        return self.trigger.stamp(self.test.pixels.to(device), positions).cpu()

    @cached_property
    def predictions(self) -> Predictions:
        """Predictions of the record's evaluator; the first rows are those of its first head."""
        return read_predictions(self.artifact("evaluate"))

    @cached_property
    def references(self) -> Tensor:
        """The reference inputs, uint8 (r, 3, H, W): the store's, else their rows of the training split."""
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
        """The tensors that the defense kept, by name."""
        return self.artifact("defend").kept

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """By title: the attacked encoder and, if there is a defense, the repaired one."""
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
        """The first ``count`` rows of the test set whose true class is not the target, or all if there are fewer."""
        rows = (self.labels != self.record.target).nonzero()[:, 0]
        return sorted(rows[spread(self.labels[rows], count)].tolist(), key=lambda row: int(self.labels[row]))

    def class_name(self, label: int) -> str:
        """A class name in at most two lines of 16 characters; the number of a class without a name."""
        names = self.test.classes
        name = names[label] if 0 <= label < len(names) else str(label)
        return "\n".join(textwrap.wrap(name, 16, max_lines=2, placeholder="…"))

    def entitle(self, figure: Figure, what: str) -> None:
        """Write above the figure its subject; and its cell and the cell's numbers, unless it stands beside these."""
        record = self.record
        cell = (
            f"attack {record.attack}, defense {record.defense}, pre-trained on {record.pretrain}, task {record.task}, "
            f"target {record.target_name}, seed {record.seed}, evaluator {record.evaluator}"
        )
        cell += f", at {point_text(record.point)}" if record.point else ""
        own, before, clean = record.metrics, record.undefended, record.baseline
        figures = [("", own.acc, own.asr, own.ra)] if own else []
        figures += [("undefended ", before.acc, before.asr, before.ra)] if before and "defend" in record.stages else []
        figures += [("clean encoder ", clean.ca, clean.asr_b, clean.ra_b)] if clean else []
        names = ("ACC", "ASR", "RA")
        numbers = [
            who
            + ", ".join(f"{name} {value:.1f}" for name, value in zip(names, values, strict=True) if value is not None)
            for who, *values in figures
        ]
        width = int(14 * figure.get_figwidth())  # characters of the title's size that fit
        lines = [what] if self.published else [what, cell, "in percent: " + "; ".join(numbers)]
        figure.suptitle("\n".join(textwrap.fill(line, width) for line in lines))


def find_trigger(digest: str, board: Board | None, size: int) -> Trigger:
    """The trigger with this digest among those of the board and all white squares, at a fixed or a random position.

    Records identify triggers by digest alone.
    """
    specs = [] if board is None else [board.trigger, *chain.from_iterable(row.triggers or () for row in board.rows)]
    of_specs = (_made(spec, board, size) for spec in specs)
    squares = (Trigger.square(side, size, center=center) for side in range(size) for center in (False, True))
    for known in chain(of_specs, squares):
        for place in (TriggerSpec(position="fixed"), TriggerSpec(position="random")):
            trigger = known if known.function is not None else replace(known, wander=place.wander)
            if trigger.digest == digest:
                return trigger
    of_board = "" if board is None else f" and none of board {board.name}"
    raise UsageError(
        f"the record's trigger {digest[:12]} is no white square{of_board}: give the board whose trigger it is"
    )


def _made(spec: TriggerSpec, board: Board | None, size: int) -> Trigger:
    """The trigger that a part of the board describes; a plugin's function has the options that the board sets."""
    if board is None or spec.function is None:
        return make_trigger(spec, size)
    (function,) = Settings(board, load_registry(), ()).methods(TriggerFunction, [spec.function])
    return make_trigger(spec, size, function)


def spread(labels: Tensor, count: int) -> Tensor:
    """Indices, int64 (<= count,), of images that spread over the classes of ``labels`` (N,).

    The first image of every class, then the second of every class, and so on; if there are more classes than
    ``count``, the first image of classes at equal distances.
    """
    classes = labels.unique()
    if len(classes) > count:
        classes = classes[torch.linspace(0, len(classes) - 1, count).round().long()]
    members = [(labels == label).nonzero()[:, 0].tolist() for label in classes]
    ordered = [index for nth in zip_longest(*members) for index in nth if index is not None]
    return torch.tensor(ordered[:count], dtype=torch.int64)


class Plane(NamedTuple):
    """coordinates: (N, 2). share: the part of the variance along each axis, 0..1."""

    coordinates: Tensor
    share: tuple[float, float]


def plane(features: Tensor) -> Plane:
    """The first two principal components of standardised (N, d) features, N and d at least 2.

    A constant column stays 0. Each axis points to the side of its largest loading, so that signs are fixed.
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
