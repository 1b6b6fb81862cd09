"""The contracts: what a method is, and what each axis hands it and expects back.

A method is a frozen pydantic model. Its fields are its hyperparameters: type, default, bounds and description are said
once and drive validation, ``-o NAME.FIELD=VALUE``, ``benchbd show``, the docs, the cache key and the record.
The threat model is in the signatures: what an argument does not hold, a method cannot use.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python

from benchbd.encoder import ARCHITECTURES
from benchbd.errors import DataAbsentError, DataError, PluginError, asked, first_line, named, shown
from benchbd.files import nests_within, path_digest, without_paths
from benchbd.isolation import asking
from benchbd.verify import CONTROL

MOST_FORWARDS = 10**18  # more is no estimate
DEEPEST = 32  # levels of JSON
_COLLECTIONS = (list, tuple, set, frozenset)

if TYPE_CHECKING:
    from torch import Tensor

    from benchbd.encoder import Encoder
    from benchbd.images import ImageSet, Trigger


class Method(BaseModel):
    """The base of every method: a frozen set of hyperparameters, each with a default.

    name: how users call it, in lower-case letters, digits, '-' and '_'; unique on its axis.
    paper: where it comes from, one line; empty for controls.
    version: raise it when results change. Where a class declares none, it is the digest of the module's source, so
        that an author who edits the code gets a fresh run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    name: ClassVar[str]
    axis: ClassVar[str]
    paper: ClassVar[str] = ""
    version: ClassVar[str] = ""
    passthrough: ClassVar[bool] = False
    """True for a control that hands on what it was given: it needs no stage of its own."""

    @classmethod
    def effective_version(cls) -> str:
        """The declared version, or the digest of the source of the module that defines the class."""
        return cls.version or _source_digest(cls)

    def identity(self) -> dict[str, Any]:
        """What of this method goes into a cache key: axis, name, version and every field.

        A field that is or holds a ``Path`` counts by what lies there: one file at two places is one method. A path as
        a string is refused: it would count by its name, and records, which are published, would tell it.
        """
        return {
            "axis": self.axis,
            "name": self.name,
            "version": self.effective_version(),
            "options": options_of(self),
        }

    def forwards(self, images: int) -> int | None:
        """Estimated cost in image-forwards for ``images`` training images, for ``benchbd plan``; None if unknown."""
        return None

    def shortened(self, images: int) -> str | None:
        """A line for the table where these options cost less than nine tenths of the defaults; else None."""
        own, full = self.forwards(images), type(self)().forwards(images)
        if not own or not full or own >= 0.9 * full:
            return None
        share = 100 * own / full
        return f"{self.name}: {share:.2g} % of the {full:,} image-forwards that its defaults take"


def options_of(method: Method) -> dict[str, Any]:
    """Every field of a method as JSON, a ``Path``, also one in a list or the like, as the digest of what lies there."""
    return method.model_dump(mode="json") | {
        field: to_jsonable_python(_by_content(value)) for field, value in method if _holds_path(value)
    }


def _holds_path(value: object) -> bool:
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        return any(map(_holds_path, (*value, *value.values())))
    return isinstance(value, Path) or (isinstance(value, _COLLECTIONS) and any(map(_holds_path, value)))


def _by_content(value: Any) -> Any:
    """The value with every path in it as its digest."""
    if isinstance(value, Path):
        return path_digest(value)
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        return {_by_content(name): _by_content(inner) for name, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_by_content, value))
    return list(map(_by_content, value)) if isinstance(value, _COLLECTIONS) else value


@cache
def _source_digest(cls: type) -> str:
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):
        source = repr((cls.__module__, cls.__qualname__))
    return "source-" + hashlib.sha256(source.encode()).hexdigest()[:16]


def ask(method: Method, what: str, work: Callable[..., Any], *arguments: object) -> Any:
    """What a method's ``work`` returns, in isolation: a question changes no answer of another method."""
    with asking(f"{method.axis} {method.name}", type(method)):
        return asked(what, work, *arguments)


