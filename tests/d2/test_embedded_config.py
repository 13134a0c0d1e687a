"""What the embedded configs do beyond the contract: the grammar of values, safe files, names."""

from __future__ import annotations

import builtins
import functools
import logging
from types import SimpleNamespace

import omegaconf
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from predet.d2.embedded import LazyCall, LazyConfig, instantiate
from predet.d2.embedded.instantiate import can_be_located, locate, target_name
from predet.d2.embedded.overrides import parse_override, parse_value

# Values on the command line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None),
        ("NULL", None),
        ("none", "none"),
        ("TRUE", True),
        ("+5", 5),
        ("0", 0),
        ("-0.5", -0.5),
        ("5.", 5.0),
        ("1e5", 100000.0),
        ("1.5E-3", 0.0015),
        ("1_0.5", 10.5),
        ("-inf", float("-inf")),
        ("1e", "1e"),
        ("+007", "+007"),
        ("3x", "3x"),
        ("a=b", "a=b"),
        ("x#1 (old)", "x#1 (old)"),
        ("~/data", "~/data"),
        ("C:\\data\\new", "C:\\data\\new"),
        ("a\\,b", "a,b"),
        ("\\1", "\\1"),
        ("'C:\\data\\\\'", "C:\\data\\"),
        ("'say \\\"x\\\"'", 'say \\"x\\"'),
        ('"it\'s"', "it's"),
        ("it's", "it's"),
        ("''", ""),
        ("${a.b}", "${a.b}"),
        ("${f:1,{x}}", "${f:1,{x}}"),
        ("[${a}, 'b']", ["${a}", "b"]),
        ("[ ]", []),
        ("[[1],[]]", [[1], []]),
        ("['a,b', null]", ["a,b", None]),
        ("{}", {}),
        ("{'a b': 1, 2: x:y}", {"a b": 1, 2: "x:y"}),
        ("  7  ", 7),
        ("", ""),
    ],
)
def test_values(text, value) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2", "write \\[a,b\\] for a list"),
        ("'a' b", "unexpected 'b'"),
        ("[1] 2", "unexpected '2'"),
        ("[1", "expected , or \\], found 'the end'"),
        ("[1 2", "expected , or \\]"),
        ("[1,]", "expected a value, found '\\]'"),
        ("{a}", "expected :, found '}'"),
        ("{a:}", "expected a value"),
        ("{a:1", "expected , or }"),
        ("'a", "quote ' is not closed"),
        ("${a", "reference"),
    ],
)
def test_values_that_cannot_be_read(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        parse_value(text)


def test_overrides_name_themselves_in_errors() -> None:
    for override in ("train.lr", "=3", "a..b=1", "a b=1"):
        with pytest.raises(ValueError, match="expected key=value"):
            parse_override(override)
    with pytest.raises(ValueError, match=r"'--resume': .*options come before"):
        parse_override("--resume")
    with pytest.raises(ValueError, match=r"override 'a\.b=\[1'"):
        parse_override("a.b=[1")
    assert parse_override("++a.b=1=2") == ("a.b", "1=2")


def test_override_of_a_list_entry() -> None:
    cfg = OmegaConf.create({"steps": [1, {"a": 2}]})
    LazyConfig.apply_overrides(cfg, ["steps[0]=5", "steps[1].a=6"])
    assert cfg.steps == [5, {"a": 6}]


# Names


def test_target_names_are_short_and_lead_back() -> None:
    assert target_name(torch.nn.modules.linear.Linear) == "torch.nn.Linear"
    assert target_name(len) == "builtins.len"
    assert target_name(DictConfig.copy) == "omegaconf.DictConfig.copy"
    for target in (torch.nn.Linear, len, functools.partial, DictConfig.copy):
        assert locate(target_name(target)) is target
    assert not can_be_located(lambda: 3)
    assert not can_be_located(functools.partial(len))


def test_locate() -> None:
    assert locate("len") is len
    assert locate("torch.optim.sgd.SGD") is torch.optim.SGD
    # the package holds a function under the name of its module
    assert locate("predet.d2.embedded.launch").__name__ == "launch"
    for name in ("torch.nn.Linearr", "no_such_module.x", "len.x.y", "a..b", "", "x.<locals>.y"):
        with pytest.raises(ImportError, match="cannot find"):
            locate(name)


def test_locate_does_not_hide_a_missing_dependency(tmp_path, monkeypatch) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_dependency\nclass Part: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        locate("needs_more.Part")


def test_a_failing_call_names_its_target(caplog) -> None:
    with pytest.raises(TypeError):
        instantiate(LazyCall(torch.nn.Linear)(inputs=3))
    assert "torch.nn.Linear" in caplog.text
    assert "inputs" in caplog.text
    with pytest.raises(TypeError, match="something to call"):
        instantiate({"_target_": 3})


@pytest.mark.skipif(not hasattr(omegaconf, "TupleConfig"), reason="omegaconf has tuples from 2.4")
def test_tuples_are_built_item_by_item() -> None:
    built = instantiate(LazyCall(SimpleNamespace)(parts=(1, LazyCall(SimpleNamespace)(a=2))))
    assert isinstance(built.parts, omegaconf.TupleConfig)
    assert built.parts[1].a == 2


# Files


def test_loading_leaves_the_import_statement_alone(tmp_path) -> None:
    before = builtins.__import__
    (tmp_path / "base.py").write_text("train = dict(lr=0.1)\n")
    path = tmp_path / "main.py"
    path.write_text("from .base import train\nraise RuntimeError('in the middle')\n")
    with pytest.raises(RuntimeError, match="in the middle"):
        LazyConfig.load(path)
    assert builtins.__import__ is before


def test_a_function_in_a_config_may_import_later(tmp_path) -> None:
    (tmp_path / "base.py").write_text("train = dict(lr=0.1)\n")
    path = tmp_path / "main.py"
    path.write_text("def late():\n    from .base import train\n    return train.lr\n")
    assert LazyConfig.load(path, "late")() == 0.1


def test_imports_that_cannot_work_say_why(tmp_path) -> None:
    def load(text: str):
        (tmp_path / "main.py").write_text(text)
        return LazyConfig.load(tmp_path / "main.py")

    (tmp_path / "base.py").write_text("train = dict(lr=0.1)\n")
    with pytest.raises(ImportError, match=r"no 'trian' in .*did you mean 'train'"):
        load("from .base import trian\n")
    with pytest.raises(ImportError, match=r"instead of '\*'"):
        load("from .base import *\n")
    (tmp_path / "base.py").write_text("from .main import train\n")
    with pytest.raises(ImportError, match=r"circle: .*main\.py -> .*base\.py -> .*main\.py"):
        load("from .base import train\n")


def test_keys_that_are_not_there_are_named(tmp_path) -> None:
    path = tmp_path / "main.py"
    path.write_text("train = dict(lr=0.1)\n")
    with pytest.raises(KeyError, match="model"):
        LazyConfig.load(path, ("train", "model"))


def test_yaml_builds_no_objects(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: !!python/object/apply:os.system ['touch pwned']\n")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        LazyConfig.load(path)
    path.write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        LazyConfig.load(path)


def test_what_cannot_be_saved_is_named(tmp_path, caplog) -> None:
    content = {"a": {"b": [1, lambda: 3]}, "lr": 0.1, "size": (1, 2)}
    cfg = DictConfig(content, flags={"allow_objects": True})
    path = tmp_path / "config.yaml"
    with caplog.at_level(logging.WARNING):
        LazyConfig.save(cfg, path)
    assert "a.b[1] (<function" in caplog.text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml"]
    with pytest.raises(ValueError, match="not-saved"):
        LazyConfig.load(path)
    del cfg.a
    LazyConfig.save(cfg, path)
    assert LazyConfig.load(path) == cfg


def test_code_is_broken_into_lines() -> None:
    long = LazyCall(torch.nn.Linear)(
        in_features="a" * 50, out_features=[LazyCall(SimpleNamespace)(a=1, b=["c" * 30] * 2), ()]
    )
    cfg = DictConfig({"model": long, "x": {}}, flags={"allow_objects": True})
    assert LazyConfig.to_py(cfg) == (
        "cfg.model = torch.nn.Linear(\n"
        f'    in_features="{"a" * 50}",\n'
        "    out_features=[\n"
        "        types.SimpleNamespace(\n"
        "            a=1,\n"
        f'            b=["{"c" * 30}", "{"c" * 30}"],\n'
        "        ),\n"
        f"        {'()' if hasattr(omegaconf, 'TupleConfig') else '[]'},\n"
        "    ],\n"
        ")\n"
        "cfg.x = {}\n"
    )
    assert LazyConfig.to_py(long).startswith("cfg = torch.nn.Linear(\n")
