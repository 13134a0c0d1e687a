"""Documented commands: the tools' own parsers take them, and the config has the keys they set.

Read are the pages, but for those of results, which tell of what was run, and the docstrings of
configs and tools. A command is a line that shows one, with those that a backslash joins to it, or
`tools/x.py ...` in a sentence. Brackets are what may be left out, "..." is what was left out.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from omegaconf import DictConfig

from predet.d2 import LazyConfig
from predet.engine import train_net
from predet.engine.config import find_config, list_keys, override_config

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r"(?:[\w' -]+: )?tools/(\w+)\.py +(.+)")
INLINE = re.compile(r"`tools/(\w+)\.py +([^`]+)`")
OPTIONAL = re.compile(r"(?<!\S)\[(.+?)\](?=\s|$|[A-Z])")
CONFIG = re.compile(r"configs/(?!common/)[\w/]+\.py")
# A key that a sentence sets, or names in a code span of its own.
KEY = re.compile(
    r"(?<![\w/.=$-])((?:model|data|dataloader|train|optimizer|lr_multiplier|comparison|controls"
    r"|given|updates)(?:\.\w+)+)(?==\S|`)"
)
FILES = (".html", ".json", ".log", ".md", ".py", ".yaml")
# Whose keys a page may name without naming the config.
USUAL = tuple(
    f"configs/{name}_folder.py"
    for name in ("deformable_detr", "selftrain", "detreg", "image_domain")
)


class Command(NamedTuple):
    tool: str
    words: tuple[str, ...]
    whole: bool  # False: something is left out


def documents() -> dict[str, str]:
    """What is read, by its path."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("projects/*/README.md")]
    texts = {page: page.read_text() for page in pages if not page.name.startswith("results")}
    for path in (*(ROOT / "configs").rglob("*.py"), *(ROOT / "tools").glob("*.py")):
        texts[path] = ast.get_docstring(ast.parse(path.read_text())) or ""
    return {
        path.relative_to(ROOT).as_posix(): texts[path]
        for path in sorted(texts)
        if "tools/" in texts[path] or KEY.search(texts[path])
    }


def commands(text: str) -> Iterator[Command]:
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        shown = LINE.fullmatch(line.strip())
        inline = [(tool, f"{rest} ...") for tool, rest in INLINE.findall(line)]
        for tool, rest in [shown.groups()] if shown else inline:
            rest = rest.partition(" # ")[0].rstrip().removesuffix(", then")
            words = shlex.split(OPTIONAL.sub(r"\1", rest))
            kept = ("1" if word == "N" else word for word in words if word != "key=value")
            yield Command(tool, tuple(w for w in kept if w != "..."), whole="..." not in words)


@functools.cache
def config(path: str) -> DictConfig:
    """As it is shipped; not to be changed. Its calls are checked in test_configs.py, not here."""
    return LazyConfig.load(str(find_config(ROOT / path)))


@functools.cache
def keys(path: str) -> frozenset[str]:
    return frozenset(list_keys(config(path)))


@functools.cache
def tool_of(name: str) -> ModuleType:
    path = ROOT / "tools" / f"{name}.py"
    if not path.is_file():
        raise ValueError(f"there is no tools/{name}.py")
    spec = importlib.util.spec_from_file_location(f"tools_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module if hasattr(module, "make_parser") else train_net


def make_strict(parser: argparse.ArgumentParser, *, whole: bool) -> None:
    """No abbreviations; of a command that is not whole nothing is required."""

    def refuse(message: str) -> None:
        raise ValueError(message)

    parser.error, parser.allow_abbrev = refuse, False
    for action in parser._actions:
        action.required = action.required and whole
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                make_strict(command, whole=whole)


def check_command(command: Command) -> None:
    """Parse it as its tool does and make its changes to the config.

    Raises:
        ValueError: no such tool or config, or an option or key that it does not have.
    """
    module = tool_of(command.tool)
    parser = module.make_parser()
    make_strict(parser, whole=command.whole)
    if "--help" in command.words:
        return
    mixed = "parse_intermixed_args(" in Path(module.__file__).read_text()
    args = (parser.parse_intermixed_args if mixed else parser.parse_args)(list(command.words))
    for word in filter(CONFIG.fullmatch, command.words):
        config(word)
    files = getattr(args, "config_file", None) or []
    for file in filter(CONFIG.fullmatch, [files] if isinstance(files, str) else files):
        cfg = override_config(copy.deepcopy(config(file)), args.opts)
        budget = getattr(args, "budget", None)
        if budget is not None and budget not in cfg.budgets:
            raise ValueError(f"{file} has no budget '{budget}', it has {list(cfg.budgets)}")


def check_keys(name: str, text: str) -> None:
    """Each key is one of the config itself or of one that the text names.

    Raises:
        ValueError: none of them has it.
    """
    places = [name] if CONFIG.fullmatch(name) else [*USUAL]
    places = list(dict.fromkeys([*places, *CONFIG.findall(text)]))
    of_commands = {word.partition("=")[0] for found in commands(text) for word in found.words}
    for key in sorted({*KEY.findall(text)} - of_commands):
        if key.endswith(FILES):
            continue
        if not any(key.removesuffix("._target_") in keys(place) for place in places):
            raise ValueError(f"{name}: none of {', '.join(places)} has a key '{key}'")


def check(name: str, text: str) -> None:
    for command in commands(text):
        try:
            check_command(command)
        except ValueError as error:
            shown = f"tools/{command.tool}.py {shlex.join(command.words)}"
            raise ValueError(f"{name}: {shown}: {error}") from error
    check_keys(name, text)


DOCUMENTS = documents()


def test_commands_are_found() -> None:
    found = {name: list(commands(text)) for name, text in DOCUMENTS.items()}
    assert {command.tool for of in found.values() for command in of} == {
        path.stem for path in (ROOT / "tools").glob("*.py")
    }
    assert sum(map(len, found.values())) > 200
    assert len(found["README.md"]) >= 9


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documented_commands_can_be_given(name: str) -> None:
    check(name, DOCUMENTS[name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tools/compare.py --config-file configs/compare_bccd.py --outptu o", "required: --output"),
        ("`tools/self_train.py --cycles N`", "unrecognized arguments: --cycles"),
        ("`tools/self_train.py --round N`", "unrecognized arguments: --round"),
        ("Look: tools/visualise.py batch ...", "there is no tools/visualise.py"),
        ("tools/visualize.py pictures [--output out.png]", "invalid choice: 'pictures'"),
        ("`tools/self_train.py --detector-config configs/mine.py`", "does not exist"),
        (
            "Run: tools/lazyconfig_train_net.py data.train.sauce=D \\\n"
            "    --config-file configs/tiny/detr.py --num-gpus 0    # a comment",
            "unknown key 'data.train.sauce'",
        ),
        (
            "tools/compare.py --config-file configs/compare_bccd.py --output o --budget tpu",
            "has no budget 'tpu'",
        ),
        ("Then: configs/tiny/detr.py with train.reinti=auto", "has a key 'train.reinti'"),
        ("set `model.backbone.dpeth`", "has a key 'model.backbone.dpeth'"),
    ],
)
def test_wrong_ones_are_found(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check("page.md", text)
