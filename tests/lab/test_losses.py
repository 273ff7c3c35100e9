"""prefrec_lab.losses against their formulas, and in recipes by their names."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from loss_cases import LAB_LOSSES, drawn, rows_of
from prefrec.losses import dpo_loss, find_loss, softmax_dpo_loss
from prefrec.sections import AlignSection
from prefrec.stages.inputs import RunInputs
from prefrec.stages.negatives import answer_scores, log_rows
from prefrec.stages.train import train_align
from prefrec_lab.losses import (
    dynamicpo_loss,
    expected_reward_loss,
    ipo_loss,
    mult_dpo_loss,
    nca_loss,
    recpo_loss,
    robust_loss,
    simpo_loss,
    softmax_logq_loss,
    weighted_sft_loss,
)
from tiny_run import RATED


def marginal_plackett_luce(weights: list[float], preferred: list[int]) -> float:
    """−log of the chance that the preferred answers come first, summed over all their orders."""
    total = 0.0
    for order in itertools.permutations(preferred):
        left, chance = sum(weights), 1.0
        for i in order:
            chance *= weights[i] / left
            left -= weights[i]
        total += chance
    return -math.log(total)


def test_mult_dpo_of_two_levels_is_the_multinomial_likelihood_and_bounds_that_of_all_orders():
    policy, ref, ratings = drawn()
    scores = (ratings > 3).double()
    scores[:, 0], scores[:, 1] = 1, 0
    found = mult_dpo_loss(policy, ref, 0.7, scores=scores)
    for row, (p, q, s) in enumerate(rows_of(policy, ref, scores)):
        weights = [math.exp(0.7 * (x - y)) for x, y in zip(p, q, strict=True)]
        preferred = [i for i, score in enumerate(s) if score]
        want = -sum(math.log(weights[i] / sum(weights)) for i in preferred)
        assert found.losses[row].item() == pytest.approx(want)
        assert marginal_plackett_luce(weights, preferred) <= want - math.log(math.factorial(len(preferred))) + 1e-12
    assert_close(found.rewards, 0.7 * (policy - ref))


def test_mult_dpo_of_more_levels_is_the_sum_over_levels_each_without_those_above():
    policy, ref, ratings = drawn()
    ratings[3] = 4.0  # one level alone: nothing to compare
    found = mult_dpo_loss(policy, ref, 0.7, scores=ratings).losses
    for row, (p, q, s) in enumerate(rows_of(policy, ref, ratings)):
        weights, want = [math.exp(0.7 * (x - y)) for x, y in zip(p, q, strict=True)], 0.0
        for level in sorted(set(s))[1:]:
            total = sum(w for w, score in zip(weights, s, strict=True) if score <= level)
            want -= sum(math.log(w / total) for w, score in zip(weights, s, strict=True) if score == level)
        assert found[row].item() == pytest.approx(want, abs=1e-12)
    assert found[3] == 0


def test_mult_dpo_of_one_answer_above_the_others_is_softmax_dpo():
    policy, ref, _ = drawn()
    scores = torch.zeros_like(policy)
    scores[:, 0] = 1
    found = mult_dpo_loss(policy, ref, 0.7, scores=scores).losses
    assert found.equal(softmax_dpo_loss(policy, ref, 0.7).losses)


def test_recpo_has_margins_by_the_ratio_of_utilities():
    policy, ref, ratings = drawn()
    found = recpo_loss(policy, ref, 0.7, scores=ratings, margin=1.5).losses
    for row, (p, q, s) in enumerate(rows_of(policy, ref, ratings)):
        r = [0.7 * (x - y) for x, y in zip(p, q, strict=True)]
        want = math.log1p(sum(math.exp(r[i] - r[0] + 1.5 * s[0] / s[i]) for i in range(1, 6)))
        assert found[row].item() == pytest.approx(want)
    found = recpo_loss(policy, ref, 0.7, scores=ratings, margin=0.0).losses
    assert_close(found, softmax_dpo_loss(policy, ref, 0.7).losses)


def hard_ones(p: list[float]) -> list[int]:
    """Rejected answers at least as likely as the chosen one, or the highest cluster of the best of all partitions."""
    if hard := [i for i in range(1, len(p)) if p[i] >= p[0]]:
        return hard
    found = []
    for labels in itertools.product(range(min(3, len(p) - 1)), repeat=len(p) - 1):
        clusters = [[p[i + 1] for i, own in enumerate(labels) if own == label] for label in set(labels)]
        spread = sum((x - sum(c) / len(c)) ** 2 for c in clusters for x in c)
        top = max(range(len(labels)), key=lambda i: p[i + 1])
        found.append((spread, [i + 1 for i, own in enumerate(labels) if own == labels[top]]))
    return min(found)[1]


@pytest.mark.parametrize("answers", [2, 3, 4, 7])
def test_dynamicpo_is_dmpo_on_hard_negatives_with_their_own_beta(answers):
    policy, ref, _ = drawn(60, answers)
    policy[::2, 0] += 8  # every second chosen answer is the likeliest
    policy.requires_grad_()
    found = dynamicpo_loss(policy, ref, 0.7, margin=2.0)
    assert (policy[:, 1:] >= policy[:, :1]).any(dim=1).sum() in range(10, 31)
    (grad,) = torch.autograd.grad(found.losses.sum(), policy)
    for row, (p, q) in enumerate(rows_of(policy, ref)):
        hard = hard_ones(p)
        easy = [i for i in range(1, answers) if i not in hard] or hard
        mean = sum(p[i] for i in easy) / len(easy)
        x, slopes = 0.0, [0.0] * answers
        for i in hard:
            a, b = p[0] - p[i], p[i] - mean
            beta = 0.7 * (1 + 0.5 * math.tanh((a - b - 2.0) / (abs(a) + abs(b))))
            x += beta * ((p[i] - q[i]) - (p[0] - q[0])) / len(hard)
            slopes[i], slopes[0] = beta / len(hard), slopes[0] - beta / len(hard)
        assert found.losses[row].item() == pytest.approx(math.log1p(math.exp(x)), rel=1e-8)
        assert grad[row].tolist() == pytest.approx([s / (1 + math.exp(-x)) for s in slopes], rel=1e-6)
    assert_close(found.rewards, 0.7 * (policy - ref))


def test_a_rejected_answer_as_likely_as_the_chosen_one_is_hard():
    policy, ref = torch.tensor([[-1.0, -1.0, -1.1, -5.0, -9.0]]), torch.tensor([[-2.0, -4.0, -1.0, -1.0, -1.0]])
    only = dynamicpo_loss(policy, ref, 1.0, margin=0.0).losses
    other = dynamicpo_loss(policy, ref - torch.tensor([0.0, 0.0, 9.0, 9.0, 9.0]), 1.0, margin=0.0).losses
    assert only.equal(other)


def test_expected_reward_is_that_of_draws_and_its_optimum_is_known():
    policy, ref, ratings = drawn(answers=4)
    found = expected_reward_loss(policy, ref, 0.7, scores=ratings)
    for row, (p, q, s) in enumerate(rows_of(policy, ref, ratings)):
        chance, base = ([math.exp(x) / sum(map(math.exp, logps)) for x in logps] for logps in (p, q))
        deviation = math.sqrt(sum((x - sum(s) / 4) ** 2 for x in s) / 3)
        advantages = [(x - sum(s) / 4) / (deviation + 1e-4) for x in s]
        kl = sum(a * math.log(a / b) for a, b in zip(chance, base, strict=True))
        want = 0.7 * kl - sum(a * b for a, b in zip(chance, advantages, strict=True))
        assert found.losses[row].item() == pytest.approx(want, abs=1e-12)
    assert_close(found.rewards, 0.7 * (policy - ref))
    advantages = (ratings - ratings.mean(1, True)) / (ratings.std(1, keepdim=True) + 1e-4)
    best = (ref + advantages / 0.7).requires_grad_()
    expected_reward_loss(best, ref, 0.7, scores=ratings).losses.sum().backward()
    assert_close(best.grad, torch.zeros_like(ref))
    assert torch.isfinite(expected_reward_loss(policy, ref, 0.7, scores=torch.ones_like(ref)).losses).all()


def test_weighted_sft_weighs_the_chosen_answer_by_the_exponential_of_its_score():
    policy, _, ratings = drawn()
    found = weighted_sft_loss(policy, None, 2.0, scores=ratings)
    assert found.losses.tolist() == pytest.approx([-math.exp(s[0] / 2.0) * p[0] for p, s in rows_of(policy, ratings)])
    assert_close(found.rewards, policy)


@pytest.mark.parametrize("name", LAB_LOSSES)
def test_a_name_in_a_recipe_is_found_by_the_entry_point(name):
    """It needs prefrec-lab to be installed, not only to be on the path."""
    assert find_loss(name) is LAB_LOSSES[name]
    assert AlignSection(loss=name, negatives_from="uniform").loss == name


def test_an_alignment_gets_the_ratings_and_the_margin_of_a_loss_of_the_lab(rated_recipe, rated, tmp_path):
    section = AlignSection(**RATED | {"loss": "recpo", "margin": 1.0, "eval_rows": 4, "eval_steps": 2})
    rows = log_rows(rated, section, 0)
    assert answer_scores(rows, rated, section)[0][0] == 5
    train_align(RunInputs(rated, "", rated_recipe.model, rated_recipe.lora, 0), section, None, tmp_path)
    assert '"eval_loss"' in (tmp_path / "log.json").read_text()


def test_mult_dpo_compares_all_liked_items_of_a_block_with_the_disliked_ones(rated):
    rows = log_rows(rated, AlignSection(**RATED | {"loss": "mult_dpo", "num_negatives": 9}), 0)
    log = rated.train_interactions.select("user_id", "item_id", "rating")
    ratings = {(user, item): rating for user, item, rating in log.iter_rows()}
    of_rows = [sorted(ratings[row.user_id, item] for item in row.candidates) for row in rows]
    assert any(of_row[-2] == 5 for of_row in of_rows)
    assert all(of_row[0] <= 2 and of_row[-1] == 5 for of_row in of_rows)


def test_losses_of_trl_are_its_formulas():
    """Its code for a pair, the mean of it over pairs; NCA (arXiv 2402.05369) with all reward on the chosen one."""
    policy, ref = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    lengths, beta, flipped = torch.tensor([[2.0, 1.0, 4.0, 3.0]] * 3, dtype=torch.float64), 0.7, 0.2
    log_sigmoid = lambda x: -math.log1p(math.exp(-x))  # noqa: E731
    ipo, robust, nca = [], [], []
    for row in (policy - ref).tolist():
        per_token = [h / n for h, n in zip(row, lengths[0].tolist(), strict=True)]
        ipo.append(sum((per_token[0] - h - 1 / (2 * beta)) ** 2 for h in per_token[1:]) / 3)
        gaps = [beta * (row[0] - h) for h in row[1:]]
        pairs = [((1 - flipped) * -log_sigmoid(g) + flipped * log_sigmoid(-g)) / (1 - 2 * flipped) for g in gaps]
        robust.append(sum(pairs) / 3)
        nca.append(-log_sigmoid(beta * row[0]) - sum(log_sigmoid(-beta * h) for h in row) / 4)
    for want, out in (
        (ipo, ipo_loss(policy, ref, beta, lengths=lengths)),
        (robust, robust_loss(policy, ref, beta, label_smoothing=flipped)),
        (nca, nca_loss(policy, ref, beta)),
    ):
        assert_close(out.losses, torch.tensor(want, dtype=torch.float64))
        assert_close(out.rewards, beta * (policy - ref))
    for share in (-0.1, 0.5):
        with pytest.raises(ValueError, match=f"label_smoothing must be at least 0 and below 0.5, got {share}"):
            robust_loss(policy, ref, beta, label_smoothing=share)
    assert_close(robust_loss(policy, ref, beta, label_smoothing=0.0).losses, dpo_loss(policy, ref, beta).losses)


@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_simpo_is_its_formula_and_adds_the_sft_term_of_cpo(sft_weight):
    policy, _, lengths = drawn()
    found = simpo_loss(policy, None, 2.5, lengths=lengths, margin=1.3, sft_weight=sft_weight)
    for row, (p, n) in enumerate(rows_of(policy, lengths)):
        r = [2.5 * x / length for x, length in zip(p, n, strict=True)]
        want = math.log1p(sum(math.exp(r[i] - r[0] + 1.3) for i in range(1, 6))) - sft_weight * p[0]
        assert found.losses[row].item() == pytest.approx(want)
        assert found.rewards[row].tolist() == pytest.approx(r)


def test_softmax_logq_subtracts_log_q_of_every_answer():
    policy, _, q = drawn()
    found = softmax_logq_loss(policy, None, 0.7, scores=q.log()).losses
    for row, (p, weights) in enumerate(rows_of(policy, q)):
        odds = [math.exp(0.7 * x) / w for x, w in zip(p, weights, strict=True)]
        assert found[row].item() == pytest.approx(-math.log(odds[0] / sum(odds)))


def test_negatives_from_the_reference_and_log_q_of_it_are_softmax_dpo():
    policy, ref, _ = drawn()
    found = softmax_logq_loss(policy, None, 1.0, scores=ref).losses
    assert_close(found, softmax_dpo_loss(policy, ref, 1.0).losses)
