"""scratch: the control that every repair must beat. The same clean images, random weights, no teacher.

A defense that ends no better than this got nothing from the encoder it was given.
"""

from __future__ import annotations

from benchbd import ContrastiveMethod, DefenderKnowledge, Encoder, Mitigation, Role, hookimpl


class Scratch(ContrastiveMethod, Mitigation):
    """Contrastive training of a fresh encoder of the same architecture on the clean images alone.

    Nothing of the encoder but its architecture is used (its normalisation is that of the clean images), so one run
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
