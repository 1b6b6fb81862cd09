"""scratch: the control that every repair must beat. It trains on the same clean images from random weights.

A defense that is no better than scratch gained nothing from the given encoder.
"""

from __future__ import annotations

from benchbd import ContrastiveMethod, DefenderKnowledge, Encoder, Mitigation, Role, hookimpl


class Scratch(ContrastiveMethod, Mitigation):
    """Trains a new encoder of the same architecture on the clean images alone, with the contrastive loss.

    It uses only the encoder's architecture (the normalisation is that of the clean images), so one run
    serves every attack.
    """

    name = "scratch"
    paper = "control; not in the papers"
    version = "1"
    role = Role.SCRATCH
    uses_weights = False

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        mean, std = knowledge.images.normalization()
        fresh = Encoder.seeded(encoder.arch, mean, std, seed=knowledge.seed, device=encoder.device)
        return self.fit(fresh, knowledge.images, knowledge.seed)


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [Scratch]
