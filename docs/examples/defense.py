"""Shrink every parameter by the same factor: an example, not a defense.

The paper's: nothing, there is none. The released code's: nothing. Ours: the factor.
"""

from pydantic import Field

from benchbd import DefenderKnowledge, Encoder, Mitigation, hookimpl


class Shrink(Mitigation):
    """Multiply every parameter of the encoder, but not of its head, by a factor."""

    name = "shrink"
    paper = "an example; no paper"

    factor: float = Field(0.9, gt=0, le=1, description="factor of every parameter")

    def repair(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Encoder:
        """``encoder``, changed in place."""
        for parameter in encoder.backbone():
            parameter.data.mul_(self.factor)
        return encoder

    def forwards(self, images: int) -> int | None:
        return 0


@hookimpl
def benchbd_defenses() -> list[type[Mitigation]]:
    return [Shrink]
