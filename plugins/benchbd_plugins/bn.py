"""bn: the control that changes BatchNorm statistics alone. It shows what part of a repair is only their estimation.

An attack may freeze the statistics (BadEncoder does), and every fine-tuning estimates them anew, so a repair can lower
ASR without learning anything. The running mean and variance of every BatchNorm of f are computed again in one pass
over the defender's clean images, without augmentation, as downstream images come: one forward per image, no gradient.

The pass sees the images in batches of nearly equal size, in random order, and the statistics are the plain averages of
the batches' means and unbiased variances (PyTorch's cumulative average, ``momentum=None``). For the first BatchNorm
that mean is the mean over all images; its variance leaves out the variance of the batches' means, a share of about 1 /
``batch``. Deeper layers see inputs that the batch's own statistics normalised. Fewer than 2 ``batch`` images are one
batch, and then all statistics are exact.
"""

from __future__ import annotations

import torch
from pydantic import Field

from benchbd import DefenderKnowledge, Encoder, Mitigation, NotApplicable, Role, UsageError, hookimpl, stream


class BN(Mitigation):
    """Computes BatchNorm statistics again on the clean images, in one pass; no weight changes."""

    name = "bn"
    paper = "control; not in the papers"
    version = "1"
    role = Role.BN

    batch: int = Field(500, ge=2, le=1_000_000, description="least number of images per batch, if there are as many")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """``encoder`` with other statistics of f; the head's stay. NotApplicable without BatchNorm, UsageError for one
        image, which has no variance."""
        norms = encoder.norms().values()
        if not norms:
            raise NotApplicable(f"bn computes BatchNorm statistics; {encoder.arch} has no BatchNorm")
        images = knowledge.images
        if len(images) < 2:
            raise UsageError(f"bn needs at least 2 clean images, not {len(images)}")
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.collect(encoder, knowledge)
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        return encoder

    @torch.no_grad()
    def collect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> None:
        """Pass every image once. Only BatchNorms of f are in training mode; ``encoder`` ends in eval mode."""
        pixels = knowledge.images.pixels
        order = torch.randperm(len(pixels), generator=stream(knowledge.seed, "order")).to(pixels.device)
        encoder.eval()
        for norm in encoder.norms().values():
            norm.train()
        for rows in order.tensor_split(max(1, len(pixels) // self.batch)):
            encoder(pixels[rows].float() / 255)
        encoder.eval()

    def forwards(self, images: int) -> int | None:
        return images


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [BN]
