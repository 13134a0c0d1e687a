"""Names of splits."""

from __future__ import annotations

from collections.abc import Sequence

_SAME = {"val": "valid", "valid": "val"}


def choose_split(split: str | None, splits: Sequence[str], *, where: str) -> str:
    """The one of `splits` that is meant; "val" and "valid" are the same, None is the only one.

    Args:
        where: What has these splits, for messages.

    Raises:
        ValueError: There is no such split, or None was given and there are several.
    """
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise ValueError(f"{where}: which split? expected one of {list(splits)}, got split=None")
    for name in (split, _SAME.get(split)):
        if name in splits:
            return name
    raise ValueError(f"{where}: no split {split!r}: expected one of {list(splits)}")
