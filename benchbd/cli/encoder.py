"""``benchbd inspect`` and ``repair``: one encoder from a file, and a folder of images."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from benchbd.base.errors import BenchbdError, NotApplicable, UsageError
from benchbd.base.process import columns, say
from benchbd.cli.group import Command
from benchbd.cli.options import PathType, device_option
from benchbd.planning.board import LARGEST_SEED
from benchbd.report.writers.columns import WIDTH

if TYPE_CHECKING:
    from benchbd.contract.detection import Detection
    from benchbd.contract.images import ImageSet
    from benchbd.examine import Bench
    from benchbd.nets.encoder import Encoder
    from benchbd.report.examined import Row

F = TypeVar("F", bound=Callable[..., Any])

IMAGES = 1000  # drawn from the folder by default


def _examining(command: F) -> F:
    """The arguments that `inspect` and `repair` share."""
    for add in reversed(
        [
            click.argument("encoder", type=PathType()),
            click.option("--images", "folder", required=True, type=PathType(), help="Folder of clean pictures."),
            click.option(
                "--number",
                type=click.IntRange(1),
                default=IMAGES,
                show_default=True,
                metavar="N",
                help="Number of pictures drawn from the folder; all if there are fewer.",
            ),
            click.option(
                "--image-size",
                "size",
                type=click.IntRange(32, 224),
                metavar="PIXELS",
                help="Height and width to which pictures are resized.  [default: the encoder's, else 32]",
            ),
            click.option(
                "-o",
                "--option",
                "options",
                multiple=True,
                metavar="NAME.FIELD=VALUE",
                help="Option of a method; repeat for several.",
            ),
            click.option(
                "--seed",
                type=click.IntRange(0, LARGEST_SEED),
                default=1,
                show_default=True,
                metavar="N",
                help="Seed of the draw and of the methods.",
            ),
            device_option,
            click.option("--quiet", is_flag=True, help="Print no progress."),
        ]
    ):
        command = add(command)
    return command


@click.command(cls=Command)
@_examining
@click.option(
    "--detection", "names", multiple=True, metavar="D", help="Detectors by name; repeat for several.  [default: all]"
)
@click.option(
    "--gallery",
    type=PathType(),
    help="File of `benchbd gallery build` with known encoders to compare with.  [default: benchbd's own]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(names: tuple[str, ...], gallery: Path | None, as_json: bool, **given: Any) -> None:
    """Ask detectors whether an encoder is backdoored.

    ENCODER is a file that `benchbd import` or a run wrote. The pictures should be like those that the encoder was
    trained on; nobody has to label them.

    Scores are compared with those of known encoders of the same architecture, if the same detector inspected them in
    the same way; if there are none, a line says what differs.

    Exit code: 0 if every detector gave a verdict, whatever it is, 1 if one gave none, 2 for wrong usage or data.
    """
    from benchbd.contract.detection import Detection
    from benchbd.report import examined
    from benchbd.report.gallery import read_gallery
    from benchbd.report.writers import text

    bench, terminal = _bench(given)
    if gallery is not None:
        bench = replace(bench, gallery=read_gallery(gallery))
    detections = bench.methods(Detection, names or bench.detectors(), given["options"])
    encoder, images = _loaded(given)
    with terminal:
        rows = [_row(bench, encoder, images, detection) for detection in detections]
    facts = {
        "encoder": given["encoder"].name,
        "arch": encoder.arch,
        "images": len(images),
        "size": images.size,
        "seed": bench.seed,
    }
    made = examined.document(facts, rows)
    say(json.dumps(made.data, indent=1) if as_json else text.write(made, columns(WIDTH)), nl=as_json)
    if any(row.status != "ok" for row in rows):
        sys.exit(1)


@click.command(cls=Command)
@_examining
@click.option("--defense", "name", required=True, metavar="D", help="Defense by name.")
@click.option("--out", required=True, type=PathType(), help="File to write: an encoder of benchbd, as safetensors.")
def repair(name: str, out: Path, **given: Any) -> None:
    """Repair an encoder with a defense, and write the result.

    ENCODER is a file that `benchbd import` or a run wrote. The pictures should be like those that the encoder was
    trained on. `benchbd export` turns the result into a file for another library.
    """
    from benchbd.base.content import commit
    from benchbd.contract.defense import Mitigation

    bench, terminal = _bench(given)
    (defense,) = bench.methods(Mitigation, [name], given["options"])
    check_writable(out)
    encoder, images = _loaded(given)
    with terminal:
        repaired = bench.repair(encoder, images, defense)
    commit(out, repaired.encoder.save)
    for remark in repaired.remarks:
        click.echo(f"{defense.name}: {remark}", err=True)
    say(f"{out}: {encoder.arch} repaired by {defense.name} with {len(images)} images in {repaired.seconds:.1f} s")


def _bench(given: dict[str, Any]) -> tuple[Bench, Any]:
    """The methods' bench, and the view of its progress."""
    from benchbd.base.device import pick_device
    from benchbd.cli.terminal import Terminal
    from benchbd.examine import Bench
    from benchbd.registry import load_registry

    registry = load_registry()
    terminal = Terminal(sys.stderr, quiet=given["quiet"])
    registry.manager.register(terminal, name="terminal")
    return Bench(registry, pick_device(given["device"]), given["seed"]), terminal


def _loaded(given: dict[str, Any]) -> tuple[Encoder, ImageSet]:
    """The encoder, and the pictures drawn from the folder."""
    from benchbd.base.pictures import SIZE
    from benchbd.contract.images import ImageSet
    from benchbd.nets.encoder import Encoder

    encoder = Encoder.load(given["encoder"])
    size = given["size"] or encoder.image_size or SIZE
    images = ImageSet.from_folder(given["folder"], size, images=given["number"], seed=given["seed"])
    if not given["quiet"]:
        click.echo(f"{given['folder']}: {len(images)} pictures at {size}x{size} pixels", err=True)
    return encoder, images


def _row(bench: Bench, encoder: Encoder, images: ImageSet, detection: Detection) -> Row:
    """What a detector says, or why it says nothing."""
    from benchbd.report.examined import Row

    try:
        told = bench.inspect(encoder, images, detection)
    except NotApplicable as error:
        return Row(detection.name, status="n/a", reason=str(error))
    except BenchbdError as error:
        return Row(detection.name, status="failed", reason=str(error))
    return Row(detection.name, told.score, told.flagged, told.seconds, remarks=told.remarks, known=told.known)


def check_writable(path: Path) -> None:
    """Raise UsageError, before any work, if no file can be written there."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path}: may not be written")
