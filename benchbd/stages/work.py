"""What each kind of stage does: from its inputs in the store and the data library to blobs and a small result.

This is the only place where knowledge is put together, so it is where the threat model is kept: what a method is
handed is built here and nowhere else. A method works on copies, of itself too, and in isolation: what it writes to and
what it leaves changed is no other stage's. What comes back is verified against the stage and rebuilt from its tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from benchbd.base.errors import DataError, PluginError, shown
from benchbd.base.isolation import isolated, seeded
from benchbd.contract.attack import Attack, AttackerKnowledge, Backdoor, Target, check_binds
from benchbd.contract.context import Findings, derive_seed, stream
from benchbd.contract.defense import DefenderKnowledge, Mitigation
from benchbd.contract.detection import Detection, Verdict
from benchbd.contract.encoder import Encoder
from benchbd.contract.evaluator import Evaluator, Predictions, Probe
from benchbd.contract.images import ImageSet, content_digest
from benchbd.contract.meter import unmetered
from benchbd.contract.method import Method
from benchbd.contract.pretraining import Pretraining
from benchbd.contract.rebuild import rebuild
from benchbd.contract.trigger import Trigger
from benchbd.data.library import DataLibrary
from benchbd.stages.artifact import Artifact
from benchbd.stages.base import DataRef, Stage, check_features

ENCODER, REFERENCES, PREDICTIONS = "encoder.safetensors", "references.safetensors", "predictions.safetensors"

KEPT = "kept.safetensors"

SAMPLE, COMPARED = 256, 32  # images that a new encoder is checked on, and that it is compared with its twin on

ALIKE = 1e-2  # by how much the features of an encoder and of its rebuilt twin may differ, relative to their norm

M = TypeVar("M", bound=Method)

R = TypeVar("R")

Blobs = dict[str, Callable[[Path], None]]


@dataclass(frozen=True)
class Outcome:
    """blobs: functions that write a file each. result: small JSON."""

    blobs: Blobs
    result: dict[str, Any]


class Workshop:
    """Computes stages on one device. Data sets are moved there once and stay.

    fetch: hands over the verified artifact of a stage that was computed before.
    """

    def __init__(self, library: DataLibrary, device: torch.device, fetch: Callable[[Stage], Artifact]) -> None:
        self.library, self.device, self.fetch = library, device, fetch
        self._resident: dict[str, ImageSet] = {}

    def compute(self, stage: Stage) -> Outcome:
        """The outcome of any stage but ``evaluate``, which comes in groups. Global random numbers are its own."""
        work = {
            "pretrain": self._pretrain,
            "reference": self._reference,
            "attack": self._attack,
            "defend": self._defend,
            "detect": self._detect,
        }
        _check_unchanged(stage)
        with seeded(stage.seed):
            return work[stage.kind](stage)

    def evaluate(self, stages: Sequence[Stage]) -> list[Outcome]:
        """Evaluate stages of one evaluator, task and feature dimension together."""
        for stage in stages:
            _check_unchanged(stage)
        evaluator = _own(Evaluator, stages[0])
        with seeded(stages[0].seed):
            probes = self._probes(stages)
            with isolated(who := f"evaluator {evaluator.name}"):
                given = evaluator.evaluate_together(probes)
        results = evaluated_together(given, len(stages), who)
        classes = len(self.images(stages[0].data["train"]).classes)
        return [
            _predicted(checked_predictions(result, stage.data["test"].count, classes, who))
            for result, stage in zip(results, stages, strict=True)
        ]

    def encoder(self, stage: Stage) -> Encoder:
        """The encoder that a stage left, on the device, a fresh object every time."""
        return Encoder.load(self.fetch(stage).blob(ENCODER), self.device)

    def images(self, ref: DataRef) -> ImageSet:
        if ref.digest not in self._resident:
            self._resident[ref.digest] = self.library.load(ref.name, ref.split, ref.size).to(self.device)
        return self._resident[ref.digest]

    # The stages

    def _pretrain(self, stage: Stage) -> Outcome:
        method, who = _own(Pretraining, stage), f"pre-training {stage.method_name}"
        with isolated(who):
            encoder = method.pretrain(self._pool(stage), stage.seed)
        return self._encoder_outcome(encoder, who, self._sample(stage), stage.architecture)

    def _sample(self, stage: Stage) -> ImageSet:
        """Images of the pool that no method has had in its hands: some for a defense's clean ones, if it has any."""
        pool, drawn = self.images(stage.data["pool"]), stage.params.get("clean")
        rows = torch.arange(len(pool)) if drawn is None else draw_rows(len(pool), drawn)
        return pool.subset(rows[:SAMPLE]).unlabeled()

    def _pool(self, stage: Stage) -> ImageSet:
        """A copy of the pre-training pool without labels: a method that writes to it spoils nobody else's."""
        return self.images(stage.data["pool"]).unlabeled()

    def _reference(self, stage: Stage) -> Outcome:
        train = self.images(stage.data["train"])
        encoder = self.encoder(stage.parents["encoder"])
        given = stage.attachments.get("references")
        choice = choose_references(
            encoder,
            train,
            target=stage.params["target"],
            count=stage.params["count"],
            seed=stage.seed,
            given=None if given is None else _verified_references(given, stage.params["file"]).to(self.device),
        )
        tensors = {"pixels": choice.pixels.cpu().contiguous()}
        result = {
            "reference": "file" if given is not None else "train_split",
            "rows": choice.rows,
            "predicted": choice.predicted,
            "probability": choice.probability,
        }
        return Outcome({REFERENCES: lambda path: save_file(tensors, path)}, result)

    def _attack(self, stage: Stage) -> Outcome:
        method, who = _own(Attack, stage), f"attack {stage.method_name}"
        check_binds(method, (trigger for _, trigger in stage.attachments["goals"]))
        clean = stage.parents["encoder"]
        targets, digests = [], [target["trigger"] for target in stage.params["targets"]]
        for i, (goal, given) in enumerate(stage.attachments["goals"]):
            trigger = _verified(given, digests[i], self.device)
            references = load_file(self.fetch(stage.parents[f"reference{i}"]).blob(REFERENCES))["pixels"]
            images = self.images(stage.data[f"train{i}"]).of_class(goal.label).unlabeled()
            targets.append(Target(goal.label, goal.name, trigger, references.to(self.device), images))
        pool = self._pool(stage)
        drawn = stage.params.get("shadow")
        knowledge = AttackerKnowledge(
            encoder=self.encoder(clean).copy(),
            pretraining=_own(Pretraining, clean),
            pool=pool,
            pool_seed=stage.params["pool_seed"],
            shadow=pool if drawn is None else pool.subset(draw_rows(len(pool), drawn)),
            targets=tuple(targets),
            seed=stage.seed,
        )
        with isolated(who):
            backdoor = method.inject(knowledge)
        check_backdoor(backdoor, digests, who)
        return self._encoder_outcome(backdoor.encoder, who, self._sample(stage), stage.architecture)

    def _defender(self, stage: Stage) -> DefenderKnowledge:
        """A clone without labels, names or the pool's declared statistics: nothing in it points back to anything."""
        rows = draw_rows(stage.data["pool"].count, stage.params["clean"])
        images = replace(self.images(stage.data["pool"]).subset(rows).unlabeled(), mean=None, std=None)
        return DefenderKnowledge(images, stage.seed)

    def _defend(self, stage: Stage) -> Outcome:
        method, who = _own(Mitigation, stage), f"defense {stage.method_name}"
        knowledge = self._defender(stage)
        if "encoder" in stage.parents:
            encoder = self.encoder(stage.parents["encoder"]).copy()
        else:  # a control that may know the architecture and nothing else
            encoder = Encoder.seeded(
                stage.params["architecture"], *knowledge.images.normalization(), seed=stage.seed, device=self.device
            )
        with isolated(who):
            repaired = method.repair(encoder, knowledge)
        return self._encoder_outcome(repaired, who, self._sample(stage), stage.architecture)

    def _detect(self, stage: Stage) -> Outcome:
        method, who = _own(Detection, stage), f"detector {stage.method_name}"
        encoder, knowledge = self.encoder(stage.parents["encoder"]).copy(), self._defender(stage)
        with isolated(who):
            verdict = method.inspect(encoder, knowledge)
        verdict = checked_verdict(verdict, who)
        return Outcome({}, {"score": verdict.score, "flagged": verdict.flagged})

    def _probes(self, stages: Sequence[Stage]) -> list[Probe]:
        """One probe a stage. They share copies of the images: an evaluator that writes to them spoils only its own."""
        train = self.images(stages[0].data["train"])
        train = train.subset(torch.arange(len(train)))
        test = self.images(stages[0].data["test"]).pixels.clone()
        triggered: dict[tuple[str, int], Tensor] = {}
        for stage in stages:
            # Only a trigger that wanders draws; from the stage's own seed, whatever the company.
            if (place := (stage.params["trigger"], stage.seed)) not in triggered:
                positions = stream(stage.seed, "positions", self.device)
                trigger = _verified(stage.attachments["trigger"], stage.params["trigger"], self.device)
                triggered[place] = trigger.stamp(test, positions)
        return [
            Probe(
                encoder=self.encoder(stage.parents["encoder"]).frozen(),
                train=train,
                test=test,
                triggered=triggered[stage.params["trigger"], stage.seed],
                seed=stage.seed,
            )
            for stage in stages
        ]

    def _encoder_outcome(self, encoder: object, who: str, images: ImageSet, arch: str) -> Outcome:
        """What a method made of an encoder, rebuilt from its tensors: that one is checked, and that one is stored."""
        with isolated(who):
            plain = rebuild(cast(Encoder, encoder), arch, who).to(self.device)
        check_features(plain, images)
        with isolated(who), unmetered():
            check_alike(cast(Encoder, encoder), plain, images, who)
        return Outcome({ENCODER: plain.save}, {"arch": arch})


