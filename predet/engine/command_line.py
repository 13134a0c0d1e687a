"""What the tools' command lines share."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any


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


class MixedParser(argparse.ArgumentParser):
    """Options may stand between positional arguments, also behind a command.

    argparse has `parse_intermixed_args`, but not for a parser that has commands; so those of its
    commands are of this class.
    """

    _plain = False

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._plain:  # called by `parse_known_intermixed_args`
            return super().parse_known_args(args, namespace)
        self._plain = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._plain = False


def add_test_time_size(add: Any) -> None:
    """`--short-side` and `--max-side`, by a parser's `add_argument`, for `inference_mapper`."""
    add("--short-side", type=int, help="pixels, instead of the config's test-time resizing")
    add("--max-side", type=int, help="pixels, with --short-side")
