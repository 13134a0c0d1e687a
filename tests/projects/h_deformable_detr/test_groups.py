"""The two groups of queries: which proposals they get, what they see, who detects."""

from __future__ import annotations

import math

import pytest
import torch

from predet.modeling.backbone import ResNet
from predet.modeling.outputs import Queries
from predet.projects.deformable_detr import DeformableTransformer
from predet.projects.deformable_detr.transformer import Memory
from predet.projects.h_deformable_detr import HDeformableDETR, HybridCriterion, MixedQueries
from predet.projects.h_deformable_detr import modeling as h_modeling
from predet.projects.h_deformable_detr.modeling import join_groups, split_queries

ONE, MANY = 20, 30  # queries of the small detector's groups


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Fresh heads start at zero, so that queries would hardly differ."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_head" in name or "sampling_offsets" in name:
                parameter.normal_(std=0.2, generator=generator)
    return model


@pytest.fixture
def model(detector) -> HDeformableDETR:
    torch.manual_seed(0)
    return randomize(detector("h_deformable"))


def make_queries(count: int, seed: int = 0, images: int = 2) -> Queries:
    generator = torch.Generator().manual_seed(seed)
    content, position = torch.randn(2, images, count, 8, generator=generator)
    return Queries(content, position, reference=torch.rand(images, count, 4, generator=generator))


class TestMask:
    def test_entries_by_hand(self):
        joined = join_groups(make_queries(2), make_queries(3, seed=1))
        assert joined.attention_mask.dtype == torch.bool
        assert joined.attention_mask.int().tolist() == [
            [0, 0, 1, 1, 1],
            [0, 0, 1, 1, 1],
            [1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0],
        ]

    def test_a_mask_of_a_group_stays(self):
        first = make_queries(2)._replace(
            attention_mask=torch.tensor([[False, True], [False, False]])
        )
        mask = join_groups(first, make_queries(1)).attention_mask
        assert mask.int().tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 0]]
        mask = join_groups(make_queries(1), first).attention_mask
        assert mask.int().tolist() == [[0, 1, 1], [1, 0, 1], [1, 0, 0]]

    def test_a_mask_for_each_image_stays(self):
        own = torch.tensor([[[False, True], [False, False]], [[False, False], [True, False]]])
        first = make_queries(2)._replace(attention_mask=own)
        mask = join_groups(first, make_queries(1)).attention_mask
        assert mask.int().tolist() == [
            [[0, 1, 1], [0, 0, 1], [1, 1, 0]],
            [[0, 0, 1], [1, 0, 1], [1, 1, 0]],
        ]

    def test_splitting_undoes_joining(self):
        parts = make_queries(2), make_queries(3, seed=1)
        joined = join_groups(*parts)
        for part, found in zip(
            parts, split_queries(joined._replace(attention_mask=None), 2), strict=True
        ):
            assert torch.equal(found.content, part.content)
            assert torch.equal(found.position, part.position)
            assert torch.equal(found.reference, part.reference)


