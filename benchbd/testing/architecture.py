"""``check_architecture``: the contract of a class of encoders."""

from __future__ import annotations

from unittest.mock import patch

from benchbd.base.pictures import SIZE
from benchbd.nets.encoder import ARCHITECTURES, Encoder
from benchbd.nets.promises import broken_promises
from benchbd.registry import flaw_of_architecture
from benchbd.testing.watch import ContractError, call, promised, require, same


def check_architecture(cls: type[Encoder], *, size: int | None = None) -> None:
    """Raise ContractError if a class of encoders breaks the contract.

    size: height and width of the images, 32 to 224; None: its ``image_size``, else 32.
    Checks: name and docstring; weights depend on the seed alone; features are finite and (N, feature_dim), depend on
    no other image, and are nearly the same under bfloat16; stages, maps, ``convolutions`` and ``norms`` have their
    declared names; gradients reach every map and the images; the mask prunes; copies are independent; a file
    contains all of it.
    """
    require(isinstance(cls, type) and issubclass(cls, Encoder), f"{cls!r} is not a class derived from benchbd.Encoder")
    who = f"{cls.__module__}.{cls.__name__}"
    if flaw := flaw_of_architecture(cls):
        raise ContractError(f"{who}: {flaw}")
    require(bool((cls.__doc__ or "").strip()) and cls.__doc__ != Encoder.__doc__, f"{who}: give it a docstring")

    def build(seed: int) -> Encoder:
        return Encoder.seeded(cls.arch, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), seed=seed, device="cpu").eval()

    with patch.dict(ARCHITECTURES, {cls.arch: cls}), promised(who):
        one, again, other = (call(who, build, seed) for seed in (1, 1, 2))
        require(same(one.tensors(), again.tensors()), f"{who}: the same seed gave other weights")
        require(not same(one.tensors(), other.tensors()), f"{who}: the seed makes no difference")
        if flaw := call(who, next, broken_promises(one, size or cls.image_size or SIZE), ""):
            raise ContractError(f"{who}: {flaw}")
