"""Published layouts: the authors' names are written out here by hand, from their files."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from predet.checkpoint import load_detector, read_checkpoint
from predet.checkpoint.published import COCO_CLASSES, from_published
from predet.checkpoint.transfer import reinit_for_classes
from predet.d2 import LazyCall, instantiate
from predet.engine.config import load_config
from predet.modeling.backbone import ResNet
from predet.modeling.swin import Swin, to_own_names

ROOT = Path(__file__).resolve().parents[2]

# Where an authors' layer keeps what ours calls so.
ENCODER = {
    "self_attn_norm": "norm1",
    "ffn_norm": "norm2",
    "ffn.linear1": "linear1",
    "ffn.linear2": "linear2",
}
DETR_DECODER = {
    **ENCODER,
    "cross_attn": "multihead_attn",
    "self_attn_norm": "norm1",
    "cross_attn_norm": "norm2",
    "ffn_norm": "norm3",
}
DEFORMABLE_DECODER = {
    **ENCODER,
    "cross_attn_norm": "norm1",
    "self_attn_norm": "norm2",
    "ffn_norm": "norm3",
}


# Of the tiny configs, in transformers' words.
SIZES = {"layers": 2, "attention_heads": 8, "ffn_dim": 256}


def small_model(
    config: str, num_classes: int, *, backbone: DictConfig | None = None
) -> torch.nn.Module:
    """Of a tiny config, with its own backbone or another one."""
    cfg = load_config(ROOT / "configs/tiny" / config, [])
    cfg.data.num_classes = num_classes
    if backbone is not None:
        cfg.model.backbone = backbone
    torch.manual_seed(0)
    return instantiate(cfg.model)


def authors_name(name: str, *, deformable: bool) -> str:
    """Our name -> theirs, part by part."""
    parts = name.split(".")
    if parts[0] == "backbone":
        if parts[1] == "output_norms":  # of Swin; the first stage is 0
            parts[1:3] = [f"norm{int(parts[2].removeprefix('stage')) - 2}"]
        elif parts[1] == "layers" and parts[3] == "downsample":  # at the end of a stage
            parts[2] = str(int(parts[2]) - 1)
        return ".".join(["backbone.0.body", *parts[1:]])
    if parts[0] == "transformer" and parts[1].endswith("_layers"):
        side = parts[1].removesuffix("_layers")
        table = ENCODER if side == "encoder" else DETR_DECODER
        if deformable and side == "decoder":
            table = DEFORMABLE_DECODER
        rest = ".".join(parts[3:])
        for ours in sorted(table, key=len, reverse=True):
            if rest.startswith(ours + "."):
                rest = table[ours] + rest[len(ours) :]
                break
        return f"transformer.{side}.layers.{parts[2]}.{rest}"
    if parts[:2] in (["transformer", "decoder_norm"], ["transformer", "encoder_norm"]):
        return ".".join(["transformer", parts[1].split("_")[0], "norm", parts[2]])
    if parts[0] == "queries":
        inside = "" if parts[1] == "query_embed" else "transformer."
        return inside + ".".join(parts[1:])
    return name.replace("class_head", "class_embed").replace("box_head", "bbox_embed")


def authors_file(model: torch.nn.Module, *, num_layers: int = 2) -> dict[str, Tensor]:
    """A state dict as the authors' code would write it, with their second names of heads."""
    state = model.state_dict()
    deformable = "transformer.level_embed" in state
    found = {
        authors_name(name, deformable=deformable): torch.randn_like(tensor)
        for name, tensor in state.items()
    }
    if not deformable:
        return found
    for kind in ("class_embed", "bbox_embed"):
        shared = [n for n in found if n.startswith(kind) and not n.split(".")[1].isdigit()]
        for name in shared:
            tensor = found.pop(name)
            for layer in range(num_layers):
                found[name.replace(kind, f"{kind}.{layer}")] = tensor.clone()
        refined = not shared
        aliases = {f"transformer.decoder.{n}": t for n, t in found.items() if n.startswith(kind)}
        found |= aliases if refined else {}
    found["transformer.encoder.layers.0.total_ops"] = torch.zeros(1)
    return found


