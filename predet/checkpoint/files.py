"""One checkpoint file: written beside and renamed, read without running code.

A checkpoint is a dict that holds tensors, str, int, float, bool, None, dicts and lists and nothing
else, so that `torch.load(weights_only=True)` reads it. A reader never sees half a file: the bytes
go to a temporary file in the same folder, are flushed to the disk, and take the name in one step.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

_ZIP_MAGIC = b"PK\x03\x04"
_TEMPORARY_SUFFIX = ".partial"


class DamagedCheckpointError(ValueError):
    """The file is truncated, altered or no checkpoint at all."""


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path`; the file that was there stays whole until the new one is.

    Tuples become lists and tensors are detached; a view is saved without the rest of its storage.

    Raises:
        TypeError: `state` holds something that is not plain data; the message names where.
        OSError: the disk refuses (full, read-only); the old file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = write_beside(path, state)
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_beside(path: Path, state: Mapping[str, Any]) -> Path:
    """Write `state` completely to a temporary file in the folder of `path` and return its name."""
    plain = _plain(state, "state")
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            torch.save(plain, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        refusal = _refusal_of_the_disk(error)
        if refusal is not None:
            raise refusal from error
        raise
    return temporary


def _refusal_of_the_disk(error: BaseException) -> OSError | None:
    """The OSError behind another one: `torch.save` hides it while it closes its archive."""
    behind = error.__context__
    while isinstance(error, RuntimeError) and behind is not None:
        if isinstance(behind, OSError):
            return behind
        behind = behind.__context__
    return None


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """Delete what a killed process left half written in `folder`."""
    for leftover in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def read_checkpoint(path: str | Path, *, with_arguments: bool = False) -> dict[str, Any]:
    """Read a checkpoint (`.safetensors`, or anything that `torch.save` wrote) onto the CPU.

    A safetensors file is returned as `{"model": tensors, "provenance": its metadata}`.

    Args:
        path: of the file.
        with_arguments: also read files with the arguments of a training script, which are an
            `argparse.Namespace` of plain data; for files of other projects.

    Raises:
        DamagedCheckpointError: a ValueError: truncated, altered, or not a checkpoint.
        ValueError: the file is missing, or holds Python objects; loading those could run code.
        OSError, RuntimeError: the machine refuses (rights, a lost disk, no memory).
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"checkpoint {path} is a folder, expected a file{_suggest(path)}")
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist{_suggest(path.parent)}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    _verify_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pickle protocols; errors tell enough
            with torch.serialization.safe_globals([argparse.Namespace] if with_arguments else []):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and not _is_pickle(path):
            raise DamagedCheckpointError(
                f"checkpoint {path} is damaged or no checkpoint: it begins with no known mark"
            ) from None
        raise ValueError(_refusal(path, str(error))) from None
    except (RuntimeError, EOFError, KeyError, OSError, ValueError, IndexError) as error:
        if _is_of_the_machine(error):
            raise
        raise DamagedCheckpointError(
            f"checkpoint {path} cannot be read: it is truncated, damaged or no checkpoint "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no data'})"
        ) from error
    if not isinstance(state, dict):
        raise DamagedCheckpointError(
            f"checkpoint {path}: expected a dict, got {type(state).__name__}"
        )
    return state


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return {"model": safetensors.torch.load_file(path), "provenance": dict(metadata)}
    except (safetensors.SafetensorError, OSError) as error:
        if _is_of_the_machine(error):
            raise
        raise DamagedCheckpointError(
            f"checkpoint {path} is truncated, damaged or no safetensors file ({error})"
        ) from error


def _verify_zip(path: Path) -> None:
    """Compare the checksums of a zip container: `torch.load` alone accepts altered bytes."""
    with open(path, "rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            return  # the format before zip, or no checkpoint: torch.load says which
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        if _is_of_the_machine(error):
            raise
        raise DamagedCheckpointError(
            f"checkpoint {path} is truncated or damaged ({error})"
        ) from error
    if damaged is not None:
        raise DamagedCheckpointError(
            f"checkpoint {path} is damaged: the checksum of its part {damaged} does not fit"
        )


def _is_of_the_machine(error: Exception) -> bool:
    """Whether memory, a disk or rights are at fault: the file may be whole."""
    if isinstance(error, OSError):  # seeking before the beginning of a cut file is an invalid one
        return error.errno not in (None, errno.EINVAL)
    return "allocate memory" in str(error)


def _is_pickle(path: Path) -> bool:
    """Whether the file is a zip container (its parts are verified) or begins like a pickle."""
    with open(path, "rb") as file:
        start = file.read(len(_ZIP_MAGIC))
    return start == _ZIP_MAGIC or start[:1] == b"\x80"


def _refusal(path: Path, message: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    what = f"the Python object '{found.group(1)}'" if found else "pickled Python objects"
    if found and found.group(1) == "argparse.Namespace":
        return (
            f"checkpoint {path} refused: it holds {what}, the arguments of another project's "
            "training script: tools/convert_checkpoint.py takes the model out of such files."
        )
    return (
        f"checkpoint {path} refused: it holds {what}, and loading that could run code of whoever "
        "made the file. predet reads tensors, numbers, text, dicts and lists only. If you trust "
        "its source, open it where it was made and save the tensors alone, "
        "torch.save({'model': model.state_dict()}, path), or write a .safetensors file."
    )


def _suggest(folder: Path) -> str:
    found = sorted([*folder.glob("*.pth"), *folder.glob("checkpoints/*.pth")])
    return f"; checkpoints near it: {', '.join(map(str, found[:5]))}" if found else ""


def _plain(value: Any, where: str) -> Any:
    """A copy of `value` made of plain data only; `where` names the place in messages."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Tensor):
        tensor = value.detach()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{where} has the key {key!r}, expected str or int")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(
        f"{where} is of type {type(value).__module__}.{type(value).__qualname__}; a checkpoint "
        "holds tensors, str, int, float, bool, None, dicts and lists only"
    )
