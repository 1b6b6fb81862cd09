"""Measure how close together an encoder puts clean images: an example, not a detector."""

from torch.nn.functional import normalize

from benchbd import DefenderKnowledge, Detection, Encoder, Verdict, hookimpl


class Crowded(Detection):
    """The mean cosine similarity of the features of the clean images; above 0.9 the encoder is flagged."""

    name = "crowded"
    paper = "an example; no paper"

    def inspect(self, encoder: Encoder, knowledge: DefenderKnowledge) -> Verdict:
        features = normalize(encoder.extract(knowledge.images.pixels))
        score = float((features @ features.T).mean())
        return Verdict(score, flagged=score > 0.9)


@hookimpl
def benchbd_detections() -> list[type[Detection]]:
    return [Crowded]