@pytest.mark.parametrize(
    ("config", "deformable"),
    [
        ("detr.py", False),
        ("deformable_detr_one_stage.py", True),
        ("deformable_detr_refined.py", True),
        ("deformable_detr.py", True),
        ("h_deformable_detr.py", True),
    ],
)
def test_every_tensor_of_the_authors_finds_its_place(config: str, deformable: bool) -> None:
    model = small_model(config, num_classes=7)
    theirs = authors_file(model)
    found = from_published({"model": theirs})
    load_detector(model, {"model": found.weights})  # strict: all names and shapes
    assert found.class_names is None
    for name, tensor in model.state_dict().items():
        their_name = authors_name(name, deformable=deformable)
        if their_name not in theirs:  # one head for all layers
            their_name = their_name.replace("_embed.", "_embed.0.", 1)
        assert torch.equal(tensor, theirs[their_name]), name
    used = len(found.weights) + len(found.left_out)
    assert used == len(theirs) or config == "deformable_detr_one_stage.py"


def test_swin_of_the_authors_finds_its_place() -> None:
    pytest.importorskip("timm", reason="needs the extra timm")
    swin = LazyCall(Swin)(weights=None, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 4))
    model = small_model("h_deformable_detr.py", num_classes=7, backbone=swin)
    theirs = authors_file(model)
    index = "backbone.0.body.layers.0.blocks.0.attn.relative_position_index"
    theirs[index] = torch.zeros(49, 49)
    found = from_published({"model": theirs})
    load_detector(model, {"model": found.weights})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[authors_name(name, deformable=True)]), name
    assert index in found.left_out
    assert len(found.weights) + len(found.left_out) == len(theirs)
    body = "backbone.0.body."
    own = to_own_names({n.removeprefix(body): t for n, t in theirs.items() if n.startswith(body)})
    assert {f"backbone.{name}" for name in own} == {n for n in found.weights if "backbone" in n}


def transformers_model(kind: str) -> torch.nn.Module:
    """The tiny config of this name as transformers builds it, with weights unlike each other."""
    transformers = pytest.importorskip("transformers", "5", reason="writes the files")
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIZES.items()}
    deformable = kind != "detr"
    resnet = transformers.ResNetConfig(
        layer_type="basic",
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        out_features=["stage2", "stage3", "stage4"] if deformable else ["stage4"],
    )
    options = {"backbone_config": resnet, "d_model": 128, "num_labels": 5, **sizes}
    torch.manual_seed(0)
    if deformable:
        config = transformers.DeformableDetrConfig(
            num_queries=50,
            two_stage_num_proposals=50,
            with_box_refine=kind != "deformable_detr_one_stage",
            two_stage=kind == "deformable_detr",
            **options,
        )
        model = transformers.DeformableDetrForObjectDetection(config)
    else:
        config = transformers.DetrConfig(num_queries=25, **options)
        model = transformers.DetrForObjectDetection(config)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.normal_()
    return model


@pytest.mark.parametrize(
    "kind", ["detr", "deformable_detr_one_stage", "deformable_detr_refined", "deformable_detr"]
)
def test_what_transformers_saves_is_converted(kind: str, tmp_path: Path) -> None:
    """`save_pretrained` keeps one name of tied tensors, which differs between the variants."""
    theirs = transformers_model(kind)
    theirs.save_pretrained(tmp_path)
    state = read_checkpoint(tmp_path / "model.safetensors")
    full = theirs.state_dict()
    assert len(state["model"]) < len(full) or kind == "detr"
    found, expected = from_published(state).weights, from_published(full).weights
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    resnet = LazyCall(ResNet)(depth=18, weights=None, freeze_at=0, allow_random_frozen=True)
    resnet.out_stages = (5,) if kind == "detr" else (3, 4, 5)
    load_detector(small_model(f"{kind}.py", num_classes=5, backbone=resnet), {"model": found})


@pytest.mark.parametrize("config", ["detr.py", "deformable_detr.py"])
def test_a_file_without_any_head_is_refused(config: str) -> None:
    theirs = authors_file(small_model(config, num_classes=7))
    rest = {n: t for n, t in theirs.items() if "bbox_embed" not in n and "class_embed" not in n}
    with pytest.raises(ValueError, match=r"DETR.*, but without heads: expected class_embed"):
        from_published(rest)
    boxes = {n: t for n, t in theirs.items() if "class_embed" not in n}
    assert any(name.startswith("box_head") for name in from_published(boxes).weights)
    assert from_published({**rest, "patch2query.weight": torch.ones(1)}).class_names is None


