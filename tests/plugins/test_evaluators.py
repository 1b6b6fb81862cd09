"""The evaluators against naive implementations, and the requirements on all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from benchbd_plugins.knn import KNN
from benchbd_plugins.linear import Linear
from benchbd_plugins.mlp import MLP, dropout_mask, forward, initial, layers_of
from pydantic import ValidationError
from torch import Tensor, nn

from benchbd import Encoder, Evaluator, ImageSet, Predictions, Probe, Trigger, one_thread, stream
from benchbd.base.errors import DataError, Diverged
from benchbd.contract.context import reporting
from benchbd.nets.meter import ForwardMeter
from benchbd.records.counts import count, metrics

from ..chance import seeded

CLASSES = 5
QUICK = {"mlp": MLP(epochs=12, lr=3e-3, scale=10), "linear": Linear(lr=0.1), "knn": KNN(k=15)}

evaluators = pytest.mark.parametrize("evaluator", QUICK.values(), ids=QUICK)


def pictures(n: int, seed: int, *, separable: bool = True) -> ImageSet:
    """8x8 pictures whose colour is their class, or noise, which has no relation to its class."""
    g = torch.Generator().manual_seed(seeded(seed))
    labels = torch.arange(n) % CLASSES
    pixels = torch.randint(0, 256 if not separable else 40, (n, 3, 8, 8), generator=g)
    if separable:
        palette = torch.tensor([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0], [0, 200, 200]])
        pixels = pixels + palette[labels][:, :, None, None]
    return ImageSet(pixels.to(torch.uint8), labels, tuple("abcde"))


def encoder_of(seed: int) -> Encoder:
    return Encoder.seeded("w16", (0.5,) * 3, (0.25,) * 3, seed=seeded(seed), device="cpu").requires_grad_(False).eval()


@pytest.fixture(scope="module")
def probe() -> Probe:
    test = pictures(100, seed=2)
    triggered = Trigger.square(3, image_size=8).stamp(test.pixels)
    return Probe(encoder_of(0), pictures(300, seed=1), test.pixels, triggered, seed=7)


def same(a: Predictions, b: Predictions) -> bool:
    return torch.equal(a.clean, b.clean) and torch.equal(a.triggered, b.triggered)


@evaluators
def test_separable_pictures_are_all_told_apart(evaluator: Evaluator, probe: Probe) -> None:
    predictions = evaluator.evaluate(probe)
    result = count(predictions, torch.arange(100) % CLASSES, target=1)
    assert metrics(result).acc == 100


@evaluators
def test_labels_without_meaning_give_chance(evaluator: Evaluator, probe: Probe) -> None:
    noise, test = pictures(300, seed=3, separable=False), pictures(500, seed=4, separable=False)
    predictions = evaluator.evaluate(replace(probe, train=noise, test=test.pixels, triggered=test.pixels))
    assert test.labels is not None
    counts = count(predictions, test.labels, target=1)
    assert metrics(counts).acc == pytest.approx(100 / CLASSES, abs=6)  # 3.4 standard errors
    assert counts.hits == int((predictions.clean == 1).sum())  # the trigger was empty


@evaluators
def test_the_encoder_is_left_alone(evaluator: Evaluator, probe: Probe) -> None:
    encoder = encoder_of(0).train()
    before = copy.deepcopy(encoder.state_dict())
    draws = torch.get_rng_state()
    evaluator.evaluate(replace(probe, encoder=encoder))
    assert encoder.training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), draws)


def test_one_thread_puts_the_number_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError), one_thread():
            torch.ones(2) @ torch.ones(3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@evaluators
def test_the_order_of_the_test_images_does_not_matter(evaluator: Evaluator, probe: Probe) -> None:
    order = torch.randperm(100, generator=torch.Generator().manual_seed(5))
    shuffled = evaluator.evaluate(replace(probe, test=probe.test[order], triggered=probe.triggered[order]))
    plain = evaluator.evaluate(probe)
    assert same(shuffled, Predictions(plain.clean[order], plain.triggered[order]))


@evaluators
def test_training_images_need_labels(evaluator: Evaluator, probe: Probe) -> None:
    with pytest.raises(DataError, match="labelled"):
        evaluator.evaluate(replace(probe, train=replace(probe.train, labels=None)))


@evaluators
def test_classes_may_be_nameless(evaluator: Evaluator, probe: Probe) -> None:
    assert same(evaluator.evaluate(replace(probe, train=replace(probe.train, classes=()))), evaluator.evaluate(probe))


# ---- mlp ------------------------------------------------------------------------------------------------------------


def company(probe: Probe, n: int) -> list[Probe]:
    """``n`` probes of one task: different encoders, seeds and training images, in noise: predictions are brittle."""
    noise = [pictures(203, seed=10 + i, separable=False) for i in range(2)]
    encoders = [encoder_of(i) for i in range(3)]
    return [replace(probe, encoder=encoders[i % 3], train=noise[i % 2], seed=i) for i in range(n)]


@pytest.mark.parametrize("hidden", [(512, 256), (37, 21)])
def test_predictions_do_not_depend_on_the_company(probe: Probe, hidden: tuple[int, int]) -> None:
    mlp = MLP(epochs=3, lr=3e-3, scale=10, hidden=hidden)
    probes = company(probe, 9)
    alone = [mlp.evaluate(p) for p in probes]
    for size in (2, 9):
        assert all(map(same, mlp.evaluate_together(probes[:size]), alone))
    assert all(map(same, mlp.evaluate_together(probes[::-1]), alone[::-1]))
    features = torch.stack([F.normalize(p.encoder.extract(p.train.pixels), dim=1) for p in probes])
    labels = torch.stack([p.train.labels for p in probes if p.train.labels is not None])
    together = mlp.fit(features, labels, CLASSES, range(9))
    for k in (0, 4, 8):
        single = mlp.fit(features[k : k + 1], labels[k : k + 1], CLASSES, [k])
        for (weights, biases), (weight, bias) in zip(together, single, strict=True):
            assert torch.equal(weights[k], weight[0])
            assert torch.equal(biases[k], bias[0])


def test_probes_of_other_shapes_are_trained_beside_each_other(probe: Probe) -> None:
    mlp = QUICK["mlp"]
    probes = [probe, replace(probe, train=pictures(50, seed=6)), replace(probe, seed=8)]
    assert all(map(same, mlp.evaluate_together(probes), [mlp.evaluate(p) for p in probes]))
    assert mlp.evaluate_together([]) == []


def test_seeds_matter_and_repeat(probe: Probe) -> None:
    mlp = MLP(epochs=1, lr=1e-3)
    first, second = company(probe, 1)[0], replace(company(probe, 1)[0], seed=99)
    assert same(mlp.evaluate(first), mlp.evaluate(first))
    assert not same(mlp.evaluate(first), mlp.evaluate(second))


@pytest.mark.parametrize("evaluator", [MLP(epochs=1), Linear(epochs=1), KNN()], ids=lambda e: e.name)
def test_features_are_extracted_once_per_encoder_and_tensor(
    evaluator: Evaluator, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    extract = Encoder.extract

    def counted(self: Encoder, pixels: Tensor, batch: int = 512) -> Tensor:
        seen.append(len(pixels))
        return extract(self, pixels, batch)

    monkeypatch.setattr(Encoder, "extract", counted)
    evaluator.evaluate_together([replace(probe, seed=i) for i in range(4)])
    assert sorted(seen) == [100, 100, 300]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5, 0.2])
def test_mlp_is_the_plain_loop(shuffle: bool, dropout: float) -> None:
    """nn.Sequential, one head, torch's Adam and cross-entropy, given the same weights, order and dropped units."""
    g = torch.Generator().manual_seed(seeded(0))
    features, labels = torch.randn(2, 150, 20, generator=g), torch.randint(0, 4, (2, 150), generator=g)
    mlp = MLP(epochs=4, lr=1e-3, hidden=(32, 16), dropout=dropout, shuffle=shuffle)
    fitted = mlp.fit(features, labels, 4, [5, 6])

    for member, seed in enumerate((5, 6)):
        net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
        linears = [net[0], net[2], net[4]]
        for linear, (weight, bias) in zip(
            linears, layers_of(initial((20, 32, 16, 4), stream(seed, "init"))[None], (20, 32, 16, 4)), strict=True
        ):
            linear.load_state_dict({"weight": weight[0].T, "bias": bias[0, 0]})
        adam = torch.optim.Adam(net.parameters(), 1e-3)
        order, draws = stream(seed, "order"), stream(seed, "dropout")
        for _ in range(4):
            permutation = torch.randperm(150, generator=order) if shuffle else torch.arange(150)
            for rows in permutation.split(64):
                hidden = net[1](net[0](features[member, rows])) * dropout_mask(len(rows), 32, dropout, draws)
                loss = F.cross_entropy(net[2:](hidden), labels[member, rows])
                adam.zero_grad()
                loss.backward()
                adam.step()
        for linear, (weight, bias) in zip(linears, fitted, strict=True):
            torch.testing.assert_close(weight[member].T, linear.weight.detach(), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(bias[member, 0], linear.bias.detach(), rtol=1e-5, atol=1e-5)
        logits = forward([(w[member, None], b[member, None]) for w, b in fitted], features[member, None])
        torch.testing.assert_close(logits[0], net(features[member]).detach(), rtol=1e-5, atol=1e-5)


def test_initial_weights_are_pytorchs() -> None:
    flat = initial((300, 200, 3), stream(1, "init"))
    assert len(flat) % 16 == 0
    for (weight, bias), fan_in in zip(layers_of(flat[None], (300, 200, 3)), (300, 200), strict=True):
        linear = nn.Linear(fan_in, weight.shape[2])
        assert linear.weight.shape == weight[0].T.shape
        assert float(weight.std()) == pytest.approx(float(linear.weight.detach().std()), rel=0.1)
        assert float(torch.cat([weight.flatten(), bias.flatten()]).abs().max()) <= fan_in**-0.5


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_masks(p: float) -> None:
    mask = dropout_mask(1001, 101, p, stream(1, "dropout"))
    assert mask.shape == (1001, 101)
    assert float((mask == 0).float().mean()) == pytest.approx(p, abs=0.005)
    kept = mask[mask > 0]
    assert torch.equal(kept, torch.full_like(kept, 1 / (1 - p)))


def test_progress_is_reported_and_a_nan_stops_it(probe: Probe) -> None:
    seen: list[tuple[int, int]] = []
    with reporting(lambda step, steps, loss: seen.append((step, steps))):
        MLP(epochs=3, batch=64).evaluate(probe)
    assert seen[-1] == (15, 15)  # 300 images are 5 batches
    with pytest.raises(Diverged, match="NaN"):
        MLP(epochs=1).fit(torch.full((1, 64, 8), torch.nan), torch.zeros(1, 64, dtype=torch.int64), 2, [0])


@pytest.mark.parametrize(
    "make", [lambda: MLP(hidden=()), lambda: MLP(hidden=(0,)), lambda: MLP(dropout=1), lambda: KNN(k=0)]
)
def test_senseless_options_are_refused(make: Callable[[], Evaluator]) -> None:
    with pytest.raises(ValidationError):
        make()


# ---- linear and knn -------------------------------------------------------------------------------------------------


def test_linear_is_the_plain_loop_on_standardised_features(probe: Probe) -> None:
    train = F.normalize(probe.encoder.extract(probe.train.pixels), dim=1)
    test = F.normalize(probe.encoder.extract(probe.test), dim=1)
    for d in range(train.shape[1]):
        mean = sum(train[:, d].tolist()) / len(train)
        variance = sum((v - mean) ** 2 for v in train[:, d].tolist()) / (len(train) - 1)
        train[:, d] = (train[:, d] - mean) / (variance + 1e-5) ** 0.5
        test[:, d] = (test[:, d] - mean) / (variance + 1e-5) ** 0.5
    probed = Linear(epochs=7, milestones=(2, 4), batch=128)
    assert probe.train.labels is not None
    weight, bias = probed.fit(train, probe.train.labels, CLASSES, probe.seed)
    assert torch.equal(F.linear(test, weight, bias).argmax(1), probed.evaluate(probe).clean)

    net = nn.Linear(train.shape[1], CLASSES)
    init, order = stream(probe.seed, "init"), stream(probe.seed, "order")
    bound = train.shape[1] ** -0.5
    with torch.no_grad():
        net.weight.copy_((torch.rand(net.weight.shape, generator=init) * 2 - 1) * bound)
        net.bias.copy_((torch.rand(CLASSES, generator=init) * 2 - 1) * bound)
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    for epoch in range(7):
        sgd.param_groups[0]["lr"] = 0.01 * 0.1 ** sum(epoch >= m for m in (2, 4))
        for rows in torch.randperm(300, generator=order).split(128):
            sgd.zero_grad()
            F.cross_entropy(net(train[rows]), probe.train.labels[rows]).backward()
            sgd.step()
    torch.testing.assert_close(weight, net.weight.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias, net.bias.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 7, 30, 500])
