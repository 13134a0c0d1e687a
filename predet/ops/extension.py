"""The native extension `predet._C`: whether it is there, what it can do, how it was built.

The extension knows nothing of torch: it is given addresses and sizes. So it is built once, in
pip's isolated build environment, and fits whatever torch is installed later.
"""

from __future__ import annotations

import logging
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# What csrc/bindings.cpp calls kInterface. They differ when sources were updated but not rebuilt.
INTERFACE = 2

# csrc/common/numeric.h has the same table.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}

# Compiled for these and newer ones; older GPUs run the references.
OLDEST_CUDA_CAPABILITY = (8, 0)

_OPERATORS = frozenset({"dropout", "matching", "ms_deform_attn", "selective_search"})

_NOT_BUILT = (
    "the native extension is not built (install a C++17 compiler and repeat `pip install -v`, "
    "which says what is missing)"
)

_announced: set[str] = set()


def _load() -> ModuleType | None:
    try:
        module = import_module("predet._C")
    except ModuleNotFoundError:  # only "it is not there": a broken one raises ImportError
        return None
    found = getattr(module, "INTERFACE", None)
    if found != INTERFACE:
        raise ImportError(
            f"predet._C was built from other sources (interface {found}, expected {INTERFACE}); "
            "build it again: pip install -e ."
        )
    return module


_C = _load()


@torch.compiler.assume_constant_result
def supports(operator: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the extension runs `operator` for values of this device and dtype.

    Where it does not, the caller runs its PyTorch reference; why is logged, once for each reason.
    """
    if (operator, device, dtype) in _supported:
        return True
    reason = _missing(operator, device, dtype)
    if reason is None:
        _supported.add((operator, device, dtype))
        return True
    if reason not in _announced:
        _announced.add(reason)
        logger.warning("%s runs its PyTorch reference: %s", operator, reason)
    return False


_supported: set[tuple[str, torch.device, torch.dtype]] = set()


def _missing(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the native operator cannot be used; None: it can."""
    if _C is None:
        return _NOT_BUILT
    if operator not in _OPERATORS:
        return f"the native extension has no {operator}"
    if dtype not in DTYPE_CODES:
        return f"the native extension does not know {dtype}"
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"the native extension does not run on {device.type}"
    if not _C.cuda_architectures:
        return "the native extension was built without CUDA"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CUDA_CAPABILITY:
        return f"the GPU has compute capability {capability}, less than {OLDEST_CUDA_CAPABILITY}"
    if _C.cuda_device_count() == 0:
        return "the CUDA driver is too old for the toolkit that the extension was built with"
    return None


def available(operator: str | None = None) -> bool:
    """Whether the extension is built and has `operator`, for those that know no dtypes or devices.

    Where it does not, the caller does without; why is logged, once. Without an operator: whether
    the extension is built at all.
    """
    if operator is None:
        return _C is not None
    if _C is not None and operator in _OPERATORS:
        return True
    if operator not in _announced:
        _announced.add(operator)
        logger.warning(
            "%s does without the native extension: %s",
            operator,
            _NOT_BUILT if _C is None else f"it has no {operator}",
        )
    return False


def native() -> ModuleType:
    """`predet._C`, for operators that `supports` has said yes to.

    Raises:
        RuntimeError: it is not built.
    """
    if _C is None:
        raise RuntimeError("predet._C is not built; call the operators of predet.ops instead")
    return _C


def place(tensor: Tensor) -> tuple[int, int, int]:
    """Where to work on `tensor`: device index (-1: CPU), CUDA stream, number of CPU threads."""
    if tensor.is_cuda:
        index = tensor.get_device()
        return index, torch.cuda.current_stream(index).cuda_stream, 1
    return -1, 0, torch.get_num_threads()


def build_info() -> dict[str, str]:
    """How the extension was built and what it uses here; for logs, benchmarks and bug reports."""
    if _C is None:
        return {"native": "not built"}
    return {
        "native": "built",
        "compiler": _C.compiler,
        "instruction_sets": ", ".join(_C.instruction_sets()),
        "instruction_set": _C.instruction_set(),
        "cuda_architectures": _C.cuda_architectures or "none",
    }
