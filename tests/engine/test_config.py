"""Configs: typos are errors, everything else is Detectron2's LazyConfig."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from predet.d2 import instantiate
from predet.engine import TrainSettings, list_keys, load_config, save_resolved
from predet.engine.build import fill_classes
from predet.engine.config import find_config
from predet.engine.config_text import flatten, render
from predet.engine.schedule import WarmupSchedule


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=2", r"unknown key 'train\.max_itr'; nearest: train\.max_iter.*--list-keys"),
        ("model.dropuot=0.1", r"'model\.dropuot'; nearest: model\.dropout"),
        ("trian.seed=1", r"'trian\.seed'; nearest: train\.seed"),
        ("optimizer.params.lr_factors.backbne=1", r"nearest: optimizer\.params\.lr_factors\.back"),
        ("model.backbone.depth=18", r"unknown key 'model\.backbone\.depth'"),
        ("train.seed.deep=1", r"'train\.seed' has no keys, it is 3"),
        ("lr_multiplier.drop_steps.4=1", r"list of 1 items, expected an index below that, got '4'"),
        ("model={'dropuot': 1}", r"unknown key 'model\.dropuot'"),
        ("train.seed", "not of the form key=value"),
        ("--resume", "option --resume comes after an override"),
    ],
)
def test_unknown_keys_are_refused(tiny_config: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(tiny_config, [override])


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("train.max_iter=7", "train.max_iter", 7),
        ("model.dropout=0.25", "model.dropout", 0.25),  # set nowhere, a parameter of the model
        ("train.precision=bf16", "train.precision", "bf16"),  # set nowhere, an option
        ("train.clip_grad_norm=null", "train.clip_grad_norm", None),
        ("lr_multiplier.drop_steps=[3,9]", "lr_multiplier.drop_steps", [3, 9]),
        ("lr_multiplier.drop_steps[0]=4", "lr_multiplier.drop_steps", [4]),
        (
            "optimizer.params.lr_factors={box_head: 2}",
            "optimizer.params.lr_factors",
            {"box_head": 2},
        ),
        ("model={dropout: 0.5}", "model.num_classes", None),  # merged: what it had stays
        ("train.init_checkpoint=a=b.pth", "train.init_checkpoint", "a=b.pth"),
        ("model.width='${train.max_iter}'", "model.width", 20),
    ],
)
def test_known_keys_are_set(tiny_config: str, override: str, key: str, expected) -> None:
    cfg = load_config(tiny_config, [override])
    value = OmegaConf.select(cfg, key)
    assert (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value) == expected


def test_loading_does_not_change_the_next_load(tiny_config: str) -> None:
    load_config(tiny_config, ["train.max_iter=7", "model.dropout=0.5"])
    assert load_config(tiny_config).train.max_iter == 20
    assert "dropout" not in load_config(tiny_config).model


def test_a_config_is_closed(tiny_config: str) -> None:
    with pytest.raises(AttributeError):
        load_config(tiny_config).train.max_itr = 3


def test_a_typo_in_the_file_is_refused(tiny_config: str, tmp_path: Path) -> None:
    text = Path(tiny_config).read_text()
    path = tmp_path / "typo.py"
    path.write_text(text.replace("warmup_steps=3", "warmup_step=3"))
    with pytest.raises(ValueError, match=r"lr_multiplier\.warmup_step.*nearest: warmup_steps"):
        load_config(path)
    path.write_text(text.replace("ema_decay=0.9", "ema_deccay=0.9"))
    with pytest.raises(ValueError, match=r"train\.ema_deccay.*nearest: train\.ema_decay"):
        TrainSettings.from_config(load_config(path).train)


def test_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import predet.configs

    installed = tmp_path / "installed"
    (installed / "tiny").mkdir(parents=True)
    (installed / "tiny/good.py").write_text("train = dict(max_iter=1)\n")
    monkeypatch.setattr(predet.configs, "__path__", [str(installed)])
    assert find_config("configs/tiny/good.py") == installed / "tiny/good.py"
    own = tmp_path / "configs/tiny"
    own.mkdir(parents=True)
    (own / "good.py").write_text("train = dict(max_iter=2)\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/tiny/good.py").train.max_iter == 2  # as given comes first
    with pytest.raises(
        ValueError, match=r"does not exist .*shipped configs: configs/tiny/good\.py"
    ):
        find_config("configs/tiny/goood.py")
    with pytest.raises(ValueError, match="no config is given"):
        find_config("")


def test_resolved_config_loads_to_the_same(tiny_config: str, tmp_path: Path, load_tiny) -> None:
    import torch
    from engine_standins import tiny_dataset

    cfg = load_tiny(
        "model.dropout=0.25",
        "train.max_iter=40",
        "train.clip_grad_norm=inf",
        "data.class_names=null",
    )
    fill_classes(cfg, tiny_dataset())
    save_resolved(cfg, tmp_path / "config.resolved.py")
    again = load_config(tmp_path / "config.resolved.py")
    assert flatten(again) == flatten(cfg)
    assert render(again) == render(cfg)
    assert "${" not in render(cfg)
    changed = ["data.test.num_images=7", "train.seed=11"]
    again = load_config(tmp_path / "config.resolved.py", changed)
    assert again.dataloader.test.dataset.num_images == 7  # it refers to what was changed
    assert again.dataloader.train.seed == 11
    again = load_config(tmp_path / "config.resolved.py")
    torch.manual_seed(0)
    first = instantiate(cfg.model)
    torch.manual_seed(0)
    second = instantiate(again.model)
    assert type(first) is type(second)
    assert first.backbone.dropout.p == second.backbone.dropout.p == 0.25
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    schedule = instantiate(again.lr_multiplier)
    assert isinstance(schedule, WarmupSchedule)
    assert schedule.max_iter == 40


def test_values_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "config.py"
    path.write_text(
        "import torch\nfrom predet.d2 import LazyCall as L\n"
        "model = L(torch.nn.Linear)(in_features=1, out_features=2, dtype=torch.float64)\n"
        "other = dict(activation=torch.nn.functional.relu, f=None)\n"
    )
    cfg = load_config(path)
    (tmp_path / "again.py").write_text(render(cfg))
    again = load_config(tmp_path / "again.py")
    assert again.other.activation is torch.nn.functional.relu
    assert instantiate(again.model).weight.dtype == torch.float64
    cfg.other.f = lambda x: x
    with pytest.raises(ValueError, match=r"config key 'other\.f' holds <function"):
        render(cfg)


def test_broken_interpolation_is_named(tiny_config: str) -> None:
    cfg = load_config(tiny_config, ["model.width=${data.nothing}"])
    with pytest.raises(ValueError, match="nothing"):
        render(cfg)


def test_all_keys_are_listed(tiny_config: str) -> None:
    keys = list_keys(load_config(tiny_config))
    assert keys["train.max_iter"] == "20"
    assert keys["model"] == "TinyDetector"
    assert keys["model.dropout"] == "(default 0.1)"
    assert keys["dataloader.evaluator.dataset"] == "(required)"
    assert keys["train.precision"] == "(default 'fp32')"
    assert keys["lr_multiplier.drop_steps"] == "[15]"
    for key in keys:  # all of them can indeed be overridden
        load_config(tiny_config, [f"{key}=1"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_iter", 0, r"train\.max_iter: expected a whole number >= 1, got 0"),
        ("max_iter", "many", "got 'many'"),
        ("precision", "fp8", "one of fp32, bf16, fp16"),
        ("ema_decay", 1.0, "between 0 and 1"),
        ("clip_grad_norm", -1, "a number > 0 or None"),
        ("compile", "yes", "True or False"),
        ("reinit", "class_head", "a list of names or 'auto'"),
        ("seed", -1, ">= 0"),
        ("device", "cuda:1", "CUDA_VISIBLE_DEVICES says which GPU, got 'cuda:1'"),
    ],
)
def test_settings_are_checked(key: str, value, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings.from_config({"max_iter": 10, key: value})


def test_settings_convert_what_is_meant() -> None:
    settings = TrainSettings.from_config({"max_iter": 9e4, "reinit": ["class_head"]})
    assert settings.max_iter == 90_000
    assert isinstance(settings.max_iter, int)
    assert settings.reinit == ("class_head",)


def test_classes_come_from_the_data(load_tiny) -> None:
    from engine_standins import tiny_dataset

    cfg = load_tiny()
    assert cfg.model.num_classes is None
    fill_classes(cfg, tiny_dataset(class_names=("x", "y", "z")))
    assert cfg.model.num_classes == 3
    assert list(cfg.data.class_names) == ["x", "y", "z"]
    with pytest.raises(
        ValueError, match=r"num_classes is 80, but data set 'tiny' has 2 classes: a, b"
    ):
        fill_classes(load_tiny("data.num_classes=80"), tiny_dataset())
    with pytest.raises(ValueError, match="class_names"):
        fill_classes(load_tiny("data.class_names=[b,a]"), tiny_dataset())
    with pytest.raises(ValueError, match=r"no classes, so data\.num_classes must be given"):
        fill_classes(load_tiny(), tiny_dataset(num_images=0, class_names=()))
    cfg = load_tiny()
    OmegaConf.set_struct(cfg, False)
    del cfg.data.num_classes  # a model that knows no classes
    fill_classes(cfg, tiny_dataset(num_images=0, class_names=()))
    assert "num_classes" not in cfg.data