def exactly(kind: type[R], value: object, who: str) -> R:
    """The value, where it is of this very class. PluginError for another or a subclass: what that overrides is not what
    the harness uses."""
    if type(value) is kind:
        return value
    name = type(value).__name__
    what = f"its subclass {name}, whose own methods are not used" if isinstance(value, kind) else name
    article = "" if kind.__name__.endswith("s") else "a "
    raise PluginError(f"{who} must return {article}benchbd.{kind.__name__}, not {what}")


def check_backdoor(backdoor: object, digests: Sequence[str], who: str) -> None:
    """PluginError where an attack does not hand back the triggers of these digests, as they are now."""
    triggers = exactly(Backdoor, backdoor, who).triggers
    if not isinstance(triggers, tuple | list):
        raise PluginError(f"{who} must return its triggers as a tuple, not {type(triggers).__name__}")
    own = [exactly(Trigger, trigger, who) for trigger in triggers]
    if any("stamp" in vars(trigger) for trigger in own):
        raise PluginError(f"{who} must return triggers without a stamp of their own, which is not used")
    if [trigger.copy("cpu").digest for trigger in own] != list(digests):  # a copy has no digest of before
        raise PluginError(f"{who} must return the triggers that it was given, unchanged and one per target")


def check_alike(encoder: Encoder, plain: Encoder, images: ImageSet, who: str) -> None:
    """PluginError where an encoder does something that its tensors do not say: its rebuilt twin is what is stored."""
    pixels = images.pixels[:COMPARED]
    encoder.eval()  # as it will be used: the mode is no part of what is stored
    for own, stored in zip(_outputs(encoder, pixels), _outputs(plain, pixels), strict=True):
        if not (own - stored).norm() <= ALIKE * stored.norm():
            raise PluginError(f"{who} must return an encoder that is its weights alone: they give other features")