def make_memory() -> Memory:
    """Two images of 4 x 5 tokens whose first channel is a shuffled objectness."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 20, 32, generator=generator)
    size = torch.tensor([[[5.0, 4.0]]]).repeat(2, 1, 1)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    return Memory(tokens, mask, ((4, 5),), size, torch.ones(2, 1, 2))


class TestMixedQueries:
    def make(self) -> MixedQueries:
        torch.manual_seed(0)
        return MixedQueries(num_queries=4, num_one_to_many=7, hidden_dim=32)

    def heads(self):
        torch.manual_seed(2)
        return torch.nn.Linear(32, 3), torch.nn.Linear(32, 4)

    def test_the_best_proposals_go_to_the_first_group(self):
        source, (class_head, box_head) = self.make(), self.heads()
        queries, encoder = source(make_memory(), class_head, box_head)
        assert queries.reference.shape == (2, 11, 4)
        for image in range(2):
            scores = encoder.logits[image, :, 0].tolist()
            order = sorted(range(20), key=lambda i: -scores[i])
            assert torch.equal(queries.reference[image], encoder.boxes[image, order[:11]])
        assert not queries.reference.requires_grad

    def test_only_the_first_group_when_not_training(self):
        source, heads = self.make(), self.heads()
        training, _ = source(make_memory(), *heads)
        source.eval()
        queries, _ = source(make_memory(), *heads)
        assert queries.reference.shape == (2, 4, 4)
        assert torch.equal(queries.reference, training.reference[:, :4])
        assert torch.equal(queries.content, training.content[:, :4])
        torch.testing.assert_close(queries.position, training.position[:, :4])

    def test_content_is_learned_and_position_is_the_proposal(self):
        source = self.make()
        queries, _ = source(make_memory(), *self.heads())
        for image in range(2):
            assert torch.equal(queries.content[image], source.query_embed.weight)
        # The first half of the encoding of the box; the norm spans both halves.
        box = queries.reference[1, 5]
        encoded = torch.empty(64)
        for coordinate in range(4):
            for i in range(8):
                angle = float(box[coordinate]) * 2 * math.pi / 10_000 ** (2 * i / 16)
                encoded[16 * coordinate + 2 * i] = math.sin(angle)
                encoded[16 * coordinate + 2 * i + 1] = math.cos(angle)
        both = source.pos_trans_norm(source.pos_trans(encoded))
        torch.testing.assert_close(queries.position[1, 5], both[:32], atol=1e-5, rtol=1e-4)

    def test_gradients_of_content_and_position(self):
        source = self.make()
        queries, _ = source(make_memory(), *self.heads())
        (queries.content[:, 3].sum() + queries.position.square().sum()).backward()
        expected = torch.zeros(11, 32)
        expected[3] = 2.0  # once for each image
        assert torch.equal(source.query_embed.weight.grad, expected)
        assert source.pos_trans.weight.grad.any()
        assert source.enc_output.weight.grad is None  # nothing flows back through the proposals


def queries_of(model, images, monkeypatch, training: bool):
    """The decoder's queries of a pass, as `DeformableTransformer.decode` gets them."""
    seen = []
    decode = DeformableTransformer.decode

    def record(self, queries, *args, **options):
        seen.append(queries)
        return decode(self, queries, *args, **options)

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(DeformableTransformer, "decode", record)
        output = model.train(training).detect(images)
    return seen[0], output


def test_the_decoder_gets_both_groups_and_the_mask_in_training_only(model, batch, monkeypatch):
    images = model.preprocess(batch())
    queries, _ = queries_of(model, images, monkeypatch, training=True)
    assert queries.content.shape[1] == ONE + MANY
    mask = queries.attention_mask
    for group in (slice(ONE), slice(ONE, None)):
        assert not mask[group, group].any()
    assert mask[:ONE, ONE:].all()
    assert mask[ONE:, :ONE].all()
    queries, output = queries_of(model, images, monkeypatch, training=False)
    assert queries.content.shape[1] == ONE
    assert queries.attention_mask is None
    assert output.one_to_many is None