def test_raw_coco_ids_become_eighty_classes() -> None:
    assert len(COCO_CLASSES) == 80
    assert [COCO_CLASSES[i] for i in (1, 13, 90)] == ["person", "stop sign", "toothbrush"]
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & COCO_CLASSES.keys()
    theirs = authors_file(small_model("detr.py", num_classes=91))
    theirs["class_embed.bias"] = torch.arange(92.0)
    found = from_published(theirs)
    assert found.weights["class_head.bias"].tolist() == [*COCO_CLASSES, 91]
    assert found.class_names == list(COCO_CLASSES.values())
    load_detector(small_model("detr.py", num_classes=80), {"model": found.weights})


def test_the_encoders_head_keeps_its_first_column() -> None:
    theirs = authors_file(small_model("deformable_detr.py", num_classes=91))
    for layer in range(3):
        theirs[f"class_embed.{layer}.bias"] = torch.arange(91.0)
    found = from_published(theirs)
    assert found.weights["class_head.1.bias"].tolist() == list(COCO_CLASSES)
    assert found.weights["class_head.2.bias"].tolist() == list(range(80))
    load_detector(small_model("deformable_detr.py", num_classes=80), {"model": found.weights})


@pytest.mark.parametrize(
    ("config", "sibling"),
    [
        ("detr.py", "patch2query.weight"),
        ("deformable_detr_one_stage.py", "feature_embed.layers.0.weight"),
    ],
)
def test_files_pretrained_without_classes_lose_their_class_head(config: str, sibling: str) -> None:
    theirs = authors_file(small_model(config, num_classes=91)) | {sibling: torch.randn(4, 4)}
    found = from_published(theirs)
    assert sibling in found.left_out
    assert not any(name.startswith("class_head") for name in found.weights)
    model = small_model(config, num_classes=3)
    reinit = reinit_for_classes({"provenance": {}}, ["a", "b", "c"], model)
    report = load_detector(model, {"model": found.weights}, reinit=reinit)
    assert set(report.reinitialised) == {"class_head.weight", "class_head.bias"}


def test_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no published detector.*got conv1\.weight, fc\.bias"):
        from_published({"conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)})


def convert(folder: Path) -> subprocess.CompletedProcess[str]:
    """The tool on `detr.pth`, to `out.pth`."""
    command = [sys.executable, "tools/convert_checkpoint.py", "--input", folder / "detr.pth"]
    command = [str(part) for part in [*command, "--output", folder / "out.pth"]]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_tool_writes_a_checkpoint(tmp_path: Path) -> None:
    """Of what a training loop wrote, and of its model alone."""
    written = {
        "model": authors_file(small_model("detr.py", 91)),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": []},
        "lr_scheduler": {"step_size": 200, "base_lrs": [1e-4]},
        "epoch": 49,
        "args": argparse.Namespace(lr=1e-4, frozen_weights=None, betas=(0.9, 0.999)),
    }
    torch.save(written, tmp_path / "detr.pth")
    done = convert(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "authors' DETR" in done.stdout
    state = read_checkpoint(tmp_path / "out.pth")
    assert state.keys() == {"model", "provenance"}
    assert state["provenance"]["class_names"] == list(COCO_CLASSES.values())
    load_detector(small_model("detr.py", num_classes=80), state)
    again = convert(tmp_path)
    assert again.returncode != 0
    assert "exists already" in again.stderr


class MakesFolder:
    """Unpickling this runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_the_tool_runs_nobodys_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hidden = argparse.Namespace(lr=1e-4, inner=argparse.Namespace(folder=MakesFolder(trace)))
    torch.save({"model": {}, "args": hidden}, tmp_path / "detr.pth")
    done = convert(tmp_path)
    assert done.returncode != 0
    assert "refused: it holds the Python object" in done.stderr
    assert not trace.exists()
    assert not (tmp_path / "out.pth").exists()
