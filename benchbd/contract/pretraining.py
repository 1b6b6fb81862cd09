"""The axis of pre-training methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from benchbd.base.errors import PluginError, shown
from benchbd.contract.encoder import ARCHITECTURES, Encoder
from benchbd.contract.method import Method, ask

if TYPE_CHECKING:
    from benchbd.contract.images import ImageSet


def architecture_of(method: Pretraining) -> str:
    """What ``method.architecture`` says; PluginError where it raises or names none."""
    told = ask(method, "architecture", lambda: method.architecture)
    if not (isinstance(told, str) and told in ARCHITECTURES):
        raise PluginError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {shown(told)}")
    return told


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
