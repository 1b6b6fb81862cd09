"""Measure how close together an encoder puts clean images: an example, not a detector.

The paper's: nothing, there is none. The released code's: nothing. Ours: the score and its threshold.
"""

from pydantic import Field
from torch.nn.functional import normalize

from benchbd import DefenderKnowledge, Detection, Encoder, Verdict, hookimpl


class Crowded(Detection):
    """The mean cosine similarity of the features of the clean images; above ``threshold`` it is flagged."""

    name = "crowded"
    paper = "an example; no paper"

    threshold: float = Field(0.9, ge=-1, le=1, description="mean cosine above which an encoder is flagged")

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        """The verdict on ``encoder``, from its features of the clean images alone."""
        features = normalize(encoder.extract(knowledge.images.pixels))
        score = float((features @ features.T).mean())
        return Verdict(score, flagged=score > self.threshold)

    def forwards(self, images: int) -> int | None:
        return images


@hookimpl
def benchbd_detections() -> list[type[Detection]]:
    return [Crowded]
