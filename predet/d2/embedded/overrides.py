"""`key=value` on the command line: the grammar, and setting the value in a config.

Contract: `LazyConfig.apply_overrides` of Detectron2, where Hydra reads the values. The part of
that grammar that means something here is read alike: numbers, booleans, `null`, quoted text, lists
`[1, 2]`, mappings `{a: 1}`, `${...}` references. Three things are ours: `None` is none (there it
is the text "None"), unquoted text may hold any character, and a comma outside brackets is refused
(there it silently stores a sweep).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

_KEY = re.compile(r"[\w\-]+(\.[\w\-]+|\[\d+\])*")
_INTEGER = re.compile(r"[+-]?(0|[1-9](_?\d)*)")
_DIGITS = r"\d(_?\d)*"
_POINT = rf"({_DIGITS}\.({_DIGITS})?|\.{_DIGITS})"
_EXPONENT = rf"[eE][+-]?{_DIGITS}"
_FLOAT = re.compile(rf"[+-]?({_POINT}({_EXPONENT})?|{_DIGITS}{_EXPONENT})")
_WORDS = {
    "null": None,
    "true": True,
    "false": False,
    **{sign + word: float(sign + word) for sign in ("", "+", "-") for word in ("inf", "nan")},
}
_ESCAPABLE = tuple("\\()[]{}:=, \t")


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Set values in `cfg`, in place and in order. Returns `cfg`.

    Mappings are merged into what is there, everything else replaces it. Whether new keys are
    allowed is up to the config's struct flag.

    Raises:
        ValueError: an override is not `key=value`, or its value cannot be read.
        KeyError: the key goes through something that is not a group of keys.
    """
    for override in overrides:
        key, value = parse_override(override)
        _check_path(cfg, key, override)
        OmegaConf.update(cfg, key, value, merge=True)
    return cfg


def parse_override(override: str) -> tuple[str, Any]:
    """Split `a.b=value`; a leading `+` or `++`, as Hydra has it for new keys, is accepted.

    Raises:
        ValueError: not `key=value`, or the value cannot be read.
    """
    key, equals, text = override.partition("=")
    key = key.strip().removeprefix("+").removeprefix("+")
    if not equals or not _KEY.fullmatch(key):
        hint = " (options come before the overrides)" if override.startswith("-") else ""
        raise ValueError(f"override {override!r}: expected key=value{hint}")
    try:
        return key, parse_value(text)
    except ValueError as error:
        raise ValueError(f"override {override!r}: {error}") from None


def parse_value(text: str) -> Any:
    """Read one value: a number, boolean, none, text, list or mapping.

    Raises:
        ValueError: brackets or quotes are not closed, or something follows the value.
    """
    reader = _Reader(text.strip())
    value = reader.value(stop=",") if reader.text else ""
    if reader.position < len(reader.text):
        rest = reader.text[reader.position :].strip()
        raise ValueError(
            f"unexpected {rest!r} after the value; write [a,b] for a list, 'a,b' for text"
        )
    return value


def _check_path(cfg: DictConfig, key: str, override: str) -> None:
    parts = key.split(".")
    for length in range(1, len(parts)):
        prefix = ".".join(parts[:length])
        group = OmegaConf.select(cfg, prefix, default=None)
        if group is None:
            return
        if not OmegaConf.is_config(group):
            kind = type(group).__name__
            raise KeyError(
                f"override {override!r}: {prefix} is of type {kind}, not a group of keys"
            )


class _Reader:
    """A value read from left to right; `position` is the next character."""

    def __init__(self, text: str):
        self.text = text
        self.position = 0

    def value(self, *, stop: str) -> Any:
        """One value; unquoted text ends before any character of `stop`."""
        self._skip_space()
        start = self._peek()
        if start == "[":
            return self._list()
        if start == "{":
            return self._mapping()
        if start and start in "'\"":
            return self._quoted()
        return self._bare(stop)

    def _list(self) -> list:
        self.position += 1
        items: list = []
        if self._accept("]"):
            return items
        while True:
            items.append(self.value(stop=",]"))
            if self._accept("]"):
                return items
            self._expect(",", "]")

    def _mapping(self) -> dict:
        self.position += 1
        entries: dict = {}
        if self._accept("}"):
            return entries
        while True:
            key = self._key()
            self._expect(":", ":")
            entries[key] = self.value(stop=",}")
            if self._accept("}"):
                return entries
            self._expect(",", "}")

    def _key(self) -> Any:
        self._skip_space()
        start = self._peek()
        return self._quoted() if start and start in "'\"" else self._bare(":,}")

    def _quoted(self) -> str:
        """Text in quotes. Backslashes matter only in front of the quote: pairs of them stand for
        one, an odd one makes the quote part of the text."""
        quote = self.text[self.position]
        run = re.compile(rf"(\\*){quote}")
        parts = []
        start = self.position + 1
        while match := run.search(self.text, start):
            slashes = len(match.group(1))
            parts.append(self.text[start : match.start()] + "\\" * (slashes // 2))
            start = match.end()
            if slashes % 2 == 0:
                self.position = start
                return "".join(parts)
            parts.append(quote)
        raise ValueError(f"the quote {quote} is not closed")

    def _bare(self, stop: str) -> Any:
        start = self.position
        characters = []
        literal = False  # escapes and references make it text
        while (character := self._peek()) and character not in stop:
            if self.text.startswith("${", self.position):
                characters.append(self._reference())
                literal = True
                continue
            if character == "\\" and self._peek(1) in _ESCAPABLE:
                self.position += 1
                character = self._peek()
                literal = True
            characters.append(character)
            self.position += 1
        if start == self.position:
            found = self._peek() or "the end"
            raise ValueError(f"expected a value, found {found!r}")
        text = "".join(characters).strip()
        return text if literal else _scalar(text)

    def _reference(self) -> str:
        """`${...}`, taken as it is up to the brace that closes it."""
        start = self.position
        depth = 0
        while character := self._peek():
            self.position += 1
            depth += (character == "{") - (character == "}")
            if character == "}" and depth == 0:
                return self.text[start : self.position]
        raise ValueError("the reference ${ is not closed")

    def _peek(self, ahead: int = 0) -> str:
        return self.text[self.position + ahead : self.position + ahead + 1]

    def _skip_space(self) -> None:
        while self._peek().isspace():
            self.position += 1

    def _accept(self, character: str) -> bool:
        self._skip_space()
        if self._peek() != character:
            return False
        self.position += 1
        return True

    def _expect(self, character: str, closing: str) -> None:
        if not self._accept(character):
            found = self._peek() or "the end"
            wanted = character if character == closing else f"{character} or {closing}"
            raise ValueError(f"expected {wanted}, found {found!r}")


def _scalar(text: str) -> Any:
    if text == "None":  # but "none" is text, the name of an option as often as not
        return None
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
