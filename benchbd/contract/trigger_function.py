"""The axis of trigger functions: triggers that are code, such as a warp or a change that depends on the image."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from benchbd.base.errors import PluginError, asked, shown
from benchbd.base.isolation import asking
from benchbd.contract.method import Method


class TriggerFunction(Method):
    """A trigger that a plugin computes. A board names it by kind and name: ``[trigger] kind = "function"``,
    ``function = "NAME"``; its options are set like those of any method. Name, version and options are its identity."""

    axis: ClassVar[str] = "trigger"

    def stamp(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The stamped images, uint8 (N, 3, H, W), of ``images``, uint8 (N, 3, H, W) of any N >= 1, on their device.

        generator: the source of all random numbers; it may be on another device. An attack stamps every batch that
        it trains on; the harness stamps all test images, on a CPU 16 MB of them at a time, with one generator.
        """
        raise NotImplementedError


def stamped_by(function: TriggerFunction, images: Tensor, generator: torch.Generator) -> Tensor:
    """The result of a copy of ``function`` for a copy of ``images``, in isolation.

    PluginError if it raises, or returns anything but uint8 images of the same shape and device.
    """
    who = f"trigger {function.name}"
    with asking(who, type(function)):
        made = asked(f"{who}: stamp()", function.model_copy(deep=True).stamp, images.clone(), generator)
    if not isinstance(made, Tensor) or (made.dtype, made.shape) != (images.dtype, images.shape):
        told = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else shown(made)
        raise PluginError(f"{who}: stamp() must return uint8 {tuple(images.shape)}, not {told}")
    if made.device != images.device:
        raise PluginError(f"{who}: stamp() must return images on {images.device}, as it was given, not {made.device}")
    return made
