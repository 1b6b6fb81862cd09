"""Modes and switches of the process that code may change; each function here returns one that restores its own."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import numpy as np
import torch.nn.functional
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

log = logging.getLogger("benchbd")

Restore = Callable[[], list[str]]
"""Restores what changed and returns its names."""

Switch = tuple[Callable[[], Any], Callable[[Any], Any]]
"""The functions that read and write a setting."""


# Modes ---------------------------------------------------------------------------------------------------------------


def function_modes() -> Restore:
    """Modes that intercept every call of torch; the default device is one."""
    device, before = torch.get_default_device(), _get_current_function_mode_stack()

    def leave(keep: int) -> None:
        while len(stack := _get_current_function_mode_stack()) > keep and stack[-1] not in before:
            torch._C._pop_torch_function_stack()

    def restore() -> list[str]:
        if _get_current_function_mode_stack() == before:
            return []
        leave(keep=1)  # a default device is the lowest mode, and has to be unset
        torch.set_default_device(None)
        leave(keep=0)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        return ["the default device or a function mode"]

    return restore


def dispatch_modes() -> Restore:
    """Modes that intercept every operator."""
    before = _get_current_dispatch_mode_stack()

    def restore() -> list[str]:
        left = [mode for mode in reversed(_get_current_dispatch_mode_stack()) if mode not in before]
        for mode in left:
            TorchDispatchMode.__exit__(mode, None, None, None)
        return ["a dispatch mode"] if left else []

    return restore


def saved_tensors() -> Restore:
    """Hooks on the tensors that autograd saves for the backward; such hooks can change gradients."""
    autograd: Any = torch._C._autograd
    before = autograd._top_saved_tensors_default_hooks(False)

    def restore() -> list[str]:
        changed = False
        while (top := autograd._top_saved_tensors_default_hooks(False)) is not None and top != before:
            autograd._pop_saved_tensors_default_hooks()
            changed = True
        return ["hooks on saved tensors"] if changed else []

    return restore


# Switches ------------------------------------------------------------------------------------------------------------


def switches() -> Restore:
    """Every setting that can be read and written; they are restored in the order of the list."""
    before = {name: read() for name, (read, _) in _SWITCHES.items()}

    def restore() -> list[str]:
        changed = []
        for name, (read, write) in _SWITCHES.items():
            if read() != before[name]:
                write(before[name])
                changed.append(name)
        return changed

    return restore


def _attribute(owner: object, name: str) -> Switch:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _autocast(device: str) -> Switch:
    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)), write


def _working_directory() -> str | None:
    """The working directory; None if it no longer exists."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _change_directory(value: str | None) -> None:
    with suppress(OSError):
        if value is not None:
            os.chdir(value)


def _set_environment(value: dict[str, str]) -> None:
    for name in os.environ.keys() - value.keys():
        del os.environ[name]
    os.environ.update(value)


def _set_filters(value: list[Any]) -> None:
    warnings.resetwarnings()  # what is cached for other filters is forgotten
    cast(list[Any], warnings.filters).extend(value)


_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _set_handlers(value: list[Any]) -> None:
    with suppress(ValueError):  # only the main thread may set handlers
        for number, handler in zip(_ENDING, value, strict=True):
            if handler is not None:  # Python cannot set a handler that was not set from Python
                signal.signal(number, handler)


def _flushes_denormals() -> bool:
    """Whether the CPU treats denormal numbers as 0: torch can set this but has no function to read it."""
    return bool(torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1 == 0)


_BACKENDS: Any = torch.backends  # type stubs do not declare all of its parts

_PRODUCTS = (
    _BACKENDS,
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
)


def _precision() -> tuple[Any, ...]:
    """Precision of float32 products, by both of torch's interfaces. None for the old one if only the new one was used,
    because it then cannot be read."""
    try:
        old = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        old = None
    return old, *(owner.fp32_precision for owner in _PRODUCTS)


def _set_precision(value: tuple[Any, ...]) -> None:
    old, *new = value
    if old is not None:  # first, because the old interface overwrites the new one
        torch.set_float32_matmul_precision(old[0])
        torch.backends.cudnn.allow_tf32 = old[1]
    for owner, precision in zip(_PRODUCTS, new, strict=True):
        if owner.fp32_precision != precision:
            owner.fp32_precision = precision


_SWITCHES: dict[str, Switch] = {
    "inference mode": (torch.is_inference_mode_enabled, lambda value: torch.inference_mode(value).__enter__()),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "anomaly mode": (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
    ),
    "autocast on the CPU": _autocast("cpu"),
    "autocast on CUDA": _autocast("cuda"),
    "the autocast cache": (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    "flush_denormal": (_flushes_denormals, torch.set_flush_denormal),
    "mkldnn.enabled": _attribute(torch.backends.mkldnn, "enabled"),
    "mkldnn.deterministic": _attribute(torch.backends.mkldnn, "deterministic"),
    "opt_einsum": _attribute(torch.backends.opt_einsum, "enabled"),
    "cudnn.enabled": _attribute(torch.backends.cudnn, "enabled"),
    "cudnn.benchmark": _attribute(torch.backends.cudnn, "benchmark"),
    "cudnn.deterministic": _attribute(torch.backends.cudnn, "deterministic"),
    "fp16 reductions": _attribute(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    "bf16 reductions": _attribute(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    "fill_uninitialized_memory": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    "TF32 and the precision of products": (_precision, _set_precision),
    "sys.stdout": _attribute(sys, "stdout"),
    "sys.stderr": _attribute(sys, "stderr"),
    "the environment": (lambda: dict(os.environ), _set_environment),
    "the filters of warnings": (lambda: list(warnings.filters), _set_filters),
    "the working directory": (_working_directory, _change_directory),
    "the handlers of signals": (lambda: [signal.getsignal(number) for number in _ENDING], _set_handlers),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "NumPy's treatment of errors": (np.geterr, lambda value: np.seterr(**value)),
    "logging": (lambda: logging.root.manager.disable, logging.disable),
    "the logger of benchbd": _attribute(log, "disabled"),
}
