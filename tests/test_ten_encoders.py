"""Ten encoders as strangers publish them, five clean and five attacked, before every detector: what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import benchbd
from benchbd import Detection, ImageSet
from benchbd.api import Session
from benchbd.examine import Bench
from benchbd.exchange.exporting import export_encoder
from benchbd.exchange.importing import import_encoder
from benchbd.planning.selection import Selection
from benchbd.records.detection import DetectionRecord
from benchbd.registry import installed
from benchbd.report.detection import populations
from benchbd.report.gallery import gather

BOARD = """
attacks = ["none", "badencoder"]
defenses = ["none"]
detections = {detections}
seeds = [1, 2, 3, 4, 5]
rows = [{{ pretrain = "shapes", tasks = ["shapes:7"] }}]
clean.images = 1000

[options.simclr]
arch = "w16"
steps = 60
batch = 256
optimizer = "adamw"
lr = 3e-3
schedule = "cosine"
warmup_steps = 10
temperature = 0.2
crop_scale = [0.2, 1.0]
colour = "affine"

[options.badencoder]
steps = 200
batch = 64
lr = 0.1
schedule = "cosine"
ref_draws = 4
colour = "affine"

[options."detection:decree"]
inversion_steps = 400

[options.mlp]
epochs = 30
"""
"""The demo's encoders, with a fifth of the steps of pre-training and a third of the attack's."""


@pytest.mark.slow
@pytest.mark.fixed_draw("it asserts no outcome of training: whatever AUROC comes out is printed")
def test_ten_encoders_before_every_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An encoder that went through a stranger's file, and pictures that went through a folder, give the score that the
    board's record has; the figures of the population are those of these scores."""
    registry, board = installed(), tmp_path / "ten.toml"
    names = Bench(registry, torch.device("cpu"), 1).detectors()
    board.write_text(BOARD.format(detections=names))
    session = Session.open(board, Selection.of(only=True), store=tmp_path / "store", device="cpu", registry=registry)
    records = [record for record in session.inspect() if isinstance(record, DetectionRecord)]
    assert len(records) == 10 * len(names)
    pool = session.library.load("shapes", "pool", 32).pixels
    scores: dict[tuple[str, str], list[float]] = {}
    for record in records:
        published = benchbd.load_encoder(record.identity["detect"]["parents"]["encoder"], store=session.store)
        file, folder = tmp_path / f"{record.attack}-{record.seed}.pth", tmp_path / f"pictures-{record.seed}"
        export_encoder(published, "benchbd", file)
        stranger = import_encoder(file).encoder
        folder.mkdir(exist_ok=True)
        for row in record.clean_images:
            Image.fromarray(pool[row].permute(1, 2, 0).numpy()).save(folder / f"{row:05}.png")
        images = ImageSet.from_folder(folder)
        bench = Bench(registry, torch.device("cpu"), record.seed, gather([(session.board, records)]))
        options = record.identity["detect"]["method"]["options"]
        detection = benchbd.method("detection", record.detection, **options)
        assert isinstance(detection, Detection)
        told = bench.inspect(stranger, images, detection)
        if not detection.prepares:  # what a board prepares, it prepares on the images of its first seed
            assert (told.score, told.flagged) == (record.score, record.flagged)
        if record.status == "ok":
            scores.setdefault((record.detection, record.attack), []).append(told.score)
        (beside,) = told.known.populations
        assert beside.clean is not None
        assert beside.clean.n == 5
        assert 0 <= beside.clean.share[1] <= beside.clean.share[0] <= beside.clean.share[2] <= 1
    for population in populations(records):
        clean, attacked = (scores.get((population.detection, kind), []) for kind in ("none", population.attack))
        assert len(clean) == 5
        assert len(attacked) + sum(population.left_out.values()) == 5
        with capsys.disabled():
            print(f"\n{population.detection}: clean {sorted(clean)}, attacked {sorted(attacked)}")
            if population.auroc is None:
                print(f"no attack took: {population.left_out}")
            else:
                print("AUROC {:.3f}, 95 % interval {:.2f} to {:.2f}".format(*population.auroc))
        if population.auroc is not None:
            value, low, high = population.auroc
            assert 0 <= low <= value <= high <= 1
