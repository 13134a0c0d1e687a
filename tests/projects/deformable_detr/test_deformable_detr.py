"""Deformable DETR: sizes and initial values as published, proposals and refinement by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from predet.modeling.backbone import ResNet
from predet.modeling.outputs import Queries
from predet.projects.deformable_detr import (
    DeformableDETR,
    DeformableTransformer,
    LearnedQueries,
    ProposalQueries,
)
from predet.projects.deformable_detr.modeling import input_projections
from predet.projects.deformable_detr.queries import best_proposals, proposal_anchors
from predet.projects.deformable_detr.transformer import (
    Memory,
    refine_boxes,
    token_centers,
    valid_size,
)


def full_size(queries: nn.Module, criterion, *, refine: bool, single_scale=False) -> DeformableDETR:
    stages = (5,) if single_scale else (3, 4, 5)
    return DeformableDETR(
        backbone=ResNet(depth=50, weights=None, out_stages=stages, allow_random_frozen=True),
        transformer=DeformableTransformer(num_levels=1 if single_scale else 4),
        queries=queries,
        criterion=criterion,
        num_classes=91,
        with_box_refine=refine,
    )


@pytest.mark.parametrize(
    ("source", "refine", "count"),
    [
        (LearnedQueries, False, 40_069_665),
        (LearnedQueries, True, 40_849_660),
        (ProposalQueries, True, 41_181_529),
    ],
    ids=["one_stage", "refine", "two_stage"],
)
def test_parameters_of_the_published_models(source, refine, count, criterion):
    """Counted on the authors' classes: 40.07, 40.85 and 41.18 million."""
    with torch.device("meta"):
        model = full_size(source(), criterion("focal"), refine=refine)
    assert sum(p.numel() for p in model.parameters()) == count


def test_single_scale_has_34_million_parameters(criterion):
    with torch.device("meta"):
        model = full_size(LearnedQueries(), criterion("focal"), refine=False, single_scale=True)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 34


class TestInitialValues:
    def test_heads_of_one_stage_are_one_module(self, detector):
        model = detector("deformable")
        assert isinstance(model.class_head, nn.Linear)
        torch.testing.assert_close(
            model.class_head.bias.detach(), torch.full((5,), -math.log(99.0))
        )
        last = model.box_head.layers[-1]
        assert not last.weight.any()
        assert last.bias.tolist() == [0.0, 0.0, -2.0, -2.0]

    def test_refinement_has_a_head_for_each_layer(self, detector):
        model = detector("deformable_refine")
        assert len(model.class_head) == len(model.box_head) == 3
        biases = [head.layers[-1].bias.tolist() for head in model.box_head]
        assert biases == [[0.0, 0.0, -2.0, -2.0], [0.0] * 4, [0.0] * 4]
        assert model.box_head[0].layers[0].weight is not model.box_head[1].layers[0].weight
        assert torch.equal(model.class_head[0].weight, model.class_head[2].weight)

    def test_two_stages_have_one_more_for_the_encoder(self, detector):
        model = detector("deformable_two_stage")
        assert len(model.class_head) == len(model.box_head) == 4
        assert not any(head.layers[-1].bias.any() for head in model.box_head)

    def test_projections_and_embeddings(self, detector):
        torch.manual_seed(0)
        model = detector("deformable")
        for convolution, norm in model.input_proj:
            assert not convolution.bias.any()
            limit = math.sqrt(
                6 / (convolution.weight[0].numel() + convolution.weight[:, 0].numel())
            )
            assert 0.9 * limit < convolution.weight.abs().max() <= limit  # Xavier-uniform
            assert isinstance(norm, nn.GroupNorm)
            assert norm.num_groups == 32
        assert 0.8 < model.transformer.level_embed.std() < 1.2
        assert 0.9 < model.queries.query_embed.weight.std() < 1.1
        assert not model.queries.reference_points.bias.any()
        # The blanket initialisation did not touch where deformable attention looks.
        for layer in model.transformer.decoder_layers:
            assert not layer.cross_attn.sampling_offsets.weight.any()
            assert layer.cross_attn.sampling_offsets.bias.abs().max() == 4


def make_memory(seed: int = 0) -> Memory:
    """Two levels of 4 x 5 and 2 x 3 pixels; of the second image 3 x 2 and 2 x 1 are valid."""
    shapes, valid = ((4, 5), (2, 3)), (((4, 5), (2, 3)), ((3, 2), (2, 1)))
    masks = [torch.ones(2, h, w, dtype=torch.bool) for h, w in shapes]
    for image, sizes in enumerate(valid):
        for level, (h, w) in enumerate(sizes):
            masks[level][image, :h, :w] = False
    sizes = torch.stack([valid_size(mask) for mask in masks], dim=1)
    assert sizes.tolist() == [[[5.0, 4.0], [3.0, 2.0]], [[2.0, 3.0], [1.0, 2.0]]]
    ratios = sizes / torch.tensor([[5.0, 4.0], [3.0, 2.0]])
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, 26, 32, generator=generator)
    return Memory(tokens, torch.cat([m.flatten(1) for m in masks], dim=1), shapes, sizes, ratios)


