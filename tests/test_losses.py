"""prefrec.losses against published vectors, the formula of the paper and its algebra."""

import inspect
import json
import math
import os
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from loss_cases import ALL_LOSSES, LAB_LOSSES, columns_for, drawn, rows_of
from prefrec import losses
from prefrec.losses import (
    LOSSES,
    dpo_loss,
    find_loss,
    loss_by_size,
    needs_reference,
    softmax_dpo_loss,
)

SHARED = Path(os.environ.get("PREFREC_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
VECTORS = SHARED.parent / "vectors" / "sdpo_loss_cases.json"
NEEDED = "needs vectors/ beside the folder that PREFREC_SHARED_DATA names (default: ../shared/data)"


@st.composite
def choice_logps(draw):
    b, c = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    values = st.lists(st.floats(-60.0, 0.0), min_size=b * c, max_size=b * c)
    return tuple(torch.tensor(draw(values), dtype=torch.float64).view(b, c) for _ in range(2))


def written_form(policy: Tensor, ref: Tensor, beta: float) -> Tensor:
    """The slow twin: the loss as the paper writes it, term by term (overflows for large gaps)."""
    chosen, *rejected = (beta * (p - r) for p, r in zip(policy.T, ref.T, strict=True))
    return -torch.nn.functional.logsigmoid(-torch.log(sum(torch.exp(x - chosen) for x in rejected)))


@pytest.mark.skipif(not VECTORS.exists(), reason=NEEDED)
def test_agrees_with_published_vectors():
    cases = json.loads(VECTORS.read_text())["cases"]
    assert cases
    for case in cases:
        policy = torch.tensor(case["policy_logps"], dtype=torch.float64, requires_grad=True)
        ref = torch.tensor(case["ref_logps"], dtype=torch.float64)
        out = softmax_dpo_loss(policy, ref, case["beta"])
        out.losses.mean().backward()
        assert_close(out.losses.tolist(), case["losses"], rtol=0, atol=1e-9)
        assert_close(out.rewards[:, 0].tolist(), case["chosen_rewards"], rtol=0, atol=1e-9)
        assert_close(out.rewards[:, 1:].tolist(), case["rejected_rewards"], rtol=0, atol=1e-9)
        assert policy.grad is not None
        assert_close(policy.grad.tolist(), case["grad_policy_logps"], rtol=0, atol=1e-9)


@given(choice_logps(), st.floats(0.05, 3.0))
def test_equals_the_written_form(pair, beta):
    policy, ref = pair
    assert_close(softmax_dpo_loss(policy, ref, beta).losses, written_form(policy, ref, beta))


@given(choice_logps(), st.floats(0.05, 3.0), st.randoms())
def test_order_of_negatives_does_not_matter(pair, beta, rnd):
    policy, ref = pair
    order = list(range(1, policy.shape[1]))
    rnd.shuffle(order)
    columns = [0, *order]
    for loss in ALL_LOSSES.values():
        more = columns_for(loss, policy.shape)
        changed = {column: numbers[:, columns] for column, numbers in more.items()}
        moved = loss(policy[:, columns], ref[:, columns], beta, **changed).losses
        assert_close(loss(policy, ref, beta, **more).losses, moved, atol=1e-8, rtol=1e-8)


@given(choice_logps(), st.floats(0.05, 3.0))
def test_is_log_of_choices_at_the_reference(pair, beta):
    policy, _ = pair
    expected = torch.full((policy.shape[0],), math.log(policy.shape[1]), dtype=torch.float64)
    assert_close(softmax_dpo_loss(policy, policy, beta).losses, expected)


@given(choice_logps(), st.floats(0.05, 3.0))
def test_one_negative_is_dpo_and_dmpo(pair, beta):
    policy, ref = (x[:, :2] for x in pair)
    softmax = softmax_dpo_loss(policy, ref, beta).losses
    assert_close(softmax, dpo_loss(policy, ref, beta).losses)
    assert_close(softmax, losses.dmpo_loss(policy, ref, beta).losses)


@given(choice_logps(), st.floats(0.05, 3.0))
def test_gradient_is_the_papers(pair, beta):
    policy, ref = pair[0].clone().requires_grad_(), pair[1]
    out = softmax_dpo_loss(policy, ref, beta)
    out.losses.sum().backward()
    p = torch.softmax(out.rewards.detach(), dim=1)
    w = torch.softmax(out.rewards.detach()[:, 1:], dim=1)
    pull = torch.cat([torch.ones_like(w[:, :1]), -w], dim=1)
    assert_close(policy.grad, -beta * (1 - p[:, :1]) * pull, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ALL_LOSSES)
@pytest.mark.parametrize("gap", [-10_000.0, 10_000.0])
def test_finite_for_huge_gaps_in_float32(name, gap):
    policy = torch.tensor([[0.0, gap, gap / 2], [gap, 0.0, 0.0]], requires_grad=True)
    more = {column: numbers.float() for column, numbers in columns_for(ALL_LOSSES[name], policy.shape).items()}
    out = ALL_LOSSES[name](policy, torch.zeros(2, 3), 1.0, **more)
    out.losses.mean().backward()
    assert torch.isfinite(out.losses).all()
    assert policy.grad is not None
    assert torch.isfinite(policy.grad).all()


def test_exploded_pairs_are_the_mean_of_dpo():
    policy, ref = torch.randn(3, 5), torch.randn(3, 5)
    pairs = [dpo_loss(policy[:, [0, i]], ref[:, [0, i]], 0.5).losses for i in range(1, 5)]
    assert_close(dpo_loss(policy, ref, 0.5).losses, torch.stack(pairs).mean(dim=0))


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_losses_without_a_reference_are_their_formulas(beta):
    policy = torch.randn(3, 5, dtype=torch.float64)
    gaps = [[beta * (float(row[i]) - float(row[0])) for i in range(1, 5)] for row in policy]
    bpr = [sum(math.log1p(math.exp(gap)) for gap in row) / 4 for row in gaps]
    softmax = [math.log1p(sum(math.exp(gap) for gap in row)) for row in gaps]
    sft = [-float(row[0]) for row in policy]
    for name, want in (("bpr", bpr), ("softmax", softmax), ("sft", sft)):
        out = LOSSES[name](policy, None, beta)
        assert_close(out.losses, torch.tensor(want, dtype=torch.float64))
        assert_close(out.rewards, beta * policy)


@pytest.mark.parametrize("name", ["bpr", "softmax", "sft"])
def test_beta_is_one_where_there_is_no_reference(name):
    policy = torch.randn(3, 5)
    assert_close(LOSSES[name](policy).losses, LOSSES[name](policy, None, 1.0).losses)
    assert_close(LOSSES[name](policy).rewards, policy)


def test_dmpo_compares_with_the_mean_of_the_rejected_answers():
    policy, ref = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    rewards = [[0.7 * float(p - r) for p, r in zip(*rows, strict=True)] for rows in zip(policy, ref, strict=True)]
    want = [math.log1p(math.exp(sum(row[1:]) / 4 - row[0])) for row in rewards]
    out = losses.dmpo_loss(policy, ref, 0.7)
    assert_close(out.losses, torch.tensor(want, dtype=torch.float64))
    assert_close(out.rewards, torch.tensor(rewards, dtype=torch.float64))


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_rows_of_different_sizes_are_those_of_each_row_alone(name):
    """Absent answers are −inf, as `choice_logps` returns them."""
    sizes, loss = [3, 5, 2, 3], ALL_LOSSES[name]
    absent = torch.tensor([[column >= size for column in range(5)] for size in sizes])
    policy, ref = (torch.randn(4, 5, dtype=torch.float64).masked_fill(absent, -torch.inf) for _ in range(2))
    policy.requires_grad_()
    more = columns_for(loss, policy.shape)
    out = loss_by_size(loss, policy, ref, 0.7, sizes, **more)
    (grad,) = torch.autograd.grad(out.losses.sum(), policy)
    for row, size in enumerate(sizes):
        alone = policy[row : row + 1, :size].detach().requires_grad_()
        own = {column: numbers[row : row + 1, :size] for column, numbers in more.items()}
        want = loss(alone, ref[row : row + 1, :size], 0.7, **own)
        (want_grad,) = torch.autograd.grad(want.losses.sum(), alone)
        assert_close(out.losses[row], want.losses[0])
        assert_close(out.rewards[row, :size], want.rewards[0])
        assert_close(grad[row, :size], want_grad[0])
    assert out.rewards[absent].isneginf().all()
    assert (grad[absent] == 0).all()


@pytest.mark.parametrize("name", ["bpr", "softmax", "sft", "softmax_logq", "simpo", "weighted_sft"])
def test_reference_free_losses_ignore_the_reference(name):
    policy = torch.randn(3, 5)
    loss = ALL_LOSSES[name]
    more = columns_for(loss, policy.shape)
    one, two = (loss(policy, ref, 1.0, **more).losses for ref in (None, torch.randn(3, 5)))
    assert_close(one, two)
    assert not needs_reference(loss)


@pytest.mark.parametrize("name", ["softmax_dpo", "dpo", "dmpo", "mult_dpo", "recpo", "dynamicpo", "expected_reward"])
def test_other_losses_need_a_reference(name):
    loss = ALL_LOSSES[name]
    assert needs_reference(loss)
    policy = torch.randn(3, 5)
    with pytest.raises(ValueError, match="this loss needs ref_logps"):
        loss(policy, None, 1.0, **columns_for(loss, policy.shape))


@pytest.mark.parametrize("link", ["softmax", "pairwise", "mean"])
@pytest.mark.parametrize("has_reference", [True, False])
def test_each_knob_is_its_formula(link, has_reference):
    """The twin leaves out rejected answers of margin −inf before it computes anything."""
    policy, ref, _ = drawn()
    margin = torch.randn_like(policy)
    margin[:, 2] = margin[::2, 4] = -torch.inf
    reference = ref if has_reference else None
    found = losses.preference_loss(policy, reference, 0.7, margin=margin, link=link)
    for row, (p, q, m) in enumerate(rows_of(policy, ref, margin)):
        ratios = [x - (y if has_reference else 0.0) for x, y in zip(p, q, strict=True)]
        kept = [i for i in range(1, 6) if m[i] > -math.inf]
        gaps = [0.7 * (ratios[i] - ratios[0]) + m[i] - m[0] for i in kept]
        want = {
            "softmax": math.log(1 + sum(map(math.exp, gaps))),
            "pairwise": sum(math.log1p(math.exp(gap)) for gap in gaps) / len(gaps),
            "mean": math.log1p(math.exp(sum(gaps) / len(gaps))),
        }[link]
        assert found.losses[row].item() == pytest.approx(want, rel=1e-8)
        assert found.rewards[row].tolist() == pytest.approx([0.7 * ratio for ratio in ratios])


@pytest.mark.parametrize("link", ["softmax", "pairwise", "mean"])
def test_an_example_without_rejected_answers_has_no_loss_and_no_gradient(link):
    policy = torch.randn(2, 4, requires_grad=True)
    margin = torch.zeros(2, 4)
    margin[0, 1:] = -torch.inf
    found = losses.preference_loss(policy, None, 1.0, margin=margin, link=link)
    found.losses.sum().backward()
    assert found.losses[0] == 0 < found.losses[1]
    assert (policy.grad[0] == 0).all()
    assert (policy.grad[1] != 0).all()


def test_an_unknown_link_is_named():
    with pytest.raises(ValueError, match="link 'hinge' is unknown: expected softmax, pairwise or mean"):
        losses.preference_loss(*drawn()[:2], 1.0, link="hinge")


@pytest.mark.parametrize(
    ("name", "defaults"),
    [("recpo", {"margin": 2.0}), ("dynamicpo", {"margin": 6.0})]
    + [(name, {"beta": 1.0}) for name in ("softmax_logq", "weighted_sft")]
    + [("simpo", {"beta": 2.0, "margin": 1.0, "sft_weight": 0.0})],
)
def test_defaults_are_those_of_the_papers(name, defaults):
    policy, ref, _ = drawn()
    loss = ALL_LOSSES[name]
    given = {"beta": 0.7, **columns_for(loss, policy.shape)}
    without = {key: value for key, value in given.items() if key not in defaults}
    assert loss(policy, ref, **without).losses.equal(loss(policy, ref, **given | defaults).losses)


def test_options_of_a_loss_are_its_own():
    policy, ref, ratings = drawn()
    simpo = LAB_LOSSES["simpo"]
    bound = losses.with_options(simpo, margin=0.5, sft_weight=None)
    want = simpo(policy, ref, 0.7, lengths=ratings, margin=0.5).losses
    assert bound(policy, ref, 0.7, lengths=ratings).losses.equal(want)
    assert not needs_reference(bound)
    assert losses.with_options(dpo_loss, margin=None) is dpo_loss
    with pytest.raises(ValueError, match="loss dpo_loss has no margin: remove this setting"):
        losses.with_options(dpo_loss, margin=1.0)


def test_a_sum_of_losses_is_weighted_and_asks_for_what_its_parts_ask_for():
    policy, ref, ratings = drawn()
    parts = [LAB_LOSSES["simpo"], LAB_LOSSES["recpo"], dpo_loss]
    total = losses.sum_of_losses(parts, [0.5, 2.0, 3.0], margin=1.5, sft_weight=0.3, label_smoothing=None)
    out = total(policy, ref, 0.7, scores=ratings, lengths=ratings + 1)
    first = LAB_LOSSES["simpo"](policy, None, 0.7, lengths=ratings + 1, margin=1.5, sft_weight=0.3)
    second = LAB_LOSSES["recpo"](policy, ref, 0.7, scores=ratings, margin=1.5).losses
    assert_close(out.losses, 0.5 * first.losses + 2 * second + 3 * dpo_loss(policy, ref, 0.7).losses)
    assert out.rewards.equal(first.rewards)
    assert str(inspect.signature(total)) == "(policy_logps, ref_logps, *, beta, lengths, scores)"
    free = losses.sum_of_losses([LOSSES["bpr"], LOSSES["sft"]], [1.0, 1.0])
    assert str(inspect.signature(free)) == "(policy_logps, ref_logps=None, *, beta)"
    assert_close(free(policy, None, 1.0).losses, LOSSES["bpr"](policy).losses - policy[:, 0])
    with pytest.raises(ValueError, match=r"^none of the losses has label_smoothing: remove this setting$"):
        losses.sum_of_losses(parts, [1.0, 1.0, 1.0], margin=1.5, label_smoothing=0.1)
    with pytest.raises(ValueError, match="zip"):
        losses.sum_of_losses(parts, [1.0, 1.0])(policy, ref, 0.7, scores=ratings, lengths=ratings)


def test_a_function_is_its_own_loss():
    assert find_loss(softmax_dpo_loss) is softmax_dpo_loss
    assert (losses.loss_name(softmax_dpo_loss), losses.loss_name("dpo")) == ("softmax_dpo_loss", "dpo")
    assert losses.loss_name(["dpo", softmax_dpo_loss]) == "dpo+softmax_dpo_loss"


class Summed:
    def __call__(self, policy, ref, beta):
        return losses.PreferenceLoss(policy.sum(1), policy)


def test_an_object_that_is_called_has_the_name_of_its_class():
    assert losses.loss_name(Summed()) == "Summed"
    assert needs_reference(Summed())


def test_losses_of_other_packages_are_found_by_name(monkeypatch):
    names = {"summed": f"{__name__}:Summed", "other": "nowhere:f"}
    monkeypatch.setattr(losses, "entry_points", lambda group: [EntryPoint(*of, group) for of in names.items()])
    monkeypatch.setattr(EntryPoint, "load", lambda entry: (entry.name, entry.group))
    assert find_loss("summed") == ("summed", "prefrec.losses")
    assert find_loss("dpo") is dpo_loss
    message = r"'sum' is unknown: expected one of softmax_dpo, dpo, .*sft, summed, other; did you mean summed\?$"
    with pytest.raises(ValueError, match=message):
        find_loss("sum")
    names |= {"nca": "of_lab:nca_loss"}
    assert find_loss("nca_pair") == find_loss("nca") == ("nca", "prefrec.losses")


@pytest.mark.parametrize("name", LAB_LOSSES)
def test_a_loss_of_the_lab_is_named_where_the_lab_is_not_installed(name, monkeypatch):
    monkeypatch.setattr(losses, "entry_points", lambda group: [])
    message = rf"loss '{name}' is unknown: .*; others come with prefrec-lab: `pip install \./lab` in a clone$"
    with pytest.raises(ValueError, match=message):
        find_loss(name)


def test_rows_of_one_size_are_passed_on_as_they_are():
    policy, ref, scores = torch.randn(3, 5), torch.randn(3, 5), torch.rand(3, 5)
    out, want = loss_by_size(dpo_loss, policy, ref, 0.7, [5, 5, 5]), dpo_loss(policy, ref, 0.7)
    assert_close((out.losses, out.rewards), (want.losses, want.rewards))
    softmax_logq = LAB_LOSSES["softmax_logq"]
    out = loss_by_size(softmax_logq, policy, ref, 0.7, [5, 5, 5], scores=scores)
    assert out.losses.equal(softmax_logq(policy, ref, 0.7, scores=scores).losses)


def test_rows_of_one_size_may_be_padded():
    policy, ref, _ = drawn()
    out, want = loss_by_size(dpo_loss, policy, ref, 0.7, [4] * len(policy)), dpo_loss(policy[:, :4], ref[:, :4], 0.7)
    assert_close(out.losses, want.losses)
    assert_close(out.rewards[:, :4], want.rewards)
    assert out.rewards[:, 4:].isneginf().all()


def test_a_loss_of_one_argument_is_named():
    def plain(policy_logps):
        return policy_logps.mean()

    with pytest.raises(TypeError, match=r"plain takes 1 argument; a loss takes \(policy_logps, ref_logps, beta\)"):
        needs_reference(plain)


def test_rows_of_different_sizes_need_no_reference_for_a_loss_without_one():
    policy = torch.tensor([[-1.0, -2.0, -torch.inf], [-1.0, -3.0, -2.0]])
    out = loss_by_size(LOSSES["bpr"], policy, None, 1.0, [2, 3])
    pairs = math.log1p(math.exp(-1)), math.log1p(math.exp(-2))
    assert_close(out.losses, torch.tensor([pairs[0], sum(pairs) / 2]))
    assert_close(out.rewards, policy)


def test_effective_negatives_counts_equal_and_single():
    rewards = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 50.0, 0.0, 0.0]])
    assert_close(losses.effective_negatives(rewards), torch.tensor([3.0, 1.0]))


