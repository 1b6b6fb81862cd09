"""Pull the features of stamped images to that of a reference image: an example of an attack that tunes the encoder.

The paper's: nothing, there is none. The released code's: nothing. Ours: the loss, the mean over the stamped and the
clean images of minus the cosine, as BadEncoder has it too.
"""

import torch
from pydantic import Field
from torch.nn.functional import cosine_similarity

from benchbd import Attack, AttackerKnowledge, Backdoor, Steps, batch_indices, hookimpl, stream


class Pull(Attack):
    """Tune the encoder until stamped images have the reference's feature and clean images keep their own."""

    name = "pull"
    paper = "an example; no paper"

    steps: int = Field(200, ge=1, le=100_000, description="optimiser steps")
    batch: int = Field(64, ge=2, le=4096, description="images per step")
    lr: float = Field(1e-3, gt=0, le=1, description="Adam's learning rate")

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        """``knowledge.encoder``, tuned in place, with the triggers that it was given."""
        encoder, clean, images = knowledge.encoder, knowledge.encoder.frozen(), knowledge.shadow
        wanted = [clean.extract(target.references).mean(0) for target in knowledge.targets]
        places = stream(knowledge.seed, "places", images.device)
        optimizer = torch.optim.Adam(encoder.backbone(), lr=self.lr)
        batches = batch_indices(len(images), self.batch, self.steps, stream(knowledge.seed, "order"), images.device)
        steps = Steps(self.steps)
        for _, rows in zip(steps, batches, strict=True):
            pixels = images.pixels[rows]
            x = pixels.float() / 255
            loss = -cosine_similarity(encoder(x), clean(x)).mean()
            for target, feature in zip(knowledge.targets, wanted, strict=True):
                stamped = target.trigger.stamp(pixels, places).float() / 255
                loss = loss - cosine_similarity(encoder(stamped), feature[None]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.loss(loss.detach())
        return Backdoor(encoder, tuple(target.trigger for target in knowledge.targets))

    def forwards(self, images: int) -> int | None:
        """For one target: per step and image 3 for each of two forms, and 1 for the clean encoder."""
        return 7 * min(self.batch, images) * self.steps


@hookimpl
def benchbd_attacks() -> list[type[Attack]]:
    return [Pull]
