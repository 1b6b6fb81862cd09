"""FT: fine-tuning, the simplest repair. Continue self-supervised training on the defender's clean images.

No source gives FT's settings for encoders: MIMIC states only that its baselines were adapted. The defaults are those
of the fine-tuning script in MIMIC's repository (Adam 1e-3, batch 256, 1000 epochs), which cannot run as
released. Part of FT's effect is that it estimates the BatchNorm statistics, which BadEncoder froze, anew;
``bn="eval"`` keeps them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchbd import DefenderKnowledge, Encoder, FineTuning, Mitigation, Role, Tunable, hookimpl


class FT(FineTuning, Mitigation):
    """Fine-tunes encoder and head on the clean images with the contrastive loss; the last epoch is kept."""

    name = "ft"
    paper = "baseline of MIMIC (Han et al., IEEE TIFS 2025), Section V-A; settings are our adaptation"
    version = "1"
    role = Role.FT
    tunable = {"lr": Tunable(1e-4, 1e-2, log=True)}

    bn: Literal["train", "eval"] = Field(
        "train", description="BatchNorm in fine-tuning; train: statistics of the batch; eval: the running ones"
    )

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """``encoder``, trained in place. NotApplicable without head, unless ``head_steps`` trains one."""
        with self.headed(encoder, knowledge.images, knowledge.seed):
            return self.fit(encoder, knowledge.images, knowledge.seed, bn=self.bn)


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [FT]
