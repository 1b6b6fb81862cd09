"""The pictures of records that are published: small PNG files beside each record.

Images of a data set that others own are never published: `Scene` tells which pictures may show any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from io import BytesIO
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchbd.base.errors import BenchbdError, DataError, StoreError
from benchbd.data.library import DataLibrary
from benchbd.figures.panels import Picture
from benchbd.figures.pictures import pictures_of, styled
from benchbd.figures.scene import Absent, Scene
from benchbd.planning.board import Board
from benchbd.records.files import file_in
from benchbd.records.models import Record
from benchbd.records.pictures import MOST, SIDE, write_pictures

LEVELS = ((100, 128), (100, 64), (80, 64), (64, 32), (48, 16))
"""Dots per inch and colours, from the best to the smallest."""


def publish(
    records: Iterable[Record],
    folder: Path,
    *,
    store: Path,
    library: DataLibrary,
    device: torch.device | str = "cpu",
    board: Board | None = None,
) -> Counter[str]:
    """Draw the pictures of the records whose files are in ``folder``, beside these: how many have them, under an empty
    text, and how many lack what they need, under what that is. Equal inputs give equal files on one machine.

    store: the root of the store that the records were computed in. board: see ``figures.pictures.draw``. StoreError if
    ``folder`` cannot be written.
    """
    found: Counter[str] = Counter()
    for record in records:
        scene = Scene(record, store, library, torch.device(device), board, published=True)
        try:
            if not (lacks := _lacks(scene)):
                write_pictures(file_in(folder, record), small_pictures(scene))
        except OSError as error:
            raise StoreError(f"pictures cannot be written to {folder} ({error.strerror or error})") from error
        except BenchbdError as error:
            lacks = str(error)
        found[lacks] += 1
    return found


def _lacks(scene: Scene) -> str:
    """What keeps a record from having pictures; empty if nothing does."""
    if "evaluate" not in scene.record.stages:
        return "not evaluated"
    try:
        _ = scene.encoders, scene.predictions
    except Absent:
        return f"a stage is not in {scene.store}"
    try:
        _ = scene.test
    except (Absent, DataError):
        return f"the images of {scene.record.task} are absent, or others"
    return ""


def small_pictures(scene: Scene) -> dict[str, bytes]:
    """The pictures of a record as PNG, by name: MOST bytes together, with fewer colours or dots if they need it."""
    with styled():
        figures = {name: made.figure for name, made in pictures_of(scene) if isinstance(made, Picture)}
        return within(figures)


def within(figures: Mapping[str, Figure], most: int = MOST) -> dict[str, bytes]:
    """Figures as PNG of ``most`` bytes together; the largest are left out if the last of LEVELS is not enough."""
    pngs: dict[str, bytes] = {}
    for dots, levels in groupby(LEVELS, key=itemgetter(0)):
        images = {name: _image(figure, dots) for name, figure in figures.items()}
        for _, colours in levels:
            pngs = {name: _png(image, colours) for name, image in images.items()}
            if sum(map(len, pngs.values())) <= most:
                return pngs
    while sum(map(len, pngs.values())) > most:
        del pngs[max(pngs, key=lambda name: len(pngs[name]))]
    return pngs


def _image(figure: Figure, dots: int) -> Image.Image:
    """A figure in pixels. dots: per inch, fewer if a side would exceed SIDE."""
    figure.set_dpi(min(dots, int(SIDE / max(figure.get_size_inches()))))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]


def _png(image: Image.Image, colours: int) -> bytes:
    """PNG with a palette, and without texts."""
    content = BytesIO()
    # of the colours of the whole range, so that rare ones stay, each moved to the mean of what it stands for
    small = image.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    small.save(content, "PNG", optimize=True)
    return content.getvalue()
