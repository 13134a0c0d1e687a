"""What the tools' command lines share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def errors_in_one_line(*others: type[Exception]) -> Iterator[None]:
    """What a person can change, raised in here, ends the program with `error: ` and its message.

    That is a ValueError, what the system refuses (rights, a full disk, a file that is not there),
    and `others`.
    """
    try:
        yield
    except (ValueError, OSError, *others) as error:
        sys.exit(f"error: {error}")