@torch.no_grad()
def _outputs(encoder: Encoder, pixels: Tensor) -> list[Tensor]:
    """Features and, where there is a head, projections."""
    features = encoder.extract(pixels)
    return [features.cpu()] if encoder.head is None else [features.cpu(), encoder.project(features).cpu()]


def _own(kind: type[M], stage: Stage) -> M:
    """The stage's method, a copy: what it changes in itself is not carried to another stage."""
    method = stage.method
    assert isinstance(method, kind)
    return method.model_copy(deep=True)


def _check_unchanged(stage: Stage) -> None:
    """PluginError where the stage is not what it was when it was planned, because a plugin wrote to it in memory."""
    if replace(stage).key != stage.key:  # a copy has no key of before
        raise PluginError(f"{stage.kind} {stage.label} was changed in memory by a plugin; run without it")


def _verified(trigger: Trigger, digest: str, device: torch.device) -> Trigger:
    """A copy of the board's trigger on the device. PluginError where it is not the one that the stage is keyed by."""
    copy = trigger.copy(device)
    if copy.digest != digest:
        raise PluginError("a trigger of the board was changed in memory by a plugin; run without it")
    return copy


def _verified_references(pixels: Tensor, digest: str) -> Tensor:
    """The references of a file. PluginError where they are not those that the stage is keyed by."""
    if content_digest(pixels, None, ()) != digest:
        raise PluginError("the reference inputs were changed in memory by a plugin; run without it")
    return pixels