def test_a_group_is_as_if_alone(model, batch):
    """All weights are shared and dropout is 0: training and detecting agree on the first group."""
    images = model.preprocess(batch())
    with torch.no_grad():
        both = model.train().detect(images)
        alone = model.eval().detect(images)
        assert both.boxes.shape[2] == alone.boxes.shape[2] == ONE
        assert both.one_to_many.boxes.shape[2] == MANY
        torch.testing.assert_close(both.logits, alone.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(both.boxes, alone.boxes, atol=1e-5, rtol=1e-4)
        assert torch.equal(both.encoder.logits, alone.encoder.logits)
        assert both.one_to_many.encoder is None
        # Deformable DETR with the second group's queries only.
        second = super(HDeformableDETR, model.train()).transform(
            model.project(model.backbone(images.pixels)),
            images.pad_mask,
            lambda queries: split_queries(queries, ONE)[1],
        )
    torch.testing.assert_close(both.one_to_many.logits, second.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.one_to_many.boxes, second.boxes, atol=1e-5, rtol=1e-4)


def test_without_the_mask_the_groups_would_change_each_other(model, batch, monkeypatch):
    images = model.preprocess(batch())
    with torch.no_grad():
        apart = model.train().detect(images)
        monkeypatch.setattr(
            h_modeling, "join_groups", lambda *groups: join_groups(*groups)._replace(
                attention_mask=None
            ),
        )  # fmt: skip
        mixed = model.detect(images)
    assert (apart.logits - mixed.logits).abs().max() > 1e-2


def test_a_condition_sees_each_group_by_itself(model, batch):
    images = model.preprocess(batch())
    seen = []

    def half(queries: Queries) -> Queries:
        seen.append(queries.content.shape[1])
        return Queries(*(x if x is None else x[:, :8] for x in queries))

    with torch.no_grad():
        training = model.train().detect(images, half)
        detecting = model.eval().detect(images, half)
    assert seen == [ONE, MANY, ONE]
    assert training.boxes.shape[2] == detecting.boxes.shape[2] == 8
    assert training.one_to_many.boxes.shape[2] == 8
    torch.testing.assert_close(training.boxes, detecting.boxes, atol=1e-5, rtol=1e-4)


def test_detecting_does_not_read_the_second_group(model, batch):
    model.eval()
    with torch.no_grad():
        before = model(batch())
        model.queries.query_embed.weight[ONE:].normal_()
        after = model(batch())
        model.queries.query_embed.weight[:ONE].normal_()
        other = model(batch())
    for a, b, c in zip(before, after, other, strict=True):
        assert torch.equal(a["instances"].scores, b["instances"].scores)
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert not torch.allclose(b["instances"].scores, c["instances"].scores)


@pytest.mark.parametrize("training", [False, True], ids=["detecting", "training"])
def test_without_the_branch_it_is_two_stage_deformable_detr(detector, batch, training):
    """To the bit, with the content of mixed selection put in by a condition."""
    torch.manual_seed(0)
    two_stage = randomize(detector("deformable_two_stage"))
    two_stage.look_forward_twice = True
    model = detector("h_deformable")
    if training:
        model.queries = MixedQueries(num_queries=ONE, num_one_to_many=0, hidden_dim=64)
    content = model.queries.query_embed.weight
    model.load_state_dict({**model.state_dict(), **two_stage.state_dict()})
    two_stage.train(training)
    model.train(training)
    images = model.preprocess(batch())
    with torch.no_grad():
        expected = two_stage.detect(
            images, lambda q: q._replace(content=content[:ONE].expand_as(q.content))
        )
        output = model.detect(images)
        plain = two_stage.detect(images)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.boxes, expected.boxes)
    assert torch.equal(output.encoder.boxes, expected.encoder.boxes)
    assert output.one_to_many is None
    assert not torch.allclose(output.logits, plain.logits, atol=1e-3)
    if training:
        data = batch()
        targets = model.prepare_targets(data)
        losses, wanted = (m.criterion(output, targets) for m in (model, two_stage))
        assert losses.keys() == wanted.keys()
        assert all(torch.equal(losses[name], wanted[name]) for name in wanted)


def test_parameters_of_the_published_model(criterion):
    """47.9 million with 91 classes: 41,181,529 of the two-stage detector, the wider
    feed-forward blocks of 12 layers and the learned content."""
    with torch.device("meta"):
        model = HDeformableDETR(
            backbone=ResNet(depth=50, weights=None, out_stages=(3, 4, 5), allow_random_frozen=True),
            transformer=DeformableTransformer(ffn_dim=2048, dropout=0.0),
            queries=MixedQueries(),
            criterion=HybridCriterion(
                matcher=criterion("focal").matcher, weights=criterion("focal").weights
            ),
            num_classes=91,
            with_box_refine=True,
            look_forward_twice=True,
        )
    found = sum(p.numel() for p in model.parameters())
    assert found == 41_181_529 + 12 * 1024 * (2 * 256 + 1) + 1800 * 256
    assert round(found / 1e5) == 479
