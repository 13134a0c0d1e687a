"""What the tools' command lines share: where options may stand, and how errors end them."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from predet.data.scenes import make_scenes
from predet.engine.command_line import errors_in_one_line

TOOLS = Path(__file__).parents[2] / "tools"
# Training has its own end of a run, the demonstration only runs the other tools.
OTHERS = {"lazyconfig_train_net", "demo"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_errors_of_a_person_and_of_the_program_are_told_apart() -> None:
    @errors_in_one_line(KeyError)
    def end(error: Exception) -> None:
        raise error

    for error in (ValueError("no"), PermissionError(13, "Permission denied", "/x"), KeyError("k")):
        with pytest.raises(SystemExit) as caught:
            end(error)
        assert caught.value.code == f"error: {error}"
    with pytest.raises(TypeError):
        end(TypeError("a mistake"))


@pytest.mark.parametrize("path", sorted(TOOLS.glob("*.py")), ids=lambda path: path.stem)
def test_every_tool_ends_so(path: Path) -> None:
    tree = ast.parse(path.read_text())
    decorators = [
        ast.unparse(decorator.func)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
        for decorator in node.decorator_list
    ]
    assert decorators == ([] if path.stem in OTHERS else ["errors_in_one_line"])


def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    truth = make_scenes(tmp_path / "scenes", num_images=1, image_size=64, num_classes=3, seed=0)
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "x.pth")
    store, inside = str(tmp_path / "store"), f"{truth}/inside"  # no folder
    box_store = load("box_store").main
    box_store(["import", str(truth), "--output", store])
    for name, words in {
        "box_store": ["export", store, "--output", inside],
        "convert_dataset": [
            *("--input", str(tmp_path / "scenes"), "--format", "voc", "--output", inside)
        ],
        "make_scenes": [inside, "--num-images", "1"],
    }.items():
        with pytest.raises(SystemExit, match=r"^error: \[Errno \d+\] .*annotations\.json"):
            load(name).main(words)
    convert = ["--input", str(tmp_path / "x.pth"), "--output", str(tmp_path / "x.pth")]
    with pytest.raises(SystemExit, match=r"^error: .*x\.pth exists already"):
        load("convert_checkpoint").main(convert)
    with pytest.raises(SystemExit, match=r"^error: .*x\.pth: no published detector"):
        load("convert_checkpoint").main([*convert[:-1], str(tmp_path / "y.pth")])


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("visualize", "batch a=1 --config-file c b=2 --output o c=3"),
        ("visualize", "curves a=1 --output o b=2 c=3"),
        ("evaluate_proposals", "targets a=1 --config-file c b=2 --data d c=3"),
        ("evaluate_proposals", "checkpoint a=1 --config-file c b=2 --weights w --data d c=3"),
    ],
)
def test_options_may_stand_between_the_arguments_of_a_command(tool: str, words: str) -> None:
    parser = load(tool).make_parser()
    for _ in range(2):
        args = vars(parser.parse_args(words.split()))
        assert args.get("opts", args.get("runs")) == ["a=1", "b=2", "c=3"]
    with pytest.raises(SystemExit):
        parser.parse_args([*words.split(), "--nope"])