def test_knn_is_the_double_loop(k: int) -> None:
    g = torch.Generator().manual_seed(seeded(k))
    bank, queries = (F.normalize(torch.randn(n, 6, generator=g), dim=1) for n in (60, 40))
    labels = torch.randint(0, 4, (60,), generator=g)
    voted = KNN(k=k).vote(queries, bank, labels, 4)
    for query, answer in zip(queries, voted.tolist(), strict=True):
        cosines = [(float(query @ row), int(label)) for row, label in zip(bank, labels, strict=True)]
        votes = [0.0] * 4
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[label] += 2.718281828459045 ** (cosine / 0.5)
        assert answer == votes.index(max(votes))


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1e4, [1, 1]), (1e-2, [1, 0]), (1e-3, [2, 0]), (1e-40, [2, 0]), (5e-324, [2, 0])],
)
def test_knn_votes_overflow_at_no_temperature(temperature: float, expected: list[int]) -> None:
    """Two images of class 1 outvote the one of class 2 that is nearest, until the temperature is below their distance.

    From 1 / 89 down exp(cosine / temperature) is infinite in float32, from 1 / 710 in float64.
    """
    bank = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.9, 0.11], [0.0, 1.0]]), dim=1)
    queries = F.normalize(torch.tensor([[1.0, 0.01], [0.05, 1.0]]), dim=1)
    voted = KNN(k=4, temperature=temperature).vote(queries, bank, torch.tensor([2, 1, 1, 0]), 3)
    assert voted.tolist() == expected