def test_token_centres_by_hand():
    memory = make_memory()
    centers = token_centers(memory.spatial_shapes, memory.valid_sizes)
    # Level 0, row 2, column 1; level 1, row 1, column 2.
    torch.testing.assert_close(centers[0, 11], torch.tensor([1.5 / 5, 2.5 / 4]))
    torch.testing.assert_close(centers[1, 11], torch.tensor([1.5 / 2, 2.5 / 3]))
    torch.testing.assert_close(centers[0, 25], torch.tensor([2.5 / 3, 1.5 / 2]))
    torch.testing.assert_close(centers[1, 25], torch.tensor([2.5, 0.75]))  # padding


def test_proposal_anchors_by_hand():
    memory = make_memory()
    anchors, usable = proposal_anchors(memory)
    torch.testing.assert_close(anchors[1, 11].sigmoid(), torch.tensor([0.75, 2.5 / 3, 0.05, 0.05]))
    torch.testing.assert_close(anchors[1, 20].sigmoid(), torch.tensor([0.5, 0.25, 0.1, 0.1]))
    assert usable.sum(dim=1).tolist() == [26, 8]
    assert torch.equal(usable, ~memory.pad_mask)
    assert (anchors[~usable] == math.inf).all()


def test_anchors_near_the_border_are_not_usable():
    """100 pixels in a row: the centres of the first and the last are within 0.01 of the border."""
    mask = torch.zeros(1, 100, dtype=torch.bool)
    size = torch.tensor([[[100.0, 1.0]]])
    memory = Memory(torch.zeros(1, 100, 4), mask, ((1, 100),), size, torch.ones(1, 1, 2))
    _, usable = proposal_anchors(memory)
    assert usable[0].nonzero().flatten().tolist() == list(range(1, 99))


def test_best_proposals_read_column_zero_and_leave_the_unusable_for_last():
    logits = torch.tensor([[[1.0, 9.0], [3.0, 0.0], [8.0, 0.0], [2.0, 9.0]]])
    usable = torch.tensor([[True, True, False, True]])
    assert best_proposals(logits, usable, 3).tolist() == [[1, 3, 0]]
    assert best_proposals(logits, usable, 4).tolist() == [[1, 3, 0, 2]]
    with pytest.raises(ValueError, match="5 queries cannot be chosen from 4 encoder tokens"):
        best_proposals(logits, usable, 5)


