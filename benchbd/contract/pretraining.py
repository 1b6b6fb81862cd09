"""The axis of pre-training methods, and the architectures that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator

from benchbd.base.errors import PluginError, UnknownNameError, UsageError, shown
from benchbd.contract.method import Method, ask
from benchbd.nets.encoder import ARCHITECTURES, Encoder, architecture

if TYPE_CHECKING:
    from benchbd.contract.images import ImageSet


def _ready(name: str) -> str:
    try:
        architecture(name)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return name


Architecture = Annotated[str, AfterValidator(_ready), """The name of an architecture: the type of an option."""]


def architecture_of(method: Pretraining) -> str:
    """The value of ``method.architecture``; PluginError if it raises or names none."""
    told = ask(method, "architecture", lambda: method.architecture)
    try:
        architecture(told if isinstance(told, str) else "")
    except UnknownNameError:
        known = ", ".join(sorted(ARCHITECTURES))
        raise PluginError(f"architecture must be one of {known}, not {shown(told)}") from None
    return str(told)


def check_size(arch: str, pixels: int) -> None:
    """Raise UsageError if an architecture does not take images of this many pixels."""
    if (size := architecture(arch).image_size) not in (None, pixels):
        raise UsageError(f"{arch} takes images of {size} pixels, the board's have {pixels}: set image_size = {size}")


class Pretraining(Method):
    """Training of an encoder from random weights.

    labelled: True if it learns from labels: its pool, and the attacker's, keeps labels and class names. Such a method
        cannot use a data set with unlabelled images.
    """

    axis: ClassVar[str] = "pretraining"
    labelled: ClassVar[bool] = False

    @property
    def architecture(self) -> str:
        """Name of the architecture that ``pretrain`` returns; a control like ``scratch`` uses nothing else of it."""
        raise NotImplementedError

    def pretrain(self, images: ImageSet, seed: int) -> Encoder:
        """An encoder trained on ``images``, on their device, in eval mode. If ``labelled``, the images have labels."""
        raise NotImplementedError