def draw_rows(pool: int, drawn: Mapping[str, int]) -> Tensor:
    """Rows of the pool, int64 (count,), sorted: drawn without replacement from a seed of their own."""
    generator = torch.Generator().manual_seed(drawn["seed"])
    return torch.randperm(pool, generator=generator)[: drawn["count"]].sort().values


def checked_verdict(verdict: object, who: str) -> Verdict:
    """The verdict in Python's own numbers; PluginError if the score is no finite number or the flag is no bool."""
    verdict = exactly(Verdict, verdict, who)
    score, flagged = (
        value.item() if isinstance(value, Tensor | np.generic) and value.ndim == 0 else value
        for value in (verdict.score, verdict.flagged)
    )
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise PluginError(f"{who} must give a finite number as score, not {shown(score)}")
    if not isinstance(flagged, bool):
        raise PluginError(f"{who} must say flagged=True or False, not {shown(flagged)}")
    return Verdict(float(score), flagged)


def checked_predictions(predictions: object, images: int, classes: int, who: str) -> dict[str, Tensor]:
    """Copies of both predictions, by name; PluginError if they are no int64 (images,) of classes."""
    predictions = exactly(Predictions, predictions, who)
    tensors = {"clean": predictions.clean, "triggered": predictions.triggered}
    for name, values in tensors.items():
        if not isinstance(values, Tensor):
            raise PluginError(f"{who} must give {name} predictions as a tensor, not {type(values).__name__}")
        if values.dtype != torch.int64 or values.shape != (images,):
            raise PluginError(
                f"{who} must give {name} predictions as int64 ({images},), not {values.dtype} {tuple(values.shape)}"
            )
        if images and not 0 <= int(values.min()) <= int(values.max()) < classes:
            raise PluginError(f"{who} must give {name} predictions from 0 to {classes - 1}, the classes")
    return {name: values.cpu().clone() for name, values in tensors.items()}  # a file takes no shared storage


def evaluated_together(results: object, probes: int, who: str) -> list[object]:
    """What an evaluator gave for several probes; PluginError if it is no list of one result a probe."""
    if not isinstance(results, list | tuple):
        raise PluginError(f"{who} must give a list from evaluate_together, not {type(results).__name__}")
    if len(results) != probes:
        raise PluginError(f"{who} must give {probes} results for {probes} probes, not {len(results)}")
    return list(results)