def identity_of(method: Method) -> dict[str, Any]:
    """What ``method.identity()`` says, as JSON. PluginError where it raises, says no JSON, says something else when
    asked again, or leaves out what every method's identity holds."""
    own, second, plain = ask(
        method, "identity()", lambda: (method.identity(), method.identity(), Method.identity(method))
    )
    try:
        found, again, whole = map(as_json, (own, second, plain))
    except (ValueError, TypeError, RecursionError) as error:
        raise PluginError(f"identity() must give JSON, not {shown(own)} ({named(error)})") from error
    if not isinstance(found, dict) or any(name not in found or found[name] != whole[name] for name in whole):
        raise PluginError(f"identity() must hold {', '.join(whole)} as Method.identity() does, not {shown(own)}")
    if found != again:
        raise PluginError("identity() differs from call to call")
    if path := next(_paths_in(found), None):
        raise PluginError(
            f"identity() must tell no path of this machine, as {shown(path)} is: an option that names a file is "
            "declared as a Path, which counts by what lies there"
        )
    return found


def _paths_in(value: object) -> Iterator[str]:
    """Strings in JSON that are or hold a path."""
    if isinstance(value, str) and without_paths(value) != value:
        yield value
    inside = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    for inner in inside:
        yield from _paths_in(inner)


def architecture_of(method: Pretraining) -> str:
    """What ``method.architecture`` says; PluginError where it raises or names none."""
    told = ask(method, "architecture", lambda: method.architecture)
    if not (isinstance(told, str) and told in ARCHITECTURES):
        raise PluginError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {shown(told)}")
    return told


def as_json(value: object) -> Any:
    """A foreign value as JSON gives it back. ValueError, TypeError or RecursionError where it is no JSON, holds numbers
    that are not finite or text that is not UTF-8, or is nested deeper than anybody reads."""
    found = json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    if not nests_within(found, DEEPEST):
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return found


def forwards_of(method: Method, images: int) -> int | None:
    """What ``method.forwards(images)`` says; PluginError where it raises or says no number of forwards."""
    told = ask(method, "forwards()", method.forwards, images)
    if told is None:
        return None
    if not isinstance(told, Integral) or isinstance(told, bool) or not 0 <= int(told) <= MOST_FORWARDS:
        raise PluginError(f"forwards() must give a whole number from 0 on or None, not {shown(told)}")
    return int(told)


def shortened_of(method: Method, images: int) -> str | None:
    """What ``method.shortened(images)`` says, a line or None; PluginError where it raises or says no text."""
    told = ask(method, "shortened()", method.shortened, images)
    if not (told is None or isinstance(told, str)):
        raise PluginError(f"shortened() must give a line or None, not {shown(told)}")
    return None if told is None else first_line(told) or None


class Dataset(Method):
    """A named data set that needs more than a folder in a known layout.

    splits: the splits, train and test at least, and the number of images of each; 0 where it may vary.
    needs_files: whether ``load`` reads files. A data set that is generated declares False: nothing of it has to lie
        under the data root, and ``check_method`` loads it; of one with files only where it is given a ``data_root``.
    classes: the class names in label order, for layouts that carry none; () where the files tell.
    normalization: declared (mean, std) per channel in [0, 1] units; None where the pixels are to tell.
    """

    axis: ClassVar[str] = "dataset"
    splits: ClassVar[Mapping[str, int]] = {"train": 0, "test": 0}
    needs_files: ClassVar[bool] = True
    classes: ClassVar[tuple[str, ...]] = ()
    normalization: ClassVar[tuple[tuple[float, ...], tuple[float, ...]] | None] = None

    def sources(self, split: str, root: Path) -> list[Path]:
        """The files that ``load`` reads, in a fixed order: their names and contents are the key of the decoded cache.

        By default all files in ``root/name``, none where ``needs_files`` is False. DataAbsentError where there are
        none.
        """
        if not self.needs_files:
            return []
        files = sorted(path for path in (root / self.name).rglob("*") if path.is_file())
        if not files:
            raise DataAbsentError(
                f"{self.name}: no files in {root / self.name} (a generated data set declares needs_files = False)"
            )
        return files

    def load(self, split: str, root: Path) -> ImageSet:
        """The images of ``split`` found under ``root`` (the data root). DataAbsentError where they are not there."""
        raise NotImplementedError

    def download(self, root: Path) -> None:
        """Fetch the official archives into ``root``."""
        raise NotImplementedError


