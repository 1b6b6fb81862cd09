"""Isolation: changes of plugin code to torch and the process are undone; replaced names are reported."""

from __future__ import annotations

import copy
import logging
import logging.config
import math
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import benchbd_plugins.knn
import benchbd_plugins.mlp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import benchbd.records.counts
from benchbd import Encoder, Pretraining, Role
from benchbd.base.isolation import asking, isolated, restoring, seeded
from benchbd.contract.axes import AXIS
from benchbd.contract.method import build, forwards_of, identity_of, shortened_of
from benchbd.contract.pretraining import architecture_of
from benchbd.registry import Registry

BACKENDS: Any = torch.backends


def the_state() -> dict[str, object]:
    """Every setting that a result may depend on, read anew."""
    names = ("", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.matmul", "mkldnn.conv")
    owners = dict.fromkeys(names, BACKENDS)
    for name in filter(None, names):
        for part in name.split("."):
            owners[name] = getattr(owners[name], part)
    return {
        "made": (torch.ones(1).dtype, torch.ones(1).device, torch.ones(1).is_inference()),
        "grad": torch.ones(1, requires_grad=True).mul(2).requires_grad,
        "threads": torch.get_num_threads(),
        "products": {name: owner.fp32_precision for name, owner in owners.items()},
        "matmul": (torch.get_float32_matmul_precision(), BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32),
        "cudnn": (BACKENDS.cudnn.enabled, BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic),
        "mkldnn": (BACKENDS.mkldnn.enabled, BACKENDS.mkldnn.deterministic),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "gradient": gradient(),
        "einsum": torch.backends.opt_einsum.enabled,
        "product": nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype,
        "denormal": float(torch.tensor(1e-40) * 1),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "warnings": list(warnings.filters),
        "process": (os.getcwd(), sys.stdout, sys.stderr, sys.getrecursionlimit(), np.geterr()),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "logging": (logging.root.manager.disable, logging.getLogger("benchbd").disabled),
        "random": (random.getstate(), str(np.random.get_state()), torch.random.get_rng_state().tolist()),
    }


def gradient() -> object:
    """The gradient of a square, and the hooks on the tensors saved for it."""
    x = torch.full((1,), 3.0, dtype=torch.float32, device="cpu", requires_grad=True)
    product = x * x
    if product.requires_grad:
        product.backward()
    return None if x.grad is None else float(x.grad), torch._C._autograd._top_saved_tensors_default_hooks(False)


class Zeros(TorchFunctionMode):
    """Every call gives a zero."""

    def __torch_function__(self, *_: object) -> Tensor:
        return Tensor()


class NoOperators(TorchDispatchMode):
    """No operator works."""

    def __torch_dispatch__(self, *_: object) -> Tensor:
        raise RuntimeError("no operator")


def new_precision() -> None:
    BACKENDS.fp32_precision = "tf32"
    BACKENDS.cudnn.conv.fp32_precision = "ieee"


def old_precision() -> None:
    torch.set_float32_matmul_precision("medium")
    BACKENDS.cudnn.allow_tf32 = False


def two_devices() -> None:
    torch.set_default_device("meta")
    torch.device("meta").__enter__()
    Zeros().__enter__()


def generators() -> None:
    random.random(), np.random.rand(3), torch.rand(3)


LEFT: list[Callable[[], object]] = [
    generators,
    lambda: torch.set_default_dtype(torch.float64),
    lambda: torch.set_default_device("meta"),
    lambda: torch.device("meta").__enter__(),
    two_devices,
    lambda: torch.set_grad_enabled(False),
    lambda: torch.inference_mode().__enter__(),
    lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    lambda: setattr(BACKENDS.mkldnn, "enabled", False),
    lambda: setattr(BACKENDS.mkldnn, "deterministic", True),
    lambda: setattr(BACKENDS.cudnn, "benchmark", True),
    lambda: setattr(BACKENDS.cudnn, "deterministic", True),
    lambda: setattr(BACKENDS.cudnn, "enabled", False),
    lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    new_precision,
    old_precision,
    lambda: torch.set_deterministic_debug_mode("warn"),
    lambda: torch.autograd.set_detect_anomaly(True),
    lambda: torch.set_autocast_enabled("cpu", True),
    lambda: torch.set_autocast_enabled("cuda", True),
    lambda: torch.set_flush_denormal(True),
    lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
    lambda: os.chdir("/"),
    lambda: os.environ.update(HOME="/nowhere", NEW="x"),
    lambda: os.environ.clear(),
    lambda: warnings.simplefilter("ignore"),
    warnings.resetwarnings,
    lambda: setattr(sys, "stdout", None),
    lambda: setattr(sys, "stderr", None),
    lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 7),
    lambda: np.seterr(all="raise"),
    lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    lambda: logging.disable(logging.CRITICAL),
    lambda: logging.config.dictConfig({"version": 1}),  # by default it silences every logger
    lambda: Zeros().__enter__(),
    lambda: NoOperators().__enter__(),
    lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x * 0, lambda x: x).__enter__(),
    lambda: [torch.autograd.graph.save_on_cpu().__enter__() for _ in range(2)],
    lambda: setattr(torch.backends.opt_einsum, "enabled", False),
]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("leave", LEFT, ids=range(len(LEFT)))
@pytest.mark.parametrize("raises", [False, True])
def test_a_setting_is_put_back(leave: Callable[[], object], raises: bool, caplog: pytest.LogCaptureFixture) -> None:
    before = the_state()
    try:
        with isolated("defense vandal"):
            leave()
            if raises:
                raise RuntimeError
    except RuntimeError:
        pass
    assert the_state() == before
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_all_settings_at_once_are_put_back_and_told() -> None:
    before = the_state()
    with restoring() as left:
        for leave in LEFT[:3] + LEFT[5:]:  # one default device: torch itself cannot leave two
            leave()
    assert the_state() == before
    assert {"the default dtype", "grad mode", "the number of threads", "mkldnn.enabled"} <= set(left.settings)
    assert {"the environment", "the filters of warnings", "the working directory"} <= set(left.settings)
    assert left.generators == [
        "the global generator",
        "the global generator of NumPy",
        "the global generator of random",
    ]


