"""The axis of attacks, and an attacker's knowledge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from benchbd.base.errors import NotApplicable
from benchbd.contract.method import Method
from benchbd.contract.pretraining import Pretraining
from benchbd.contract.specs import OF_DATA, TriggerKind

if TYPE_CHECKING:
    from torch import Tensor

    from benchbd.contract.images import ImageSet
    from benchbd.contract.trigger import Trigger
    from benchbd.nets.encoder import Encoder


@dataclass(frozen=True, eq=False)
class Target:
    """One goal of an attacker: triggered inputs of a downstream task are classified as one class.

    label, name: the target class in the task's label space.
    trigger: the trigger to bind to it, of one of the kinds in the attack's ``binds``.
    references: uint8 (r, 3, H, W), images that the attacker believes to be of the target class.
    images: downstream TRAIN images of the target class, which data poisoning stamps; never test images.
    """

    label: int
    name: str
    trigger: Trigger
    references: Tensor
    images: ImageSet


@dataclass(frozen=True, eq=False)
class AttackerKnowledge:
    """An attacker's knowledge. It contains no test images.

    encoder: the clean encoder, a copy.
    pretraining, pool, pool_seed: the encoder's training method, images and seed; enough to train again. The pool has
        labels and class names only if the pre-training is ``labelled``.
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
    """The result of an attack: the encoder that is published and, per target, the trigger bound to it.

    The triggers are those of the knowledge: a board fixes the trigger, and the clean floor is measured with the same.
    """

    encoder: Encoder
    triggers: tuple[Trigger, ...]


class Attack(Method):
    """Turns a clean encoder into a backdoored one.

    binds: the kinds of trigger that ``inject`` can bind; by default patch, blend, add and noise, which are data. With
        a trigger of another kind the cell is not applicable. An attack that uses a trigger through
        ``trigger.stamp(images, generator)`` alone can bind ``function`` too.
    retrains: True if ``inject`` runs the knowledge's pre-training again, and so costs as much.
    control_of: for a class of role CONTROL, the name of the attack that it controls. A control is never gated,
        and a board plans it without defenses: only its undefended row is needed.
    """

    axis: ClassVar[str] = "attack"
    binds: ClassVar[tuple[TriggerKind, ...]] = OF_DATA
    retrains: ClassVar[bool] = False
    control_of: ClassVar[str] = ""

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        """The backdoored encoder. NotApplicable if the attack makes no sense for ``knowledge``.

        An attack that replaces images of the pool by stamped ones keeps their rows, ``keep("stamped_rows", rows)``, so
        that records count how many of a defender's clean images are their originals.
        """
        raise NotImplementedError


def check_binds(attack: Attack, triggers: Iterable[Trigger]) -> None:
    """Raise NotApplicable if the attack cannot bind the kind of one of the triggers."""
    for trigger in triggers:
        if trigger.kind not in attack.binds:
            raise NotApplicable(f"it cannot bind a trigger of kind {trigger.kind}; it binds {', '.join(attack.binds)}")
