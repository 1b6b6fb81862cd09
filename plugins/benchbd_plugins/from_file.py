"""from-file: an encoder that exists already takes its place on a board. Nothing is trained.

As a pre-training it is the encoder of every cell, and no attack is known: the table shows what it is worth for the
downstream tasks and, under the board's trigger, an ASR that tells nothing about a backdoor with another trigger. As an
attack it is the encoder that an attacker published, bound to the board's trigger; the floor is the board's own
pre-training, since the clean encoder from which it was made is not known.

`run --encoder FILE` sets the option ``file`` of one of the two.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from benchbd import (
    Attack,
    AttackerKnowledge,
    Backdoor,
    Content,
    DataError,
    Encoder,
    ImageSet,
    NotApplicable,
    Pretraining,
    Role,
    hookimpl,
    note,
)


class Given(BaseModel):
    """The field and the file that pre-training and attack share. DataError if the file holds no encoder."""

    model_config = ConfigDict(frozen=True)

    file: Content | None = Field(
        None, description="file of the encoder, as `benchbd import` and `Encoder.save` write it; necessary"
    )
    _arch: str = PrivateAttr("")

    @model_validator(mode="after")
    def _holds_an_encoder(self) -> Self:
        if self.file is not None:
            self._arch = Encoder.load(self.file).arch
        return self

    def encoder(self, device: torch.device) -> Encoder:
        """The encoder in the file, in eval mode."""
        if self.file is None:
            raise NotApplicable("it has no file: give it one, as `benchbd run --encoder FILE` does")
        return Encoder.load(self.file, device)

    def forwards(self, images: int) -> int:
        return 0


class FilePretraining(Given, Pretraining):
    """Takes the encoder from a file, whatever the images and the seed; its trigger, if it has one, is not known."""

    name = "from-file"
    paper = "an encoder of another origin"
    version = "1"
    role = Role.FILE

    @property
    def architecture(self) -> str:
        """That of the encoder in the file. DataError without a file."""
        if not self._arch:
            raise DataError("pre-training from-file has no file: give it one, as `benchbd run --encoder FILE` does")
        return self._arch

    def pretrain(self, images: ImageSet, seed: int) -> Encoder:
        note(
            "remarks",
            [
                "from-file: the encoder is that of a file, not trained on the images of this board; tables count it as "
                "clean, but ASR is that of the board's trigger, and a backdoor may have another"
            ],
        )
        return self.encoder(images.device)


class FileAttack(Given, Attack):
    """Publishes the encoder of a file, as if an attacker had bound the board's trigger to it."""

    name = "from-file"
    paper = "an encoder of another origin"
    version = "1"
    role = Role.FILE
    binds = ("patch", "blend", "add", "noise", "function")

    def inject(self, knowledge: AttackerKnowledge) -> Backdoor:
        """NotApplicable without a file, or if its encoder has another architecture than the clean one."""
        encoder, clean = self.encoder(knowledge.encoder.device), knowledge.encoder.arch
        if encoder.arch != clean:
            raise NotApplicable(
                f"the encoder in the file is a {encoder.arch}, and the pre-training {knowledge.pretraining.name} gives "
                f"the floor as {clean}: set the architecture of the pre-training to {encoder.arch}"
            )
        note(
            "remarks",
            [
                "from-file: the encoder is that of a file; the floor is the board's own pre-training, not the encoder "
                "from which this one was made"
            ],
        )
        return Backdoor(encoder, tuple(target.trigger for target in knowledge.targets))


@hookimpl
def benchbd_pretrainings() -> list[type[Pretraining]]:
    return [FilePretraining]


@hookimpl
def benchbd_attacks() -> list[type[Attack]]:
    return [FileAttack]
