"""What defenses make of an encoder goes out as another library's file; a large encoder takes little memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchbd import ImageSet, Mitigation, Role, UsageError
from benchbd.examine import Bench
from benchbd.exchange.exporting import export_encoder
from benchbd.exchange.importing import import_encoder
from benchbd.registry import Registry, load_registry

from ..chance import seeded
from ..test_conformance import quick
from .test_forms import loaded, made

pytestmark = pytest.mark.slow

DEFENSES = load_registry().names("defense")


@torch.no_grad()
@pytest.mark.parametrize("form", ["torchvision", "badencoder"])
@pytest.mark.parametrize("name", DEFENSES)
def test_the_result_of_each_defense_goes_out(name: str, form: str, registry: Registry, tmp_path: Path) -> None:
    """Pruned channels too: features before, after, and of the file read again agree to 1e-5 of their size."""
    generator = torch.Generator().manual_seed(seeded(1))
    images = ImageSet(torch.randint(0, 256, (32, 3, 32, 32), generator=generator, dtype=torch.uint8))
    defense = quick(registry.get("defense", name))
    assert isinstance(defense, Mitigation)
    with torch.enable_grad():
        repaired = Bench(registry, torch.device("cpu"), seed=seeded(1)).repair(made(), images, defense).encoder
    said = export_encoder(repaired, form, tmp_path / "out.safetensors")
    x = images.pixels[:4].float() / 255
    wanted = repaired(x)
    scale = float(wanted.abs().max())
    net = loaded(said)
    theirs = getattr(net, "f", net)((x - repaired.mean) / repaired.std).flatten(1)
    torch.testing.assert_close(theirs / scale, wanted / scale, rtol=1e-5, atol=1e-5)
    again = import_encoder(tmp_path / "out.safetensors").encoder(x)
    torch.testing.assert_close(again / scale, wanted / scale, rtol=1e-5, atol=1e-5)
    if name == "fp":
        assert not repaired.mask.all()


def test_every_defense_is_tried(registry: Registry) -> None:
    assert {"none", "ft", "fp", "nad", "anp", "moth", "medic", "mimic", "scratch"} <= set(DEFENSES)
    assert not any(registry.get("defense", name).role is Role.FILE for name in DEFENSES)
    with pytest.raises(UsageError, match="has no net like w16"):
        export_encoder(made("w16"), "torchvision", "out.pth")


@pytest.mark.fixed_draw("a few steps for exit codes and memory; no figure is read")
def test_a_large_encoder_takes_less_than_4_gib(tmp_path: Path) -> None:
    """torchvision's ResNet-50 at 224 pixels from the shell: imported, inspected, repaired for a few steps, exported."""
    from torchvision.models import resnet50

    torch.save(resnet50().state_dict(), tmp_path / "in.pth")
    (tmp_path / "pictures").mkdir()
    draws = np.random.default_rng(seeded(2))
    for number in range(8):
        pixels = draws.integers(0, 256, (28, 28, 3), np.uint8)
        Image.fromarray(pixels).resize((224, 224)).save(tmp_path / "pictures" / f"{number}.png")
    shared = ["encoder.safetensors", "--images", "pictures", "--image-size", "224"]
    for arguments in (
        ["import", "in.pth", "--out", "encoder.safetensors", "--normalisation", "imagenet"],
        ["inspect", *shared, "-o", "decree.inversion_steps=3", "-o", "decree.inversion_batch=4"],
        [
            "repair",
            *shared,
            "--defense",
            "ft",
            "--out",
            "repaired.safetensors",
            "-o",
            "ft.steps=3",
            "-o",
            "ft.batch=4",
            "-o",
            "ft.head_steps=2",
        ],
        ["export", "repaired.safetensors", "--format", "torchvision", "--out", "out.pth"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "benchbd", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (arguments, done.stderr)
    resnet50().load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=False)
    highest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert highest < 4 * 2**30, highest
