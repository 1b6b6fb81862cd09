"""FT: fine-tuning, the simplest repair. Continue self-supervised training on the defender's clean images and hope.

No source gives FT's settings for encoders: MIMIC says only that its baselines were adapted. The defaults here are those
of the script that its repository offers for fine-tuning (Adam 1e-3, batch 256, 1000 epochs); that script cannot run as
released. Part of FT's effect is that BatchNorm statistics, frozen by BadEncoder, are estimated anew: ``bn="eval"``
leaves them alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from benchbd import ContrastiveMethod, DefenderKnowledge, Encoder, Mitigation, hookimpl


class FT(ContrastiveMethod, Mitigation):
    """Contrastive fine-tuning of the whole encoder and its head on the clean images; the last epoch is kept."""

    name = "ft"
    paper = "baseline of MIMIC (Han et al., IEEE TIFS 2025), Section V-A; settings are our adaptation"
    version = "1"

    bn: Literal["train", "eval"] = Field("train", description="whether BatchNorm re-estimates its statistics")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        return self.fit(encoder, knowledge.images, knowledge.seed, bn=self.bn)


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [FT]
