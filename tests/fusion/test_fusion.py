"""The fusion heads, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from frozenfusion.fusion.base import (
    HEADS,
    FeatureHead,
    FusionHead,
    HeadInputs,
    HeadOutput,
    cross_entropy,
    register_head,
)
from frozenfusion.fusion.registry import build_head, head_class, head_names, head_options, unsupported_reason
from frozenfusion.utils.errors import UsageError, UserError

LN2, LN3 = 0.6931471805599453, 1.0986122886681098
TABLE = {
    *("text", "image", "concat", "weighted", "attention", "gated", "transformer", "cross-attention"),
    *("vote", "max", "linear", "hybrid"),
}


def a_head(name: str, width: int = 2, classes: int = 2, text_width: int = 2, **options: object) -> FusionHead:
    torch.manual_seed(0)
    return build_head(head_class(name), width=width, text_width=text_width, classes=classes, **options).eval()


def pair(text: list[float], image: list[float], present: tuple[bool, bool] = (True, True)) -> HeadInputs:
    """One pair as a batch."""
    features = torch.tensor([text, image], dtype=torch.float32)
    return HeadInputs(features[:1], features[1:], torch.tensor([present[0]]), torch.tensor([present[1]]))


def set_(parameter: Tensor, values: object) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(values).expand_as(parameter))


def as_is(*layers: nn.Linear) -> None:
    """Make linear layers hand on what they get."""
    for layer in layers:
        set_(layer.weight, torch.eye(*layer.weight.shape).tolist())
        set_(layer.bias, 0.0)


def random_batch() -> HeadInputs:
    """Pairs with both modalities, the text alone, the image alone, and nothing."""
    random = torch.Generator().manual_seed(1)
    b, tokens, r, d, d_text = 4, 5, 3, 16, 12
    return HeadInputs(
        text=torch.randn(b, d, generator=random),
        image=torch.randn(b, d, generator=random),
        text_present=torch.tensor([True, True, False, False]),
        image_present=torch.tensor([True, False, True, False]),
        text_tokens=torch.randn(b, tokens, d_text, generator=random),
        text_mask=torch.arange(tokens) < torch.tensor([[5], [3], [2], [2]]),
        image_regions=torch.randn(b, r, d, generator=random),
    )


def test_the_registry_holds_every_method_of_the_reference() -> None:
    assert set(head_names()) == TABLE
    for name in head_names():
        assert head_class(name).name == name
        assert head_class(name).__doc__


# Feature level


def test_text_is_a_linear_classifier_on_the_text_alone() -> None:
    head = a_head("text")
    set_(head.classifier.weight, [[1.0, 0.0], [2.0, -1.0]])
    set_(head.classifier.bias, [0.5, 0.0])
    assert_close(head(pair([1, 2], [9, 9])).logits, torch.tensor([[1.5, 0.0]]))
    assert_close(head(pair([1, 2], [9, 9])._replace(image=None)).logits, torch.tensor([[1.5, 0.0]]))


def test_image_is_a_linear_classifier_on_the_image_alone() -> None:
    head = a_head("image")
    set_(head.classifier.weight, [[1.0, 0.0], [2.0, -1.0]])
    set_(head.classifier.bias, [0.5, 0.0])
    assert_close(head(pair([9, 9], [3, 4])._replace(text=None)).logits, torch.tensor([[3.5, 2.0]]))


def test_concat_is_linear_on_text_then_image() -> None:
    head = a_head("concat", classes=3)
    set_(head.classifier.weight, [[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    set_(head.classifier.bias, [0.0, 0.5, 1.0])
    assert_close(head(pair([1, 2], [3, 4])).logits, torch.tensor([[7.0, -1.5, 1.0]]))


def test_concat_puts_a_learned_vector_in_place_of_a_missing_modality() -> None:
    head = a_head("concat", classes=4)
    as_is(head.classifier)
    set_(head.text_missing_embedding, [10.0, 20.0])
    set_(head.image_missing_embedding, [30.0, 40.0])
    assert_close(head(pair([1, 2], [3, 4], (False, True))).logits, torch.tensor([[10.0, 20.0, 3.0, 4.0]]))
    assert_close(head(pair([1, 2], [3, 4], (True, False))).logits, torch.tensor([[1.0, 2.0, 30.0, 40.0]]))
    output = head(pair([1, 2], [3, 4], (False, True)))
    head.loss(output, torch.tensor([0])).backward()
    assert head.text_missing_embedding.grad.abs().sum() > 0


@pytest.mark.parametrize(("alpha", "expected"), [(0.5, [2.0, 3.0]), (0.25, [2.5, 3.5]), (1.0, [1.0, 2.0])])
def test_weighted_combines_with_fixed_weights_that_sum_to_one(alpha: float, expected: list[float]) -> None:
    head = a_head("weighted", alpha=alpha)
    as_is(head.classifier)
    output = head(pair([1, 2], [3, 4]))
    assert_close(output.logits, torch.tensor([expected]))
    assert_close(output.parts["weights"], torch.tensor([[alpha, 1 - alpha]]))


def test_weighted_learns_one_pair_of_weights_between_zero_and_one() -> None:
    head = a_head("weighted", alpha="learned")
    as_is(head.classifier)
    assert_close(head(pair([1, 2], [3, 4])).logits, torch.tensor([[2.0, 3.0]]))  # the mean at first
    set_(head.scores, [0.0, LN3])  # sigmoids 1/2 and 3/4
    output = head(pair([1, 2], [3, 4]))
    assert_close(output.logits, torch.tensor([[2.75, 4.0]]))
    head.loss(output, torch.tensor([0])).backward()
    assert (head.scores.grad != 0).all()


@pytest.mark.parametrize("name", ["weighted", "linear"])
@pytest.mark.parametrize("alpha", [-0.1, 1.5, "much", float("nan")])
def test_a_weight_outside_zero_to_one_is_refused(name: str, alpha: object) -> None:
    with pytest.raises(UserError, match="`alpha="):
        a_head(name, alpha=alpha)


def test_attention_weighs_by_a_softmax_of_additive_scores() -> None:
    head = a_head("attention", hidden=1)
    as_is(head.classifier)
    set_(head.score[0].weight, [[1.0, 0.0]])
    set_(head.score[0].bias, 0.0)
    set_(head.score[2].weight, [[2.0]])
    # scores 2 tanh(0) = 0 and 2 tanh(atanh(0.5)) = 1, so weights 1 / (1 + e) and e / (1 + e)
    output = head(pair([0.0, 1.0], [0.5493061443, -1.0]))
    assert_close(output.parts["weights"], torch.tensor([[0.2689414, 0.7310586]]))
    assert_close(output.logits, torch.tensor([[0.4015750, -0.4621172]]))


def test_gated_weighs_every_dimension_by_a_gate_on_both_features() -> None:
    head = a_head("gated")
    as_is(head.classifier)
    set_(head.text.weight, [[1.0, 0.0], [0.0, 1.0]])
    set_(head.image.weight, [[1.0, 0.0], [0.0, 1.0]])
    set_(head.gate.weight, [[LN3, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])  # gates 3/4 and 1/2
    output = head(pair([1, 0], [0, 1]))
    tanh1 = 0.7615941559
    assert_close(output.logits, torch.tensor([[0.75 * tanh1, 0.5 * tanh1]]))
    assert_close(output.parts["weights"], torch.tensor([[0.625, 0.375]]))


# Sequences. Over two dimensions a layer norm makes (1, -1) or (-1, 1) of any vector.


def as_plain_attention(block: nn.Module, *, feed_forward: bool = False) -> None:
    """Queries and values as they come, keys scaled so that like against unlike is three to one."""
    scale = LN3 * 2**0.5 / 4  # q.k / sqrt(2) is then +-ln(3) / 2
    attention = block.attention
    as_is(attention.query, attention.out)
    set_(attention.key_value.weight, [[scale, 0.0], [0.0, scale], [1.0, 0.0], [0.0, 1.0]])
    set_(attention.key_value.bias, 0.0)
    _, first, _, _, second = block.feed_forward
    for parameter in (first.weight, first.bias, second.weight, second.bias):
        set_(parameter, 0.0)
    if feed_forward:  # gelu of the first dimension is added to the second
        set_(first.weight, [[1.0, 0.0], *[[0.0, 0.0]] * 7])
        set_(second.weight, [[0.0] * 8, [1.0] + [0.0] * 7])


def sequence(text: list[list[float]], mask: list[bool], regions: list[list[float]]) -> HeadInputs:
    yes = torch.tensor([True])
    return HeadInputs(None, None, yes, yes, torch.tensor([text]), torch.tensor([mask]), torch.tensor([regions]))


def test_transformer_reads_cls_over_text_and_image_tokens() -> None:
    head = a_head("transformer", layers=1, heads=1, dropout=0.0)
    as_is(head.project_text, head.classifier)
    as_plain_attention(head.blocks[0], feed_forward=True)
    head.norm = nn.Identity()
    set_(head.cls, [2.0, 0.0])
    set_(head.modality, [[0.0, 0.0], [0.0, 8.0]])
    # normalised: [CLS] (1, -1), text (1, -1), padding masked, image (4, 0) + (0, 8) -> (-1, 1)
    output = head(sequence([[3.0, 1.0], [0.0, 9.0]], [True, False], [[4.0, 0.0]]), attention=True)
    assert_close(output.parts["attention"], torch.tensor([[1 / 7]]))  # 1 of 3 + 3 + 1
    # (2, 0) + 6/7 (1, -1) + 1/7 (-1, 1) = (19/7, -5/7), and gelu(1) on the second dimension
    gelu1 = 0.8413447461
    assert_close(output.logits, torch.tensor([[19 / 7, -5 / 7 + gelu1]]), atol=1e-4, rtol=0)


def test_transformer_layers_before_the_last_change_every_token() -> None:
    head = a_head("transformer", layers=2, heads=1, dropout=0.0)
    as_is(head.project_text, head.classifier)
    for block in head.blocks:
        as_plain_attention(block)
    head.norm = nn.Identity()
    set_(head.cls, [2.0, 0.0])
    set_(head.modality, 0.0)
    # first layer: [CLS], text and image all normalise to (1, -1), so each gets (1, -1): (3, -1), (4, 0), (4, -2)
    # second layer: they still do, so [CLS] gets (1, -1) again
    output = head(sequence([[3.0, 1.0]], [True], [[3.0, -1.0]]), attention=True)
    assert_close(output.logits, torch.tensor([[4.0, -2.0]]), atol=1e-4, rtol=0)
    assert_close(output.parts["attention"], torch.tensor([[1 / 3]]))


def test_cross_attention_reads_text_over_regions_and_regions_over_text() -> None:
    head = a_head("cross-attention", classes=4, layers=1, heads=1, dropout=0.0)
    as_is(head.project_text, head.classifier)
    as_plain_attention(head.text_blocks[0])
    as_plain_attention(head.image_blocks[0])
    head.norm = nn.Identity()
    # normalised: text (1, -1), (-1, 1); regions (1, -1), (-1, 1)
    inputs = sequence([[2.0, 0.0], [0.0, 2.0], [7.0, 5.0]], [True, True, False], [[3.0, 1.0], [1.0, 3.0]])
    output = head(inputs, attention=True)
    assert_close(output.parts["attention"], torch.tensor([[0.75, 0.25]]))
    # text: (2, 0) + 3/4 (1, -1) + 1/4 (-1, 1) = (2.5, -0.5)
    # regions: (3, 1) + (0.5, -0.5) and (1, 3) + (-0.5, 0.5), whose mean is (2, 2)
    assert_close(output.logits, torch.tensor([[2.5, -0.5, 2.0, 2.0]]), atol=1e-4, rtol=0)


def test_attention_in_several_heads_is_that_of_torch() -> None:
    head = a_head("transformer", width=8, layers=1, heads=2, dropout=0.0)
    ours = head.blocks[0].attention
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    queries, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    expected, weights = theirs(queries, context, context, key_padding_mask=~mask)
    assert_close(ours(queries, context, mask), expected)
    assert_close(ours.weights(queries, context, mask), weights)


def test_attention_maps_are_made_only_when_asked_for() -> None:
    for name in ("transformer", "cross-attention"):
        head = a_head(name, 16, 3, 12)
        assert "attention" not in head(random_batch()).parts
        maps = head(random_batch(), attention=True).parts["attention"]
        assert maps.shape == (4, 3)
        assert (maps.sum(dim=1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("name", ["transformer", "cross-attention"])
def test_padding_changes_nothing(name: str) -> None:
    head, batch = a_head(name, 16, 3, 12), random_batch()
    longer = batch._replace(
        text_tokens=torch.cat([batch.text_tokens, torch.full((4, 7, 12), 9.0)], dim=1),
        text_mask=torch.cat([batch.text_mask, torch.zeros(4, 7, dtype=torch.bool)], dim=1),
    )
    assert_close(head(longer).logits, head(batch).logits)


def test_cross_attention_is_refused_where_there_are_no_regions() -> None:
    assert "`pool=none`" in (unsupported_reason(head_class("cross-attention"), regions=0) or "")
    assert unsupported_reason(head_class("cross-attention"), regions=49) is None
    refused = [name for name in head_names() if unsupported_reason(head_class(name), regions=0)]
    assert refused == ["cross-attention"]


# Decision level. The classifiers get log-probabilities and hand them on.

P_TEXT, P_IMAGE = [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]


def decided(name: str, text: list[float], image: list[float], present: tuple[bool, bool] = (True, True), **options):
    head = a_head(name, 3, 3, **options)
    as_is(head.text, head.image)
    inputs = pair(torch.tensor(text).log().tolist(), torch.tensor(image).log().tolist(), present)
    return head, head(inputs)


def joined(name: str, text: list[float], image: list[float], present: tuple[bool, bool] = (True, True), **options):
    return decided(name, text, image, present, **options)[1].logits.exp()


def test_vote_settles_a_tie_by_the_summed_probabilities() -> None:
    # one vote each for classes 0 and 1; sums 0.8, 1.0, 0.2
    assert_close(joined("vote", P_TEXT, P_IMAGE), torch.tensor([[0.45, 0.5, 0.05]]))


def test_vote_follows_the_majority_against_larger_sums() -> None:
    # both vote for class 0
    assert_close(joined("vote", [0.4, 0.35, 0.25], [0.4, 0.25, 0.35]), torch.tensor([[0.7, 0.15, 0.15]]))


@settings(max_examples=100)
@given(st.lists(st.floats(0.01, 1), min_size=8, max_size=8))
def test_the_voted_class_always_has_the_largest_joined_probability(numbers: list[float]) -> None:
    text, image = (torch.tensor(part) / sum(part) for part in (numbers[:4], numbers[4:]))
    head = build_head(head_class("vote"), width=4, text_width=4, classes=4)
    p = head.join(torch.stack([text, image])[None], torch.tensor([[True, True]]))[0]
    votes = {int(text.argmax()), int(image.argmax())}
    expected = max(votes, key=lambda label: float(text[label] + image[label]))
    assert p[expected] >= p.max() - 1e-6
    assert_close(p.sum(), torch.tensor(1.0))


def test_max_takes_the_larger_probability_of_each_class() -> None:
    assert_close(joined("max", P_TEXT, P_IMAGE), torch.tensor([[0.6, 0.7, 0.1]]) / 1.4)


def test_linear_weighs_the_probabilities() -> None:
    assert_close(joined("linear", P_TEXT, P_IMAGE, alpha=0.25), torch.tensor([[0.3, 0.6, 0.1]]))
    assert_close(joined("linear", P_TEXT, P_IMAGE), torch.tensor([[0.4, 0.5, 0.1]]))


def test_linear_learns_its_weight_from_the_joined_decision() -> None:
    head, _ = decided("linear", P_TEXT, P_IMAGE, alpha="learned")
    set_(head.score, -LN3)  # alpha = 1/4
    inputs = pair(torch.tensor(P_TEXT).log().tolist(), torch.tensor(P_IMAGE).log().tolist())
    output = head(inputs)
    assert_close(output.logits.exp(), torch.tensor([[0.3, 0.6, 0.1]]))
    loss = head.loss(output, torch.tensor([1]))
    # -ln 0.3 - ln 0.7 - ln 0.6
    assert_close(loss, -torch.tensor(0.3 * 0.7 * 0.6).log())
    loss.backward()
    # d(-ln(a 0.3 + (1 - a) 0.7))/da = 0.4 / 0.6, times a (1 - a) = 3/16
    assert_close(head.score.grad, torch.tensor(0.4 / 0.6 * 3 / 16))


def test_hybrid_joins_three_classifiers_with_learned_weights() -> None:
    head = a_head("hybrid", 3, 3)
    as_is(head.text, head.image)
    set_(head.joint.weight, 0.0)
    set_(head.joint.bias, torch.tensor([0.1, 0.1, 0.8]).log().tolist())
    set_(head.scores, [LN2, 0.0, 0.0])  # weights 1/2, 1/4, 1/4
    inputs = pair(torch.tensor(P_TEXT).log().tolist(), torch.tensor(P_IMAGE).log().tolist())
    output = head(inputs)
    assert_close(output.logits.exp(), torch.tensor([[0.25, 0.3, 0.45]]))
    assert_close(head.loss(output, torch.tensor([2])), -torch.tensor(0.45 * 0.8 * 0.1 * 0.1).log())
    alone = head(inputs._replace(image_present=torch.tensor([False])))  # weights 2/3, 1/3
    assert_close(alone.logits.exp(), torch.tensor([[0.8 / 3, 0.5 / 3, 1.7 / 3]]))


@pytest.mark.parametrize("name", ["max", "linear"])
def test_a_modality_on_its_own_decides_alone(name: str) -> None:
    assert_close(joined(name, P_TEXT, P_IMAGE, (True, False)), torch.tensor([P_TEXT]))
    assert_close(joined(name, P_TEXT, P_IMAGE, (False, True)), torch.tensor([P_IMAGE]))


def test_a_modality_on_its_own_has_the_only_vote() -> None:
    assert_close(joined("vote", P_TEXT, P_IMAGE, (True, False)), torch.tensor([[0.8, 0.15, 0.05]]))


def test_a_weight_of_zero_does_not_silence_the_only_modality() -> None:
    assert_close(joined("linear", P_TEXT, P_IMAGE, (True, False), alpha=0), torch.tensor([P_TEXT]))


@pytest.mark.parametrize("name", ["vote", "max", "linear"])
def test_without_any_modality_all_classes_are_equally_likely(name: str) -> None:
    assert_close(joined(name, P_TEXT, P_IMAGE, (False, False)), torch.full((1, 3), 1 / 3))


@pytest.mark.parametrize("name", ["vote", "max", "linear", "hybrid"])
def test_joined_logits_are_log_probabilities_even_of_certain_classifiers(name: str) -> None:
    head = a_head(name, 3, 3)
    logits = head(pair([1e4, -1e4, 0], [1e4, -1e4, 0])).logits
    assert logits.isfinite().all()
    assert_close(logits.exp().sum(), torch.tensor(1.0))


def test_each_classifier_learns_from_its_own_pairs_alone() -> None:
    head = a_head("vote", 16, 3)
    batch, labels = random_batch(), torch.tensor([0, 1, 2, 0])
    head.loss(head(batch), labels).backward()
    rows = [0, 1]  # those with a text
    logits = (batch.text[rows] @ head.text.weight.T + head.text.bias).softmax(dim=1)
    expected = (logits - torch.eye(3)[labels[rows]]).T @ batch.text[rows] / 2
    assert_close(head.text.weight.grad, expected)


# Losses


def test_cross_entropy_is_the_weighted_mean_over_labelled_rows() -> None:
    logits = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]).log()
    labels, weight = torch.tensor([0, 1, -1]), torch.tensor([1.0, 3.0])
    assert_close(cross_entropy(logits, labels, None), -torch.tensor([0.5, 0.75]).log().mean())
    expected = -(torch.tensor(0.5).log() + 3 * torch.tensor(0.75).log()) / 4
    assert_close(cross_entropy(logits, labels, weight), expected)
    assert_close(
        cross_entropy(logits[:2], labels[:2], weight), nn.functional.cross_entropy(logits[:2], labels[:2], weight)
    )


def test_a_batch_without_labels_has_no_loss() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([-1, -1]), None)
    loss.backward()
    assert loss == 0
    assert_close(logits.grad, torch.zeros(2, 3))


# All heads


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_head_stays_finite_and_trains_all_its_parameters(name: str) -> None:
    options = {"alpha": "learned"} if "alpha" in head_options(head_class(name)) else {}
    head = a_head(name, 16, 3, 12, **options).train()
    output = head(random_batch())
    assert output.logits.shape == (4, 3)
    assert output.logits.dtype == torch.float32
    assert output.logits.isfinite().all()
    head.loss(output, torch.tensor([0, 1, 2, 0]), torch.tensor([1.0, 2.0, 0.5])).backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_is_missing_is_not_looked_at(name: str) -> None:
    head, batch = a_head(name, 16, 3, 12), random_batch()
    hidden = batch._replace(
        text=batch.text.clone().index_fill_(0, torch.tensor([2, 3]), 7.0),
        text_tokens=batch.text_tokens.clone().index_fill_(0, torch.tensor([2, 3]), 7.0),
        image=batch.image.clone().index_fill_(0, torch.tensor([1, 3]), 7.0),
        image_regions=batch.image_regions.clone().index_fill_(0, torch.tensor([1, 3]), 7.0),
    )
    assert_close(head(hidden).logits, head(batch).logits)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_pair_is_classified_alike_in_any_company(name: str) -> None:
    head, batch = a_head(name, 16, 3, 12), random_batch()
    together = head(batch).logits
    for row in range(4):
        alone = HeadInputs(*(part[row : row + 1] for part in batch))
        assert_close(head(alone).logits, together[row : row + 1])


@pytest.mark.parametrize("name", sorted(TABLE))
def test_logits_are_float32_under_mixed_precision(name: str) -> None:
    head = a_head(name, 16, 3, 12)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(random_batch(), attention=True)
    assert output.logits.dtype == torch.float32
    assert_close(output.logits, head(random_batch()).logits, atol=0.1, rtol=0.1)


# The registry


@pytest.fixture
def name() -> Iterator[str]:
    """A head's name that is free, and is so again after the test."""
    yield "product"
    HEADS.remove("product")