class Pretraining(Method):
    """Self-supervised training of an encoder from random weights."""

    axis: ClassVar[str] = "pretraining"

    @property
    def architecture(self) -> str:
        """Name of the architecture that ``pretrain`` returns: all that a control like ``scratch`` may know of it."""
        raise NotImplementedError

    def pretrain(self, images: ImageSet, seed: int) -> Encoder:
        """An encoder trained on ``images`` (their labels must not be read), on their device, in eval mode."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Target:
    """One goal of an attacker: make triggered inputs of a downstream task come out as one class.

    label, name: the target class in the task's label space.
    trigger: the patch to bind to it.
    references: uint8 (r, 3, H, W), images that the attacker believes to be of the target class.
    images: downstream TRAIN images of the target class (data poisoning stamps those); never test images.
    """

    label: int
    name: str
    trigger: Trigger
    references: Tensor
    images: ImageSet


@dataclass(frozen=True, eq=False)
class AttackerKnowledge:
    """What an attacker has. Test images are not among it.

    encoder: the clean encoder, a copy.
    pretraining, pool, pool_seed: how, on what and with which seed it was trained; enough to train again.
    shadow: the unlabelled images that the attacker tunes on.
    targets: one entry per (task, class) under attack.
    seed: for the attack's own draws.
    """

    encoder: Encoder
    pretraining: Pretraining
    pool: ImageSet
    pool_seed: int
    shadow: ImageSet
    targets: tuple[Target, ...]
    seed: int


@dataclass(frozen=True, eq=False)
class Backdoor:
    """What an attack leaves behind: the encoder that is published and, per target, the trigger bound to it.

    The triggers are the knowledge's own: a board fixes the trigger, so that the clean floor is measured with the same.
    """

    encoder: Encoder
    triggers: tuple[Trigger, ...]


class Attack(Method):
    """Turns a clean encoder into a backdoored one.

    retrains: True where ``inject`` runs the knowledge's pre-training again, and so costs what that did.
    control_of: the name of the attack whose control this is. A control is never gated, and a board plans it without
        defenses: its own undefended row is what it is for. Its name ends in "-control", by which readers of its
        records know it.
    """

    axis: ClassVar[str] = "attack"
    retrains: ClassVar[bool] = False
    control_of: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if bool(cls.control_of) != getattr(cls, "name", "").endswith(CONTROL):
            raise PluginError(f"attack {cls.__name__}: control_of and a name that ends in {CONTROL!r} go together")

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        """The backdoored encoder. NotApplicable where the attack makes no sense for ``knowledge``."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class DefenderKnowledge:
    """What a defender has: a few clean images without labels, and a seed. No trigger, target, test data or path."""

    images: ImageSet
    seed: int


class Mitigation(Method):
    """A defense that repairs an encoder.

    uses_weights: False for a control that depends on the architecture and the clean images alone, so that one run
        serves every attack.
    """

    axis: ClassVar[str] = "defense"
    uses_weights: ClassVar[bool] = True

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """A repaired encoder of the same architecture. ``encoder`` is a copy that may be changed or returned."""
        raise NotImplementedError


@dataclass(frozen=True)
class Verdict:
    """What a detector thinks of one encoder.

    score: higher is more suspicious, finite; populations of encoders are compared by it alone.
    flagged: the detector's own decision.
    """

    score: float
    flagged: bool


class Detection(Method):
    """Tells backdoored encoders from clean ones. Judged on populations: many encoders of either kind."""

    axis: ClassVar[str] = "detection"

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        """The verdict on one encoder. ``encoder`` is a copy that may be changed."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Probe:
    """One encoder to be judged on one downstream task.

    encoder: frozen.
    train: labelled downstream training images.
    test, triggered: uint8 (N, 3, H, W), the test images without and with the trigger. Their labels stay with the
        harness, which computes the metrics.
    seed: for the initial weights, the order and the dropout of a downstream classifier.
    """

    encoder: Encoder
    train: ImageSet
    test: Tensor
    triggered: Tensor
    seed: int

    @property
    def labels(self) -> Tensor:
        """The training labels, int64 (N,), on the encoder's device. DataError where there are none."""
        if self.train.labels is None:
            raise DataError("a downstream classifier needs labelled training images")
        return self.train.labels.to(self.encoder.device)

    @property
    def classes(self) -> int:
        """How many classes the task has."""
        return len(self.train.classes) or int(self.labels.max()) + 1


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted classes, int64 (N,), of the test images without and with the trigger."""

    clean: Tensor
    triggered: Tensor


class Evaluator(Method):
    """A downstream classifier on frozen features."""

    axis: ClassVar[str] = "evaluator"

    def evaluate(self, probe: Probe) -> Predictions:
        """Train on ``probe.train``, predict both test sets."""
        raise NotImplementedError

    def evaluate_together(self, probes: Sequence[Probe]) -> list[Predictions]:
        """Several probes of one task and feature dimension at once, where that is faster than one by one.

        A prediction must not depend on the company: the harness keys and stores each on its own.
        """
        return [self.evaluate(probe) for probe in probes]
