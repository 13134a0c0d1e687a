"""Configs: describing calls, building what they describe, loading, overriding, saving."""

from __future__ import annotations

import ast
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf


class Part:
    """Keeps what it was built with."""

    def __init__(self, value=None, parts=None, options=None):
        self.value = value
        self.parts = parts
        self.options = options

    def __call__(self, addend):
        return self.value + addend


def write(folder: Path, name: str, text: str, d2) -> Path:
    """A config file that takes `L` from the side under test."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"from {d2.__name__} import LazyCall as L, LazyConfig\n{text}")
    return path


# Describing and building


def test_lazy_call_describes_and_instantiate_builds(d2) -> None:
    cfg = d2.LazyCall(Fraction)(numerator=3, denominator=4)
    assert isinstance(cfg, DictConfig)
    assert cfg._target_ is Fraction
    cfg.denominator = 6
    assert d2.instantiate(cfg) == Fraction(1, 2)
    assert cfg.denominator == 6


@pytest.mark.parametrize("target", ["datetime.timedelta", timedelta])
def test_target_can_be_a_name(d2, target) -> None:
    assert d2.instantiate(d2.LazyCall(target)(hours=36)) == timedelta(days=1.5)


def test_target_name_that_only_the_module_table_knows(d2) -> None:
    # torch.optim deletes the attribute `sgd` after importing from it
    import torch

    cfg = {"_target_": "torch.optim.sgd.SGD", "params": [torch.zeros(1)], "lr": 0.5}
    assert isinstance(d2.instantiate(cfg), torch.optim.SGD)


def test_arguments_are_built_first_also_in_lists_of_lists(d2) -> None:
    call = d2.LazyCall(Part)
    cfg = call(value=call(value=1), parts=[2, call(value=3), [call(value=4), "x"]])
    built = d2.instantiate(cfg)
    assert built.value.value == 1
    assert built.parts[0] == 2
    assert built.parts[1].value == 3
    assert built.parts[2][0].value == 4
    assert built.parts[2][1] == "x"
    assert isinstance(cfg.value, DictConfig)  # the config is as it was


def test_what_lies_in_a_plain_mapping_is_not_built(d2) -> None:
    built = d2.instantiate(d2.LazyCall(Part)(options={"inner": d2.LazyCall(Part)(value=1)}))
    assert built.options.inner._target_ is Part


def test_target_can_be_built_too(d2) -> None:
    assert d2.instantiate(d2.LazyCall(d2.LazyCall(Part)(value=3))(addend=4)) == 7


def test_references_follow_changes(d2) -> None:
    cfg = d2.LazyCall(Part)(
        value=3, parts=d2.LazyCall(Part)(value="${..value}"), options="${value}"
    )
    cfg.value = 5
    built = d2.instantiate(cfg)
    assert built.parts.value == 5
    assert built.options == 5
    cfg.parts.value = 6
    assert d2.instantiate(cfg).parts.value == 6


def test_other_objects_come_back_as_they_are(d2) -> None:
    something = Part(1)
    mapping = {"a": 1}
    assert d2.instantiate(something) is something
    assert d2.instantiate(mapping) is mapping
    assert d2.instantiate(5) == 5
    assert d2.instantiate(None) is None
    assert d2.instantiate([1, d2.LazyCall(Part)(value=2)])[1].value == 2
    assert isinstance(d2.instantiate(ListConfig([1, 2])), ListConfig)


def test_dataclasses_as_target_and_as_argument(d2) -> None:
    shape = d2.ShapeSpec(channels=1, width=3)
    assert d2.instantiate(d2.LazyCall(d2.ShapeSpec)(channels=1, width=3)) == shape
    built = d2.instantiate(d2.LazyCall(Part)(value=1, options=shape))
    assert built.options == shape


def test_lazy_call_refuses_what_cannot_be_called(d2) -> None:
    with pytest.raises(TypeError):
        d2.LazyCall(3)
    with pytest.raises(TypeError):
        d2.LazyCall(Part)(3)


@pytest.mark.parametrize("name", ["no_such_module.Thing", "fractions.NoSuchClass"])
def test_unknown_target_names_are_import_errors(d2, name) -> None:
    with pytest.raises(ImportError, match=name):
        d2.instantiate({"_target_": name})


def test_wrong_arguments_raise(d2) -> None:
    with pytest.raises(TypeError, match="valeu"):
        d2.instantiate(d2.LazyCall(Part)(valeu=1))


# Loading


def test_load_gives_the_configs_of_a_file(d2, tmp_path) -> None:
    path = write(
        tmp_path,
        "main.py",
        "from datetime import timedelta\n"
        "model = L(timedelta)(days=2)\ntrain = dict(lr=0.1)\n_private = dict(a=1)\nnumber = 3\n",
        d2,
    )
    cfg = d2.LazyConfig.load(str(path))
    assert sorted(cfg) == ["model", "train"]
    assert cfg.train.lr == 0.1
    assert d2.instantiate(cfg.model) == timedelta(days=2)
    assert d2.LazyConfig.load(str(path), "number") == 3
    train, number = d2.LazyConfig.load(str(path), ("train", "number"))
    assert isinstance(train, DictConfig)
    assert number == 3


def test_relative_imports_are_fresh_copies_and_configs(d2, tmp_path) -> None:
    write(tmp_path, "common/base.py", "train = dict(steps=[1, 2], lr=0.1)\n", d2)
    first = write(
        tmp_path, "runs/first.py", "from ..common.base import train\ntrain.lr = 0.5\n", d2
    )
    second = write(
        tmp_path,
        "runs/second.py",
        "from .first import train as other\nfrom ..common.base import train\nboth = dict(a=1)\n",
        d2,
    )
    changed = d2.LazyConfig.load(str(first))
    assert changed.train.lr == 0.5
    changed.train.lr = 0.7
    cfg = d2.LazyConfig.load(str(second))
    assert (cfg.other.lr, cfg.train.lr) == (0.5, 0.1)
    assert d2.LazyConfig.load(str(first)).train.lr == 0.5
    assert isinstance(cfg.train, DictConfig)


def test_relative_import_reads_the_file_again(d2, tmp_path) -> None:
    write(tmp_path, "base.py", "train = dict(lr=0.1)\n", d2)
    main = write(tmp_path, "main.py", "from .base import train\n", d2)
    assert d2.LazyConfig.load(str(main)).train.lr == 0.1
    write(tmp_path, "base.py", "train = dict(lr=0.25)\n", d2)
    assert d2.LazyConfig.load(str(main)).train.lr == 0.25


def test_absolute_imports_are_cached_as_in_python(d2, tmp_path, monkeypatch) -> None:
    name = f"shared_config_{d2.__name__.replace('.', '_')}"
    write(tmp_path, f"{name}.py", "train = dict(lr=0.1)\n", d2)
    monkeypatch.syspath_prepend(tmp_path)
    main = write(tmp_path, "main.py", f"from {name} import train\ntrain['lr'] += 1\n", d2)
    assert d2.LazyConfig.load(str(main)).train.lr == 1.1
    assert d2.LazyConfig.load(str(main)).train.lr == 2.1


def test_load_rel_is_relative_to_the_config_that_calls_it(d2, tmp_path) -> None:
    write(tmp_path, "more/v1.5.py", "train = dict(lr=0.1)\n", d2)
    main = write(tmp_path, "main.py", "train = LazyConfig.load_rel('more/v1.5.py', 'train')\n", d2)
    assert d2.LazyConfig.load(str(main)).train.lr == 0.1


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("from . import base", "(?i)relative import"),
        ("from .folder import x", "(?i)relative import"),
        ("from .nothing import x", r"nothing\.py does not exist"),
    ],
)
def test_bad_relative_imports_say_what_is_wrong(d2, tmp_path, statement, message) -> None:
    write(tmp_path, "folder/x.py", "", d2)
    main = write(tmp_path, "main.py", statement, d2)
    with pytest.raises(ImportError, match=message):
        d2.LazyConfig.load(str(main))


def test_bad_files_are_refused(d2, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"main\.txt"):
        d2.LazyConfig.load(str(tmp_path / "main.txt"))
    with pytest.raises(FileNotFoundError, match="absent"):
        d2.LazyConfig.load(str(tmp_path / "absent.py"))
    with pytest.raises(SyntaxError):
        d2.LazyConfig.load(str(write(tmp_path, "broken.py", "train = dict(\n", d2)))


# Overriding


def example() -> DictConfig:
    content = {"train": {"lr": 0.1, "steps": [1, 2], "out": "here"}, "name": "x", "none": None}
    return OmegaConf.create(content)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.lr=1e-4", "train.lr", 1e-4),
        ("train.lr=.5", "train.lr", 0.5),
        ("train.lr=-3", "train.lr", -3),
        ("train.lr=1_000", "train.lr", 1000),
        ("train.lr=inf", "train.lr", float("inf")),
        ("train.lr=true", "train.lr", True),
        ("train.lr=False", "train.lr", False),
        ("train.lr=null", "train.lr", None),
        ("train.lr='null'", "train.lr", "null"),
        ('train.lr="123"', "train.lr", "123"),
        ("name=abc", "name", "abc"),
        ("name='a b'", "name", "a b"),
        ("name=a b", "name", "a b"),
        ("name=", "name", ""),
        ("name='it\\'s'", "name", "it's"),
        ("name='a,b=[c]'", "name", "a,b=[c]"),
        ("name=./out/run-1.5", "name", "./out/run-1.5"),
        ("name=tcp://127.0.0.1:3000", "name", "tcp://127.0.0.1:3000"),
        ("name=007", "name", "007"),
        ("name=1.2.3", "name", "1.2.3"),
        ("train.steps=[3, 4,5]", "train.steps", [3, 4, 5]),
        ("train.steps=[]", "train.steps", []),
        ("train.steps=[a b,[1.5,null],'c,d']", "train.steps", ["a b", [1.5, None], "c,d"]),
        ("train={lr: 2, new: {a: [x]}}", "train.new", {"a": ["x"]}),
        ("name=${train.lr}", "name", 0.1),
        ("none.deep.er=3", "none", {"deep": {"er": 3}}),
        ("+train.new=3", "train.new", 3),
    ],
)
def test_override_values(d2, override, key, value) -> None:
    cfg = example()
    assert d2.LazyConfig.apply_overrides(cfg, [override]) is cfg
    found = OmegaConf.select(cfg, key)
    if OmegaConf.is_config(found):
        found = OmegaConf.to_container(found)
    assert found == value
    assert type(found) is type(value)
    assert cfg.train.out == "here"  # mappings are merged, not replaced


def test_overrides_are_applied_in_order(d2) -> None:
    cfg = d2.LazyConfig.apply_overrides(example(), ["train.lr=1", "train.lr=2", "name=y"])
    assert (cfg.train.lr, cfg.name) == (2, "y")


def test_override_through_a_value_is_refused(d2) -> None:
    with pytest.raises(KeyError, match=r"train\.lr"):
        d2.LazyConfig.apply_overrides(example(), ["train.lr.deeper=1"])


@pytest.mark.parametrize("override", ["train.lr", "name=[1,2", "name='a", "name={a:1"])
def test_overrides_that_cannot_be_read_are_refused(d2, override) -> None:
    # Hydra has an exception of its own
    with pytest.raises(Exception, match=r"(?i)expected|expecting|error|closed|viable"):
        d2.LazyConfig.apply_overrides(example(), [override])


def test_struct_flag_refuses_new_keys_and_still_builds(d2) -> None:
    cfg = d2.LazyCall(Part)(value=1, parts=[d2.LazyCall(Part)(value=2)])
    OmegaConf.set_struct(cfg, True)
    with pytest.raises(Exception, match="valeu"):
        d2.LazyConfig.apply_overrides(cfg, ["valeu=3"])
    d2.LazyConfig.apply_overrides(cfg, ["value=3"])
    built = d2.instantiate(cfg)
    assert (built.value, built.parts[0].value) == (3, 2)


# Saving


def test_saved_config_builds_the_same(d2, tmp_path) -> None:
    import torch

    cfg = OmegaConf.create({"lr": 0.1}, flags={"allow_objects": True})
    cfg.model = d2.LazyCall(torch.nn.Linear)(in_features=2, out_features="${..outputs}")
    cfg.when = d2.LazyCall(timedelta)(hours=36)
    cfg.shape = d2.LazyCall(Part)(options=d2.ShapeSpec(channels=3))
    cfg.outputs = 3
    cfg.activation = torch.nn.ReLU
    cfg.shape._target_ = "types.SimpleNamespace"  # this file cannot be imported by name
    path = tmp_path / "config.yaml"
    d2.LazyConfig.save(cfg, str(path))
    again = d2.LazyConfig.load(str(path))
    assert again.model._target_ == "torch.nn.Linear"
    assert again.when._target_ == "datetime.timedelta"
    assert again.activation is torch.nn.ReLU
    assert d2.instantiate(again.when) == timedelta(days=1.5)
    again.outputs = 5
    assert d2.instantiate(again.model).out_features == 5
    assert d2.instantiate(d2.instantiate(again.shape).options) == d2.ShapeSpec(channels=3)
    assert cfg.model._target_ is torch.nn.Linear


def test_config_without_a_textual_form_is_saved_for_reading(d2, tmp_path) -> None:
    cfg = DictConfig({"x": lambda: 3, "lr": 0.125}, flags={"allow_objects": True})
    path = tmp_path / "config.yaml"
    d2.LazyConfig.save(cfg, str(path))
    assert "0.125" in path.read_text()


def test_to_py(d2) -> None:
    if d2.__name__.endswith("upstream"):
        pytest.importorskip("black", reason="Detectron2 needs black to write a config as code")
    cfg = OmegaConf.create({"train": {"lr": 0.1, "names": ["a", 1, "it's"]}, "size": 3})
    OmegaConf.set_struct(cfg, False)
    cfg = DictConfig(cfg, flags={"allow_objects": True})
    cfg.model = d2.LazyCall(Fraction)(
        numerator={"a": 1, "b": d2.LazyCall(timedelta)(days="${size}")}, denominator=None
    )
    expected = """
cfg.model = fractions.Fraction(
    denominator=None, numerator={"a": 1, "b": datetime.timedelta(days=3)}
)
cfg.size = 3
cfg.train.lr = 0.1
cfg.train.names = ["a", 1, "it's"]
"""
    text = d2.LazyConfig.to_py(cfg)
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(expected))
    assert d2.LazyConfig.to_py(cfg, prefix="a.b.").startswith("a.b.model = fractions.Fraction(")
