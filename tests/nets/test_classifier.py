"""A classifier as an object: heads made by hand, and heads of evaluators."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.knn import KNN
from benchbd_plugins.linear import Linear
from benchbd_plugins.mlp import MLP
from safetensors.torch import save_file
from torch import nn

from benchbd import Classifier, Encoder, Evaluator, Head, Mitigation, NotApplicable
from benchbd.base.errors import BenchbdError, DataError, PluginError
from benchbd.nets.rebuild import rebuild
from benchbd.registry import Registry, load_registry
from benchbd.stages.encoders import product_of
from benchbd.testing import toy_defender, toy_encoder, toy_images, toy_probe

from ..chance import seeded
from ..test_conformance import quick


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


# ------------------------------------------------------------------------------------------- an encoder's classifier


def supervised(seed: int = 0) -> Encoder:
    """A toy encoder with a classifier of three classes, one hidden layer and statistics."""
    draws = torch.Generator().manual_seed(seed)
    weights = [(torch.randn(o, i, generator=draws), torch.randn(o, generator=draws)) for i, o in ((64, 8), (8, 3))]
    statistics = {"mean": torch.randn(64, generator=draws), "std": torch.rand(64, generator=draws) + 0.5}
    encoder = toy_encoder()
    encoder.classifier = Head.of(weights, normalized=True, scale=3, classes=("red", "green", "blue"), **statistics)
    return encoder


def logits(encoder: Encoder) -> torch.Tensor:
    assert encoder.classifier is not None
    with torch.no_grad():
        return encoder.classifier(encoder.extract(toy_images(6).pixels))


def test_an_encoder_takes_its_classifier_along(tmp_path: Path) -> None:
    encoder = supervised()
    encoder.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == encoder.to_bytes()
    twins = {
        "copy": encoder.copy(),
        "frozen": encoder.frozen(),
        "load": Encoder.load(tmp_path / "a"),
        "from_bytes": Encoder.from_bytes(encoder.to_bytes()),
        "rebuild": rebuild(encoder, "w16", "a test"),
    }
    for name, twin in twins.items():
        assert isinstance(twin.classifier, Head), name
        assert (twin.classifier.normalized, twin.classifier.classes) == (True, ("red", "green", "blue")), name
        assert torch.equal(logits(twin), logits(encoder)), name
        assert twin.to_bytes() == encoder.to_bytes(), name
        with torch.no_grad():
            twin.classifier.layers[0].weight.zero_()  # its own
    assert float(logits(encoder).std()) > 0
    assert not any(parameter.requires_grad for parameter in twins["frozen"].parameters())
    assert sum(p.numel() for p in encoder.backbone()) == sum(p.numel() for p in toy_encoder().backbone())
    assert encoder.untrained(1).classifier is None


def test_a_file_without_a_classifier_is_as_it_was(tmp_path: Path) -> None:
    encoder = toy_encoder()
    plain = encoder.to_bytes()
    with_one = supervised()
    assert plain[8 : 8 + int.from_bytes(plain[:8], "little")].startswith(
        rb'{"__metadata__":{"benchbd":"{\"arch\": \"w16\", \"head\": true}"}'
    )
    with_one.classifier = None
    assert with_one.to_bytes() == plain
    assert Encoder.from_bytes(plain).classifier is None


def test_a_file_whose_classifier_is_none_is_one_line(tmp_path: Path) -> None:
    encoder = supervised()
    told = json.loads(encoder._metadata()["benchbd"])
    assert told["classifier"] == {"sizes": [64, 8, 3], "normalized": True, "classes": ["red", "green", "blue"]}
    for changes in (
        {"sizes": [64, 8, 4]},
        {"sizes": [64, 8]},
        {"sizes": []},
        {"sizes": "ab"},
        {"classes": ["red"]},
        {"classes": [1, 2, 3]},
        {"odd": 1},
    ):
        description = {**told, "classifier": {**told["classifier"], **changes}}
        save_file(encoder.tensors(), tmp_path / "a", metadata={"benchbd": json.dumps(description)})
        with pytest.raises(DataError, match=r"a: not an encoder written by benchbd \(.+\); see `benchbd import`$"):
            Encoder.load(tmp_path / "a")


def _linear(encoder: Encoder) -> None:
    encoder.classifier = nn.Linear(64, 3)  # type: ignore[assignment]


def _of_32(encoder: Encoder) -> None:
    encoder.classifier = Head((32, 3))


def _flat(encoder: Encoder) -> None:
    assert encoder.classifier is not None
    encoder.classifier.std[3] = 0


def _shrunk(encoder: Encoder) -> None:
    assert encoder.classifier is not None
    encoder.classifier.scale.neg_()


def _numbered(encoder: Encoder) -> None:
    assert encoder.classifier is not None
    encoder.classifier.classes = (0, 1, 2)  # type: ignore[assignment]


def _with_more(encoder: Encoder) -> None:
    assert encoder.classifier is not None
    encoder.classifier.register_buffer("extra", torch.ones(1))


def _lost(encoder: Encoder) -> None:
    assert encoder.classifier is not None
    with torch.no_grad():
        encoder.classifier.layers[1].bias[0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (_linear, "a test must return an encoder whose classifier is a Head, not Linear"),
        (_of_32, r"its classifier.mean is \(32,\), not \(64,\)"),
        (_flat, "must return an encoder whose classifier.std is above 0, not 0$"),
        (_shrunk, "must return an encoder whose classifier.scale is above 0, not -3$"),
        (_numbered, "the classes of a head are names"),
        (_with_more, "it has a tensor classifier.extra, of which the architecture knows nothing"),
        (_lost, "the weights are not finite: classifier.layers.1.bias has NaN"),
    ],
)
def test_what_is_no_classifier_is_one_line(spoil: Callable[[Encoder], None], wrong: str) -> None:
    encoder = supervised()
    spoil(encoder)
    with pytest.raises(BenchbdError, match=wrong) as caught:
        rebuild(encoder, "w16", "a test")
    assert "\n" not in str(caught.value)


def test_a_classifier_that_is_more_than_its_weights_is_refused() -> None:
    encoder = supervised()
    assert encoder.classifier is not None
    encoder.classifier.register_forward_hook(lambda module, given, out: out.flip(1))
    with pytest.raises(PluginError, match="an encoder that is its weights alone"):
        product_of(encoder, "w16", toy_images(8).pixels, "a test")


DEFENSES = [name for name in load_registry().names("defense") if name != "scratch"]


@pytest.mark.parametrize("name", DEFENSES)
@pytest.mark.fixed_draw("what of a classifier is trained, and no outcome of training")
def test_repairs_keep_the_classifier_or_drop_it(name: str, registry: Registry) -> None:
    defense = quick(registry.get("defense", name))
    assert isinstance(defense, Mitigation)
    repaired = defense.repair(supervised().copy(), toy_defender())
    if name in ("medic", "mimic"):  # their students start from nothing
        assert repaired.classifier is None
        return
    assert repaired.classifier is not None
    assert repaired.classifier.classes == ("red", "green", "blue")
    given = supervised().classifier
    assert given is not None
    for own, found in zip(given.state_dict().values(), repaired.classifier.state_dict().values(), strict=True):
        assert torch.equal(own, found)
