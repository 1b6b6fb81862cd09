"""A classifier as an object: heads by hand, and heads that evaluators hand out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.knn import KNN
from benchbd_plugins.linear import Linear
from benchbd_plugins.mlp import MLP

from benchbd import Classifier, Evaluator, Head, NotApplicable
from benchbd.base.errors import DataError
from benchbd.testing import toy_encoder, toy_probe

from .chance import seeded


def test_a_head_normalises_shifts_divides_scales_and_has_relu_between_layers() -> None:
    layers = [(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([0.0, 1.0])), (torch.ones(1, 2), torch.zeros(1))]
    head = Head.of(layers, normalized=True, mean=torch.tensor([0.1, 0.0]), std=torch.tensor([0.5, 2.0]), scale=10)
    # (3, 4) -> (.6, .8) -> (.5, .8) -> (1, .4) -> (10, 4); layer 1: (10, -3) -> (10, 0); layer 2: 10
    assert head(torch.tensor([[3.0, 4.0]])).tolist() == [[pytest.approx(10.0, abs=1e-5)]]
    plain = Head.of([(torch.eye(2), torch.zeros(2))], classes=("a", "b"))
    assert plain(torch.tensor([[3.0, -4.0]])).tolist() == [[3, -4]]
    assert plain.sizes == (2, 2)
    assert plain.classes == ("a", "b")


def test_parts_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(DataError, match="do not fit together"):
        Head.of([(torch.eye(2), torch.zeros(3))])
    with pytest.raises(DataError, match="3 logits has 3 classes, not 1"):
        Head((2, 3), classes=("a",))
    with pytest.raises(DataError, match="features of 2, the encoder's have 64"):
        Classifier(toy_encoder(), Head((2, 3)))
    with pytest.raises(DataError, match="sizes"):
        Head.of([])


HEADS = {
    "mlp": MLP(epochs=8, lr=3e-3, scale=10),
    "one hidden layer": MLP(epochs=20, lr=3e-3, scale=10, hidden=(32,)),
    "linear": Linear(lr=0.1),
}


@pytest.mark.parametrize("evaluator", HEADS.values(), ids=HEADS)
def test_the_classifier_predicts_what_the_evaluator_does(evaluator: Evaluator) -> None:
    probe = toy_probe(seeded(1))
    predictions = evaluator.evaluate(probe)
    draws = torch.get_rng_state()
    head = evaluator.head(probe)
    assert torch.equal(torch.get_rng_state(), draws)
    classifier = Classifier(probe.encoder, head)
    for pixels, predicted in ((probe.test, predictions.clean), (probe.triggered, predictions.triggered)):
        assert torch.equal(classifier(pixels.float() / 255).argmax(1), predicted)
    assert head.classes == probe.train.classes
    assert len(predictions.clean.unique()) > 1


@pytest.mark.fixed_draw("nothing is trained")
def test_logits_are_differentiable_in_the_images_alone() -> None:
    classifier = Classifier(toy_encoder(), Head((64, 3), normalized=True))
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    F.cross_entropy(classifier(images), torch.tensor([0, 1])).backward()
    assert images.grad is not None
    assert bool((images.grad != 0).any())


def test_nearest_neighbours_have_no_head() -> None:
    with pytest.raises(NotApplicable, match="knn has no differentiable head"):
        KNN().head(toy_probe())
