"""How the native extension was built."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from predet.ops import extension

ROOT = Path(__file__).resolve().parents[2]
NVCC = os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")

needs_native = pytest.mark.skipif(not extension.available(), reason="predet._C is not built")


@needs_native
@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.skipif(os.environ.get("PREDET_CUDA") == "0", reason="built without CUDA by wish")
def test_cuda_sources_are_compiled_where_nvcc_is():
    """A build that lost its CUDA kernels warns, which nobody reads in the log of a pipeline."""
    assert extension.build_info()["cuda_architectures"] == "80;90+PTX"
    names = {path.parent.name for path in ROOT.glob("csrc/*/cuda.cu")}
    assert {"ms_deform_attn", "hungarian"} <= names


@needs_native
def test_both_sides_know_the_same_dtypes_and_interface():
    table = (ROOT / "csrc/common/numeric.h").read_text()
    codes = dict(re.findall(r"(\w+) = (\d)", re.search(r"enum class DType.*?\}", table)[0]))
    ours = {
        str(dtype).removeprefix("torch."): code for dtype, code in extension.DTYPE_CODES.items()
    }
    assert {name: int(code) for name, code in codes.items()} == ours
    interface = re.search(r"kInterface = (\d+)", (ROOT / "csrc/bindings.cpp").read_text())[1]
    assert int(interface) == extension.INTERFACE


@needs_native
def test_an_extension_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(extension.native(), "INTERFACE", extension.INTERFACE + 1)
    with pytest.raises(ImportError, match="build it again"):
        extension._load()


def test_what_cannot_run_natively_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(extension, "_announced", set())
    cpu = torch.device("cpu")
    for _ in range(2):
        assert not extension.supports("ms_deform_attn", cpu, torch.complex64)
    assert len(caplog.records) == 1
    assert "runs its PyTorch reference" in caplog.text
