"""``benchbd import``, ``inspect``, ``repair`` and ``export``: one encoder from a file."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from benchbd.base.arguments import LARGEST, LARGEST_SEED, SMALLEST
from benchbd.base.content import expanded
from benchbd.base.errors import BenchbdError, DataError, NotApplicable, UsageError, counted
from benchbd.base.process import columns, say
from benchbd.cli.group import Command
from benchbd.cli.options import PathType, check_writable, device_option, method_option, store_option
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
            click.argument("encoder"),
            store_option,
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
                type=click.IntRange(SMALLEST, LARGEST),
                metavar="PIXELS",
                help="Height and width to which pictures are resized.  [default: the encoder's, else 32]",
            ),
            method_option,
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


@click.command("import", cls=Command)
@click.argument("file", type=PathType())
@click.option("--out", required=True, type=PathType(), help="File to write; its name must end in .safetensors.")
@click.option("--arch", metavar="A", help="Architecture.  [default: the one whose tensors the file has]")
@click.option(
    "--normalisation",
    "told",
    metavar="N",
    help="Normalisation of the images: a name such as imagenet, or six numbers, mean and std of the channels.",
)
@click.option("--key", metavar="K", help="Part of the file, such as state_dict, if several hold an encoder.")
def import_(file: Path, out: Path, arch: str | None, told: str | None, key: str | None) -> None:
    """Bring an encoder of another library into a file of benchbd.

    FILE is what torch.save or safetensors wrote: SimCLR of BadEncoder, DECREE and MIMIC, MoCo, BYOL, solo-learn,
    lightly, timm, torchvision, transformers, CLIP. The names and shapes of its tensors tell which. No code in FILE is
    ever run.
    """
    from benchbd.exchange.importing import import_encoder
    from benchbd.exchange.normalisation import named_normalisation

    check_writable(out, ".safetensors")
    mean, std = (None, None) if told is None else named_normalisation(told)
    found = import_encoder(file, arch=arch, mean=mean, std=std, key=key)
    found.encoder.save(out)
    for line in found.said:
        click.echo(line, err=True)
    head = "a projection head" if found.encoder.head is not None else "no projection head"
    say(f"{out}: {found.encoder.arch} with {head}, from the layout {found.layout}")


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

    ENCODER is a file that `benchbd import` wrote, the JSON file of a record, the key of a stage in the store, or
    the name of a published one, as in BOARD/badencoder/s1. The pictures should be like those that the encoder was
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
        "encoder": Path(given["encoder"]).name,
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
@click.option("--out", required=True, type=PathType(), help="File to write; its name must end in .safetensors.")
def repair(name: str, out: Path, **given: Any) -> None:
    """Repair an encoder with a defense, and write the result.

    ENCODER is a file that `benchbd import` wrote, the JSON file of a record, the key of a stage in the store, or
    the name of a published one, as in BOARD/badencoder/s1. The pictures should be like those that the encoder was
    trained on. `benchbd export` turns the result into a file for another library.
    """
    from benchbd.contract.defense import Mitigation

    bench, terminal = _bench(given)
    (defense,) = bench.methods(Mitigation, [name], given["options"])
    check_writable(out, ".safetensors")
    encoder, images = _loaded(given)
    with terminal:
        repaired = bench.repair(encoder, images, defense)
    repaired.encoder.save(out)
    for remark in repaired.remarks:
        click.echo(remark, err=True)
    used = counted(len(images), "image")
    say(f"{out}: {encoder.arch} repaired by {defense.name} with {used} in {repaired.seconds:.1f} s")


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

    encoder = _encoder(given["encoder"], given["store"])
    size = given["size"] or encoder.image_size or SIZE
    images = ImageSet.from_folder(given["folder"], size, images=given["number"], seed=given["seed"])
    if not given["quiet"]:
        click.echo(f"{given['folder']}: {counted(len(images), 'picture')} at {size}x{size} pixels", err=True)
    return encoder, images


def _row(bench: Bench, encoder: Encoder, images: ImageSet, detection: Detection) -> Row:
    """What a detector says, or why it says nothing."""
    from benchbd.report.examined import Row

    try:
        told = bench.inspect(encoder, images, detection)
    except (UsageError, DataError):  # of the encoder or the images, whatever the detector
        raise
    except NotApplicable as error:
        return Row(detection.name, status="n/a", reason=str(error))
    except BenchbdError as error:
        return Row(detection.name, status="error", reason=str(error))
    return Row(detection.name, told.score, told.flagged, told.seconds, remarks=told.remarks, known=told.known)


@click.command(cls=Command)
@click.argument("encoder")
@click.option("--format", "form", required=True, metavar="F", help="Form: benchbd, torchvision, timm or badencoder.")
@click.option("--out", required=True, type=PathType(), help="File to write; one that ends in .safetensors is that.")
@store_option
def export(encoder: str, form: str, out: Path, store: Path | None) -> None:
    """Write an encoder as a file for another library.

    ENCODER is a file of benchbd, the JSON file of a record, the key of a stage in the store, or the name of a
    published one, as in BOARD/badencoder/s1. A JSON file beside the written one tells the normalisation. Pruned
    channels are folded into the weights if that is exact.
    """
    from benchbd.exchange.exporting import export_encoder

    check_writable(out)
    if out.exists() and expanded(encoder).exists() and out.samefile(expanded(encoder)):
        raise UsageError(f"{out}: is the encoder itself; write the export to another file")
    for line in export_encoder(_encoder(encoder, store), form, out):
        click.echo(line, err=True)
    say(f"{out}: written as {form}")


def _encoder(text: str, store: Path | None) -> Encoder:
    """The encoder in a file; of a record, the one that it is about; else the published one of that name, or that of the
    stage with that key."""
    from benchbd.api import load_encoder
    from benchbd.nets.encoder import Encoder
    from benchbd.records.files import read_record

    path = expanded(text)
    if path.suffix == ".json" and path.is_file():
        record = read_record(path)
        made = next((record.stages[kind] for kind in ("defend", "attack", "pretrain") if kind in record.stages), None)
        if made is None:
            raise DataError(f"{path}: this record names no encoder")
        try:
            return load_encoder(made, store=store, device="cpu")
        except UsageError as error:
            raise UsageError(f"{path}, a record of board {record.board}: {error}") from error
    if not path.exists() and re.fullmatch("[0-9a-f]{6,64}|[^/]+/.+/s[0-9]+", text):
        return load_encoder(text, store=store, device="cpu")
    return Encoder.load(text)  # not of the path: that of an empty text is the working folder