def _predicted(tensors: dict[str, Tensor]) -> Outcome:
    return Outcome({PREDICTIONS: lambda path: save_file(tensors, path)}, {})


def kept_blobs(findings: Findings) -> Blobs:
    """What a method kept for pictures, as one more file; none where it kept nothing."""
    if not findings.tensors:
        return {}
    content = save(findings.tensors)  # now: what cannot be saved is the method's failure, not the store's

    def write(path: Path) -> None:
        path.write_bytes(content)

    return {KEPT: write}


def read_predictions(artifact: Artifact) -> Predictions:
    tensors = load_file(artifact.blob(PREDICTIONS))
    return Predictions(tensors["clean"], tensors["triggered"])


@dataclass(frozen=True)
class ReferenceChoice:
    """pixels: uint8 (r, 3, H, W); rows: their rows in the training split (empty for a file's); predicted: the clean
    classifier's class for each; probability: what it gives the target, 0..1."""

    pixels: Tensor
    rows: list[int]
    predicted: list[int]
    probability: list[float]


def choose_references(
    encoder: Encoder, train: ImageSet, *, target: int, count: int, seed: int, given: Tensor | None = None
) -> ReferenceChoice:
    """The ``count`` target images of a half of ``train`` that a head fitted on the other half is surest of.

    given: uint8 (r, 3, H, W), reference inputs from elsewhere; they are only classified.
    The source study chose the same way; the papers collect reference inputs from elsewhere.
    DataError below 3 images, since features are standardised over the fitted half and one has no deviation, and where
    fewer images of the target are held out than are asked for.
    """
    assert train.labels is not None
    if len(train) < 3:
        raise DataError(f"reference inputs are chosen from at least 3 training images, not {len(train)}")
    features = F.normalize(encoder.extract(train.pixels), dim=1)
    order = torch.randperm(len(train), generator=stream(seed, "halves")).to(features.device)
    fitted, held_out = order.chunk(2)
    mean, std = features[fitted].mean(0), features[fitted].std(0) + 1e-5
    classes = int(train.labels.max()) + 1
    head = _fit_head((features[fitted] - mean) / std, train.labels[fitted], classes, seed)

    @torch.no_grad()
    def judge(candidates: Tensor) -> Tensor:
        logits: Tensor = head((candidates - mean) / std)
        return logits.softmax(1)

    if given is not None:
        rows, pixels, probability = [], given, judge(F.normalize(encoder.extract(given), dim=1))
    else:
        own = held_out[train.labels[held_out] == target]
        own = own if len(own) else (train.labels == target).nonzero()[:, 0]
        if count > len(own):
            raise DataError(f"{count} reference inputs are asked for, and {len(own)} images of the target are held out")
        probability = judge(features[own])
        best = probability[:, target].topk(count).indices
        rows, pixels, probability = own[best].tolist(), train.pixels[own[best]], probability[best]
    return ReferenceChoice(
        pixels=pixels,
        rows=rows,
        predicted=probability.argmax(1).tolist(),
        probability=[round(p, 4) for p in probability[:, target].tolist()],
    )


def _fit_head(features: Tensor, labels: Tensor, classes: int, seed: int, epochs: int = 30) -> nn.Module:
    """A small two-layer classifier on standardised features, deterministic by seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        head = nn.Sequential(nn.Linear(features.shape[1], 256), nn.ReLU(), nn.Linear(256, classes))
    head.to(features.device)
    optimizer = torch.optim.Adam(head.parameters(), 1e-3, weight_decay=1e-4)
    order = stream(seed, "order")
    for _ in range(epochs):
        for rows in torch.randperm(len(features), generator=order).to(features.device).split(256):
            loss = F.cross_entropy(head(features[rows]), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return head.eval()