def test_a_warning_is_shown_again_once_its_filter_is_gone() -> None:
    def warn() -> None:
        warnings.warn("seen", UserWarning, stacklevel=1)

    with restoring():
        warnings.simplefilter("ignore")
        warn()
    with pytest.warns(UserWarning, match="^seen$"):
        warn()


def patched(owner: object, name: str) -> Callable[[], object]:
    return lambda: setattr(owner, name, lambda *_, **__: torch.zeros(1))


@pytest.mark.parametrize(
    ("leave", "name"),
    [
        (patched(F, "cross_entropy"), "torch.nn.functional.cross_entropy"),
        (lambda: setattr(F, "cross_entropy", F.l1_loss), "torch.nn.functional.cross_entropy"),
        (lambda: setattr(F, "cross_entropy", torch.no_grad()(F.cross_entropy)), "torch.nn.functional.cross_entropy"),
        (lambda: delattr(F, "relu"), "torch.nn.functional.relu"),
        (patched(torch, "cat"), "torch.cat"),
        (patched(torch.Tensor, "backward"), "torch.Tensor.backward"),
        (patched(torch.Tensor, "add"), "torch.Tensor.add"),  # inherited: the name is new in the class
        (patched(nn.Linear, "forward"), "torch.nn.modules.linear.Linear.forward"),
        (patched(nn.modules.batchnorm._BatchNorm, "forward"), "torch.nn.modules.batchnorm._BatchNorm.forward"),
        (patched(nn.modules.linear, "F"), "torch.nn.modules.linear.F"),
        (patched(torch.optim.lr_scheduler.LambdaLR, "get_lr"), "torch.optim.lr_scheduler.LambdaLR.get_lr"),
        (patched(math, "log"), "math.log"),
        (patched(np, "sqrt"), "numpy.sqrt"),
        (patched(benchbd_plugins.mlp, "forward"), "benchbd_plugins.mlp.forward"),
        (patched(benchbd_plugins.knn.KNN, "evaluate"), "benchbd_plugins.knn.KNN.evaluate"),
        (patched(torch.optim.Adam, "step"), "torch.optim.adam.Adam.step"),
        (patched(Encoder, "forward"), "benchbd.nets.encoder.Encoder.forward"),
        (lambda: setattr(benchbd.records.counts, "count", None), "benchbd.records.counts.count"),
        (
            lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
            "torch.nn.modules.module._global_forward_hooks",
        ),
        (
            lambda: register_optimizer_step_pre_hook(lambda *_: None),
            "torch.optim.optimizer._global_optimizer_pre_hooks",
        ),
    ],
)
def test_what_was_replaced_is_put_back_and_named(
    leave: Callable[[], object], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = F.cross_entropy, torch.Tensor.add, nn.Linear.forward, Encoder.forward, benchbd.records.counts.count
    with isolated("evaluator vandal"):
        leave()
    assert caplog.messages == [f"evaluator vandal left {name} changed; it was put back"]
    assert (
        F.cross_entropy,
        torch.Tensor.add,
        nn.Linear.forward,
        Encoder.forward,
        benchbd.records.counts.count,
    ) == before
    assert not nn.modules.module._global_forward_hooks
    assert float(F.relu(torch.tensor(-1.0))) == 0


@pytest.mark.fixed_draw("it asks what torch wraps, not what an optimizer finds")
def test_what_torch_wraps_at_first_use_stays(caplog: pytest.LogCaptureFixture) -> None:
    class Fresh(torch.optim.SGD):
        """An optimizer class without any instance."""

    class Net(nn.Module):
        """A class of the plugin's own may change."""

    with isolated("attack plain"):
        weight = torch.ones(2, requires_grad=True)
        optimizer = Fresh([weight], 0.1)
        weight.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        Net.note = 1  # type: ignore[attr-defined]
        torch.Tensor.new_name = 1  # type: ignore[attr-defined]
    del torch.Tensor.new_name  # type: ignore[attr-defined]
    assert not caplog.records


def test_what_python_writes_to_a_class_stays(caplog: pytest.LogCaptureFixture) -> None:
    """Copies and annotations leave names in classes that hide those of the base."""
    copy.deepcopy(nn.Linear(1, 1)), nn.Linear.__annotations__
    with isolated("attack plain"):
        attention = copy.deepcopy(nn.MultiheadAttention(2, 1))
        assert attention.out_proj.__class__.__annotations__ is not None
    assert not caplog.records


@pytest.fixture(autouse=True)
def warnings_only(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, "benchbd"):
        yield


def test_global_random_numbers_of_a_block_are_its_own() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    before = the_state()["random"]
    with seeded(2**40 + 7):
        first = drawn()
    assert the_state()["random"] == before
    with seeded(2**40 + 7):
        assert drawn() == first
    with seeded(8):
        assert all(a != b for a, b in zip(drawn(), first, strict=True))


@pytest.mark.parametrize("axis", AXIS)
def test_what_our_own_methods_are_asked_changes_nothing(axis: str, registry: Registry) -> None:
    """So a plan may ask them without comparing everything before and after each answer."""
    for name in registry.names(axis):
        cls = registry.get(axis, name)
        assert isinstance(asking(name, cls), nullcontext)
        with restoring() as left:
            method = build(cls, {}, name)
            identity_of(method)
            forwards_of(method, 100), shortened_of(method, 100)
            if isinstance(method, Pretraining) and cls.role is not Role.FILE:  # its file has the architecture
                architecture_of(method)
        assert (left.names, left.settings) == ([], [])


def test_a_class_of_a_stranger_is_asked_in_isolation() -> None:
    for module in (__name__, "benchbd_plugins.knn", "benchbd.none", "benchbdx"):
        stranger = type("Stranger", (), {"__module__": module})
        assert not isinstance(asking("stranger", stranger), nullcontext)


@pytest.mark.fixed_draw("nothing is drawn that it looks at")
def test_the_first_optimizer_of_a_process_is_no_change() -> None:
    """torch wraps ``step`` in the class of the first optimizer, which AdamW inherits: no plugin replaced anything."""
    code = """
import logging, torch
from torch import nn
from benchbd.base.isolation import isolated
logging.basicConfig()
with isolated("somebody"):
    torch.optim.AdamW(nn.Linear(1, 1).parameters())
with isolated("somebody"):
    torch.optim.AdamW.step = torch.optim.SGD.step
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("somebody left torch.optim.adamw.AdamW.step changed") == 1