def test_a_new_head_takes_one_class(name: str) -> None:
    @register_head(name)
    class Product(FeatureHead):
        """Element-wise product of text and image: `t * v -> linear`."""

        def __init__(self, *, width: int, text_width: int, classes: int) -> None:
            super().__init__(width)
            self.classifier = nn.Linear(width, classes)

        def forward(self, inputs: HeadInputs, *, attention: bool = False) -> HeadOutput:
            text, image = self.fill(inputs)
            return HeadOutput(self.classifier(text * image))

    assert head_class(name) is Product
    assert Product.name == name
    head = build_head(Product, width=2, text_width=2, classes=2)
    as_is(head.classifier)
    assert_close(head(pair([1, 2], [3, 4])).logits, torch.tensor([[3.0, 8.0]]))


def test_two_heads_cannot_have_one_name(name: str) -> None:
    class Sum(FeatureHead):
        pass

    class Product(FeatureHead):
        pass

    register_head(name)(Sum)
    register_head(name)(Sum)  # the same class, as when its module is imported again
    with pytest.raises(UsageError, match="two fusion heads"):
        register_head(name)(Product)
    assert head_class(name) is Sum


def test_an_unknown_head_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"sum: no such fusion head: choose from text, .*hybrid"):
        a_head("sum")


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"concat: no option 'alpha': its options are: none"):
        a_head("concat", alpha=0.5)
    with pytest.raises(UserError, match=r"multiple of heads"):
        a_head("transformer", width=10, heads=4)
    assert head_options(head_class("transformer")) == {"layers": 2, "heads": 8, "dropout": 0.1}