def test_proposals_become_references_and_queries():
    torch.manual_seed(0)
    source = ProposalQueries(num_queries=3, hidden_dim=32)
    class_head, box_head = nn.Linear(32, 2), nn.Linear(32, 4)
    memory = make_memory()
    queries, encoder = source(memory, class_head, box_head)
    assert encoder.logits.shape == (2, 26, 2)
    assert (encoder.boxes[memory.pad_mask] == 1).all()
    for image in range(2):
        objectness = encoder.logits[image, :, 0].masked_fill(memory.pad_mask[image], -1e9)
        best = objectness.argsort(descending=True)[:3]
        torch.testing.assert_close(queries.reference[image], encoder.boxes[image, best])
    assert not queries.reference.requires_grad
    assert queries.content.shape == queries.position.shape == (2, 3, 32)
    # What the published code computes: sines of 2 pi x, first x then y, width, height.
    x, width = queries.reference[0, 1, 0].item(), queries.reference[0, 1, 2].item()
    encoded = torch.zeros(64)
    for start, value in ((0, x), (16, queries.reference[0, 1, 1]), (32, width)):
        for i in range(8):
            angle = value * 2 * math.pi / 10_000 ** (2 * i / 16)
            encoded[start + 2 * i], encoded[start + 2 * i + 1] = math.sin(angle), math.cos(angle)
    for i in range(8):
        angle = queries.reference[0, 1, 3] * 2 * math.pi / 10_000 ** (2 * i / 16)
        encoded[48 + 2 * i], encoded[48 + 2 * i + 1] = math.sin(angle), math.cos(angle)
    expected = source.pos_trans_norm(source.pos_trans(encoded))
    torch.testing.assert_close(queries.position[0, 1], expected[:32], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(queries.content[0, 1], expected[32:], atol=1e-5, rtol=1e-4)


def test_learned_queries():
    torch.manual_seed(0)
    source = LearnedQueries(num_queries=3, hidden_dim=32)
    queries, encoder = source(make_memory(), None, None)
    assert encoder is None
    weight = source.query_embed.weight
    for image in range(2):
        assert torch.equal(queries.position[image], weight[:, :32])
        assert torch.equal(queries.content[image], weight[:, 32:])
    expected = source.reference_points(weight[:, :32]).sigmoid()
    torch.testing.assert_close(queries.reference[1], expected)


def test_boxes_move_from_their_reference():
    delta = torch.tensor([0.3, -0.2, 0.1, -2.0])
    point = refine_boxes(delta, torch.tensor([0.2, 0.7]))
    expected = torch.tensor([math.log(0.25) + 0.3, math.log(7 / 3) - 0.2, 0.1, -2.0]).sigmoid()
    torch.testing.assert_close(point, expected)
    box = refine_boxes(torch.zeros(4), torch.tensor([0.2, 0.7, 0.1, 0.4]))
    torch.testing.assert_close(box, torch.tensor([0.2, 0.7, 0.1, 0.4]))


def decode(look_forward_twice: bool):
    """Three layers with heads of their own, and the boxes they predict."""
    torch.manual_seed(0)
    transformer = DeformableTransformer(
        hidden_dim=32,
        num_encoder_layers=0,
        num_decoder_layers=3,
        ffn_dim=32,
        dropout=0.0,
        num_levels=2,
    )
    box_heads = nn.ModuleList(nn.Linear(32, 4) for _ in range(3))
    class_heads = nn.ModuleList(nn.Linear(32, 2) for _ in range(3))
    queries = Queries(torch.randn(2, 6, 32), torch.randn(2, 6, 32), reference=torch.rand(2, 6, 4))
    output = transformer.decode(
        queries,
        make_memory(),
        list(class_heads),
        list(box_heads),
        refine=True,
        look_forward_twice=look_forward_twice,
    )
    return output, box_heads


def test_look_forward_twice_changes_gradients_only():
    once, once_heads = decode(look_forward_twice=False)
    twice, twice_heads = decode(look_forward_twice=True)
    torch.testing.assert_close(once.boxes, twice.boxes)
    for output in (once, twice):
        output.boxes[1].sum().backward()
    # The loss of layer 1 reaches its own head in both, the head before it only if it looks there.
    assert once_heads[1].weight.grad.any()
    assert not once_heads[0].weight.grad.any()
    assert twice_heads[0].weight.grad.any()
    assert not twice_heads[2].weight.grad.any()
    torch.testing.assert_close(once_heads[1].weight.grad, twice_heads[1].weight.grad)


def test_further_levels_start_from_the_last_map():
    projections = input_projections((24, 32), 64, 5)
    convolutions = [p[0] for p in projections]
    assert [c.in_channels for c in convolutions] == [24, 32, 32, 64, 64]
    assert [c.kernel_size for c in convolutions] == [(1, 1)] * 2 + [(3, 3)] * 3
    assert [c.stride for c in convolutions] == [(1, 1)] * 2 + [(2, 2)] * 3


def test_levels_are_chained_as_published(detector):
    torch.manual_seed(0)
    model = detector("deformable")
    model.input_proj = input_projections(model.backbone.channels, 64, 5)
    features = [torch.randn(1, c, 32 // 2**i, 32 // 2**i) for i, c in enumerate((24, 32, 40))]
    maps = model.project(features)
    assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 2]
    torch.testing.assert_close(maps[3], model.input_proj[3](features[2]))
    torch.testing.assert_close(maps[4], model.input_proj[4](maps[3]))


class TestBadArguments:
    def test_two_stages_without_refinement(self, criterion):
        with pytest.raises(ValueError, match="with_box_refine=True"):
            full_size(ProposalQueries(), criterion("focal"), refine=False)

    def test_softmax_criterion(self, criterion):
        with pytest.raises(ValueError, match="criterion is 'softmax'"):
            full_size(LearnedQueries(), criterion("softmax"), refine=False)

    def test_widths_that_differ(self, criterion):
        with pytest.raises(ValueError, match="hidden_dim 128, the transformer has 256"):
            full_size(LearnedQueries(hidden_dim=128), criterion("focal"), refine=False)

    def test_fewer_levels_than_maps(self):
        with pytest.raises(ValueError, match="at least 3, the backbone's maps, got 1"):
            input_projections((1, 2, 3), 64, 1)

    def test_width_that_groups_do_not_divide(self):
        with pytest.raises(ValueError, match="multiple of 32, got 48"):
            input_projections((8,), 48, 1)

    def test_images_with_too_few_tokens(self, detector, batch):
        model = detector("deformable_two_stage")
        with pytest.raises(ValueError, match="20 queries cannot be chosen from 7 encoder tokens"):
            model(batch(sizes=((16, 16),), counts=(1,)))
