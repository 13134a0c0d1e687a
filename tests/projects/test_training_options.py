"""Options of training on every detector: checkpointing, compilation, precision, memory format."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from predet.layers.checkpointing import run_block
from predet.modeling.backbone import ResNet
from predet.modeling.detector import Detector
from predet.modeling.images import ImageBatch


def step(detector: Detector, batch: list[dict], seed: int = 0) -> dict[str, torch.Tensor]:
    """Losses of one step; gradients stay in the detector."""
    torch.manual_seed(seed)
    detector.zero_grad()
    losses = detector(batch)
    sum(losses.values()).backward()
    return losses


def gradients(detector: Detector) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in detector.named_parameters()}


class TestActivationCheckpointing:
    def test_losses_and_gradients_are_the_same_to_the_bit(
        self, detector: Callable, detector_name: str, batch: Callable
    ) -> None:
        torch.manual_seed(0)
        model = detector(detector_name, dropout=0.2).train()
        plain = step(model, batch())
        expected = gradients(model)
        other_seed = step(model, batch(), seed=1)
        assert not torch.equal(plain["loss_class_0"], other_seed["loss_class_0"])  # dropout works
        model.transformer.checkpointing = True
        runs = count_runs(model)
        found = step(model, batch())
        assert all(torch.equal(found[name], value) for name, value in plain.items())
        for name, gradient in gradients(model).items():
            assert torch.equal(gradient, expected[name]), name
        assert runs == [2] * 5  # two encoder and three decoder layers, forward and again backward

    def test_without_gradients_nothing_runs_twice(self, detector: Callable, batch: Callable):
        model = detector("deformable_two_stage")
        model.transformer.checkpointing = True
        runs = count_runs(model)
        with torch.no_grad():
            model.eval()(batch())
        assert runs == [1] * 5

    @pytest.mark.parametrize("norm", ["gn", "bn", "frozen_bn"])
    def test_resnet(self, norm: str) -> None:
        torch.manual_seed(0)
        options = {"freeze_at": 0, "allow_random_frozen": True, "out_stages": (4, 5)}
        plain = ResNet(depth=18, weights=None, norm=norm, **options).train()
        checked = ResNet(depth=18, weights=None, norm=norm, **options, checkpointing=True).train()
        checked.load_state_dict(plain.state_dict())
        pixels = torch.randn(2, 3, 64, 64)
        for model in (plain, checked):
            sum(m.square().mean() for m in model(pixels)).backward()
        for (name, a), b in zip(plain.named_parameters(), checked.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), name
        # Running statistics have seen the batch once, though the forward ran twice.
        for (name, a), b in zip(plain.named_buffers(), checked.buffers(), strict=True):
            assert torch.equal(a, b), name
        if norm == "bn":
            assert int(checked.layer1[0].bn1.num_batches_tracked) == 1

    def test_swin_with_drop_path(self) -> None:
        pytest.importorskip("timm")
        from predet.modeling.swin import Swin

        sizes = {"embed_dim": 8, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 2)}
        torch.manual_seed(0)
        model = Swin(weights=None, **sizes, window_size=4, drop_path=0.5).train()
        pixels, found = torch.randn(3, 3, 50, 70), []
        for model.checkpointing in (False, True):
            torch.manual_seed(1)
            model.zero_grad()
            sum(m.square().mean() for m in model(pixels)).backward()
            found.append([p.grad.clone() for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_activations_are_not_kept(self) -> None:
        kept = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        layers = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 8))
        x = torch.randn(64, 8, requires_grad=True)
        sizes = []
        for checkpointing in (False, True):
            kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                run_block(layers, x, checkpointing=checkpointing).sum()
            sizes.append(sum(kept))
        assert sizes[1] < 64 * 8 + 1 < 64 * 512 < sizes[0]

    def test_a_block_within_a_block_is_computed_again_once(self) -> None:
        runs = []

        class Inner(nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                runs.append(1)
                return super().forward(x).relu()

        inner = Inner(4, 4)

        def outer(x: torch.Tensor) -> torch.Tensor:
            return run_block(inner, x, checkpointing=True).sin()

        x = torch.randn(3, 4, requires_grad=True)
        run_block(outer, x, checkpointing=True).sum().backward()
        assert len(runs) == 2
        run_block(inner, x, checkpointing=True).sum().backward()
        assert len(runs) == 4, "outside again"


def count_runs(model: Detector) -> list[int]:
    """How often each transformer layer has run; the list is kept up to date."""
    layers = [*model.transformer.encoder_layers, *model.transformer.decoder_layers]
    runs = [0] * len(layers)
    for index, layer in enumerate(layers):

        def count(*_: object, index: int = index) -> None:
            runs[index] += 1

        layer.register_forward_pre_hook(count)
    return runs


class TestCompilation:
    @pytest.mark.parametrize("name", ["detr", "h_deformable"])
    def test_no_graph_breaks_in_training(
        self, detector: Callable, batch: Callable, name: str
    ) -> None:
        model = detector(name, dropout=0.1).train()
        assert graph_breaks(model, model.preprocess(batch())) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("training", [True, False])
    def test_no_graph_breaks(
        self, detector: Callable, detector_name: str, batch: Callable, training: bool
    ) -> None:
        model = detector(detector_name, dropout=0.1).train(training)
        assert graph_breaks(model, model.preprocess(batch())) == 0
        if training:
            model.transformer.checkpointing = True
            assert graph_breaks(model, model.preprocess(batch())) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["resnet", "swin", "convnext"])
    def test_backbones_have_no_graph_breaks(self, kind: str) -> None:
        backbone = small_backbone(kind).train()
        torch._dynamo.reset()
        report = torch._dynamo.explain(backbone)(torch.randn(1, 3, 50, 70))
        assert (report.graph_count, report.graph_break_count) == (1, 0)

    @pytest.mark.slow
    def test_sizes_become_dynamic_and_values_stay(self, detector: Callable, batch: Callable):
        """Images of new sizes cost two compilations more, then none."""
        from torch._dynamo.testing import CompileCounterWithBackend

        torch.manual_seed(0)
        model = detector("deformable_two_stage").train()
        plain = copy.deepcopy(model)
        counter = CompileCounterWithBackend("eager")
        torch._dynamo.reset()
        model.compile(backend=counter, fullgraph=True)
        sizes = [(96, 128), (112, 128), (100, 131), (70, 75), (130, 90)]
        for height, width in sizes:
            data = batch(((height, width), (64, 64), (64, 70)))
            found, expected = step(model, data), step(plain, data)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value)
        assert counter.frame_count <= 3
        assert model.state_dict().keys() == plain.state_dict().keys()

    def test_a_copy_of_a_compiled_detector_has_its_own_weights(self, detector: Callable):
        model = detector("detr").eval()
        torch._dynamo.reset()
        model.compile(backend="eager")
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(0.01)
        image = torch.full((3, 64, 64), 100, dtype=torch.uint8)
        with torch.no_grad():
            images = model.preprocess([{"image": image}])
            found, expected = other.detect(images), other.predict(images.pixels, images.pad_mask)
            assert torch.equal(found.logits, expected.logits)
            assert not torch.equal(found.logits, model.detect(images).logits)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["detr", "deformable_two_stage"])
    def test_compiled_code_has_the_same_losses_and_gradients(
        self, detector: Callable, batch: Callable, name: str
    ) -> None:
        torch.manual_seed(0)
        model = detector(name).train()
        # A fresh model samples on the borders of pixels, where the gradient of an offset jumps: a
        # difference in the last bit would choose the other side.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        expected = step(model, batch())
        wanted = gradients(model)
        torch._dynamo.reset()
        model.compile(fullgraph=True)
        found = step(model, batch())
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
        largest = max(gradient.abs().max() for gradient in wanted.values())
        for key, gradient in gradients(model).items():
            assert (gradient - wanted[key]).abs().max() < 1e-4 * largest, key


def graph_breaks(model: Detector, images: ImageBatch) -> int:
    """Breaks of the forward from pixels to raw predictions; there is more than no graph."""
    torch._dynamo.reset()
    report = torch._dynamo.explain(type(model).predict)(model, images.pixels, images.pad_mask)
    assert report.graph_count > 0
    return report.graph_break_count


def small_backbone(kind: str) -> nn.Module:
    if kind == "resnet":
        return ResNet(depth=18, weights=None, norm="gn", freeze_at=0, out_stages=(3, 4, 5))
    pytest.importorskip("timm")
    if kind == "swin":
        from predet.modeling.swin import Swin

        return Swin(weights=None, embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4))
    from predet.modeling.timm_backbone import TimmBackbone

    options = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    return TimmBackbone(name="convnext_atto", weights=None, options=options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close_to_fp32(
    detector: Callable, detector_name: str, batch: Callable, dtype: torch.dtype
) -> None:
    """Losses within the rounding of 8 (bf16) or 11 bits (fp16), finite gradients alike.

    H-Deformable DETR is given more room: its queries take their content by the rank of their
    proposals, and in a fresh model, where scores are close, rounding changes ranks.
    """
    ranked = detector_name == "h_deformable"
    torch.manual_seed(0)
    model = detector(detector_name).train()
    expected = step(model, batch())
    wanted = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        found = model(batch())
    total = sum(found.values())
    total.backward()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.float32, name
        assert found[name].isfinite(), name
        room = 0.1 if ranked else 0.005
        torch.testing.assert_close(found[name], value, rtol=room, atol=room, msg=name)
    torch.testing.assert_close(total, sum(expected.values()), rtol=0.02 if ranked else 2e-3, atol=0)
    flat = [torch.cat([g.flatten() for g in gs.values()]) for gs in (gradients(model), wanted)]
    assert flat[0].isfinite().all()
    assert torch.cosine_similarity(*flat, dim=0) > (0.9 if ranked else 0.99)


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_channels_last(kind: str) -> None:
    """Every convolution works on the layout, and it changes no value."""
    torch.manual_seed(0)
    backbone = small_backbone(kind).eval()
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(pixels)
        backbone.to(memory_format=torch.channels_last)
        seen = []

        def look(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            last = torch.channels_last
            arrives = inputs[0] is pixels or inputs[0].is_contiguous(memory_format=last)
            seen.append(arrives and output.is_contiguous(memory_format=last))

        convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
        for module in convolutions:
            module.register_forward_hook(look)
        found = backbone(pixels)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert len(seen) == len(convolutions)
    assert all(seen)


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_a_detector_trains_on_a_backbone_of_timm(
    kind: str, detector: Callable, batch: Callable
) -> None:
    from predet.projects.deformable_detr.modeling import input_projections

    torch.manual_seed(0)
    model = detector("deformable_two_stage").train()
    model.backbone = small_backbone(kind)
    model.input_proj = input_projections(model.backbone.channels, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    first = sum(step(model, batch()).values())
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    optimizer.step()
    moved = [n for n, p in model.backbone.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) == len(before)
    for _ in range(4):
        last = sum(step(model, batch()).values())
        optimizer.step()
    assert last < first
    with torch.no_grad():
        assert len(model.eval()(batch())) == 3
