"""NAD: fine-tune a copy of the encoder, then train the encoder's spatial attention towards that of the copy.

The copy is the teacher: fine-tuning alone weakens a backdoor, and the copy's attention on clean images is a cleaner
signal than the encoder's. The student is the given encoder, trained by the same contrastive
loss plus an attention distance per stage, measured on the first view.

The paper's: the two phases, attention as the sum over channels of squares (p = 2), every stage compared. The paper is
about classifiers: the contrastive loss replaces its cross-entropy. Adam 1e-3, batches of 128, 500 epochs and the
weight 1000 per stage are from the code of a distillation study by MIMIC's authors (arXiv 2403.03846), of which this
is one setting. All released code takes the mean square (``at_form=mse``), the paper the norm (``l2``).

Ours: the teacher's length, which no source gives for encoders, and its batch, which is the student's; both phases draw
the same views in the same order, so that ``beta=0`` is FT, bit for bit.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator

from benchbd import (
    AttentionForm,
    DefenderKnowledge,
    Distiller,
    Encoder,
    FineTuning,
    Mitigation,
    Tunable,
    UsageError,
    hookimpl,
    note,
)


class NAD(FineTuning, Mitigation):
    """Trains the encoder to have the attention maps of a fine-tuned copy; the last epoch of both is kept."""

    name = "nad"
    paper = "Li et al., Neural Attention Distillation, ICLR 2021; for encoders a baseline of MIMIC, settings are ours"
    version = "1"
    tunable = {"beta": Tunable(1e2, 1e4, log=True), "lr": Tunable(1e-4, 1e-2, log=True)}

    epochs: int = Field(
        500, ge=0, le=1_000_000, description="number of passes over the images; each drops its last, smaller batch"
    )
    steps: int | None = Field(
        None, ge=0, le=1_000_000_000, description="total number of optimiser steps of the student; overrides epochs"
    )
    batch: int = Field(128, ge=2, le=1_000_000, description="number of images per step, for teacher and student")
    beta: float | tuple[float, ...] = Field(
        1000.0, description="weight of the attention distance, >= 0; one number for all stages, or one per stage"
    )
    at_form: AttentionForm = Field(
        "mse", description="distance of attention maps; mse: mean square (released code); l2: norm (paper)"
    )
    teacher_epochs: int = Field(500, ge=0, le=1_000_000, description="number of passes of the teacher over the images")
    teacher_steps: int | None = Field(
        None,
        ge=0,
        le=1_000_000_000,
        description="total number of optimiser steps of the teacher; overrides teacher_epochs; null: steps, if given",
    )

    @field_validator("beta")
    @classmethod
    def _not_negative(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        weights = value if isinstance(value, tuple) else (value,)
        if not all(0 <= weight <= 1e9 for weight in weights):
            raise ValueError("weights must be at least 0 and at most 1e9")
        return value

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """``encoder``, trained in place. UsageError if ``beta`` does not fit its stages; NotApplicable without head,
        unless ``head_steps`` trains one, for the teacher too."""
        images, seed = knowledge.images, knowledge.seed
        beta = self.stage_weights(encoder)
        schooling = self.schooling()
        steps = schooling.total_steps(len(images))
        whole = schooling.model_copy(update={"steps": None}).total_steps(len(images))
        note("remarks", [f"nad: the teacher was fine-tuned for {steps:,} of {whole:,} steps"] if steps < whole else [])

        with self.headed(encoder, images, seed):
            teacher = schooling.fit(encoder.copy(), images, seed).frozen()
            distiller = Distiller(
                teacher, attention=beta, temperature=self.temperature, bn_views=self.bn_views, form=self.at_form
            )
            return self.fit(encoder, images, seed, loss=distiller)

    def forwards(self, images: int) -> int | None:
        teacher = 6 * self.schooling().total_steps(images)  # two views, each forward 1 and backward 2
        student = 7 * self.total_steps(images)  # the same, and one view through the teacher
        return self.head_forwards(images) + min(self.batch, images) * (teacher + student)

    def schooling(self) -> Self:
        """The teacher's fine-tuning: FT under this method's settings, but with its own length.

        ``teacher_steps`` if given, else ``steps`` if given, so that a budget limits both, else ``teacher_epochs``.
        """
        steps = self.steps if self.teacher_steps is None else self.teacher_steps
        return self.model_copy(update={"epochs": self.teacher_epochs, "steps": steps})

    def stage_weights(self, encoder: Encoder) -> dict[str, float]:
        """beta by stage name; UsageError if the numbers of weights and stages differ."""
        stages = encoder.stages
        weights = self.beta if isinstance(self.beta, tuple) else (self.beta,) * len(stages)
        if len(weights) != len(stages):
            raise UsageError(
                f"nad: beta has {len(weights)} weights and {encoder.arch} has {len(stages)} stages; give one number "
                "for all, or one a stage"
            )
        return dict(zip(stages, weights, strict=True))


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [NAD]