def test_knn_figures_at_a_low_temperature_are_those_of_the_nearest_image(probe: Probe) -> None:
    assert same(KNN(k=15, temperature=1e-3).evaluate(probe), KNN(k=1).evaluate(probe))


def test_heads_of_one_encoder_share_its_features(probe: Probe) -> None:
    probes = [replace(probe, seed=seed) for seed in (1, 2, 3)]
    for evaluator in (QUICK["linear"], QUICK["mlp"]):
        with ForwardMeter() as meter:
            together = evaluator.evaluate_together(probes)
        assert meter.images == len(probe.train) + len(probe.test) + len(probe.triggered)
        for one, other in zip(map(evaluator.evaluate, probes), together, strict=True):
            assert torch.equal(one.triggered, other.triggered)


def test_linear_needs_two_training_images(probe: Probe) -> None:
    with pytest.raises(DataError, match="linear: features are standardised over at least 2 training images, not 1"):
        Linear().evaluate(replace(probe, train=pictures(1, seed=1)))


@pytest.mark.parametrize("evaluator", [MLP(epochs=1, batch=1000), Linear(epochs=1, batch=1000)])
def test_logits_that_left_the_numbers_are_no_predictions(evaluator: Evaluator, probe: Probe) -> None:
    """One step at a finite loss: its weights overflow, and argmax would take the first NaN."""
    with pytest.raises(Diverged, match=f"^{evaluator.name}: the logits are not finite; lr"):
        evaluator.model_copy(update={"lr": 1e38}).evaluate(probe)