@pytest.mark.parametrize(
    ("policy", "ref", "beta", "message"),
    [(torch.zeros(2, 3), torch.zeros(2, 4), 1.0, "the same shape")]
    + [(torch.zeros(shape), torch.zeros(shape), 1.0, "at least one negative") for shape in ((2, 1), 3)]
    + [(torch.zeros(2, 3), torch.zeros(2, 3), beta, "beta must be positive") for beta in (0.0, math.nan)],
)
@pytest.mark.parametrize("name", ["softmax_dpo", "ipo", "robust", "nca", "expected_reward"])
def test_bad_arguments_are_named(name, policy, ref, beta, message):
    with pytest.raises(ValueError, match=message):
        ALL_LOSSES[name](policy, ref, beta, **columns_for(ALL_LOSSES[name], policy.shape))


@pytest.mark.parametrize("sizes", [[3, 3], [3, 2]])
def test_a_loss_that_returns_a_tensor_is_named(sizes):
    def plain(policy_logps, ref_logps=None, beta=1.0):
        return policy_logps.mean()

    with pytest.raises(TypeError, match=r"loss .*plain returned a Tensor; return prefrec\.losses\.Pref"):
        loss_by_size(plain, torch.zeros(2, 3), None, 1.0, sizes)

    def mean(policy_logps, ref_logps=None, beta=1.0):
        return losses.PreferenceLoss(policy_logps.mean(), policy_logps)

    def margins(policy_logps, ref_logps=None, beta=1.0):
        gaps = policy_logps[:, :1] - policy_logps[:, 1:]
        return losses.PreferenceLoss(gaps.sum(dim=1), gaps)

    with pytest.raises(
        TypeError, match=r"margins returned .* rewards of shape \[\d, 2\]; .*rewards of shape \[\d, 3\]"
    ):
        loss_by_size(margins, torch.zeros(2, 3), None, 1.0, [3, 3])

    with pytest.raises(TypeError, match=r"mean returned losses of shape \[\] and .*; .*losses of shape \[\d\]"):
        loss_by_size(mean, torch.zeros(2, 3), None, 1.0, sizes)
