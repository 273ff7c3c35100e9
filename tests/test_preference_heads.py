"""scripts/preference_heads.py: rows, means and losses by loops, states of pieces, a small study."""

import importlib.util
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from prefrec import losses
from prefrec.data import RankingExample
from prefrec.data.feedback import centred_mean_scores
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from tiny_run import write_rated_log

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("preference_heads", SCRIPTS / "preference_heads.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.WIDTH, module.LENGTH = 4, 3
    yield module
    del sys.modules[spec.name], sys.modules["head_alignment"]
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    """SFT with item tokens on 40 users with 30 items each, whose ratings are random."""
    folder = tmp_path_factory.mktemp("heads")
    raw = recipe.model_dump(mode="json")
    raw["model"] |= {"answers": "items", "items": {"vectors": "tfidf", "dropout": 0.1}}
    raw["data"] |= {"interactions": str(write_rated_log(folder)), "split": "time-share"}
    align = {"name": "s-dpo", "negatives_from": "rated", "liked": 4, "disliked": 2}
    raw |= {"lora": None, "sft": raw["sft"] | {"epochs": 1, "rows": 8}, "align": [align]}
    raw["evaluate"] |= {"zero_shot": False, "generate_rows": 0}
    run_recipe(Recipe.model_validate(raw), folder / "run", until="sft")
    return folder / "run"


@pytest.fixture(scope="module")
def model(script, run):
    with torch.no_grad():
        return script.Model(run)


def test_means_are_the_product_s_and_leave_one_user_out(script, model):
    learn = model.data.train_interactions
    said, (user, item) = script.Opinions.of(learn), learn.row(7)[:2]
    (expected,) = centred_mean_scores(learn, [RankingExample("u", (), (item, "new"), item)])
    assert [said.mean(i) for i in (item, "new")] == pytest.approx(expected)
    # The user's own ratings give the user's mean, and then only this one is left out.
    x = {u: r - learn.filter(pl.col("user_id") == u)["rating"].mean() for u, i, r in told(learn) if i == item}
    rest = [value for u, value in x.items() if u != user]
    assert said.mean(item, user) == pytest.approx(sum(rest) / (len(rest) + 5))


def told(log: pl.DataFrame):
    return list(log.select("user_id", "item_id", "rating").iter_rows())


def test_rows_reject_what_was_rated_lower_near_by(script, model):
    learn = model.data.train_interactions
    fitted = script.Fitted.of(model, learn)
    ids, ratings = list(model.code), {(u, i): r for u, i, r in told(learn)}
    for chosen, is_right in (("4 over 3", lambda a, b: a >= 4 and b <= 3), ("gap 1", lambda a, b: b <= a - 1)):
        rows = script.alignment_rows(fitted.said, model, fitted.states, chosen, seed=0)
        checked, by_state = 0, {}
        for user, states in fitted.states.items():
            for state in states[1:].tolist():
                by_state.setdefault(tuple(state), set()).add(user)
        for place, items, means in zip(rows.which, rows.items.tolist(), rows.means.tolist(), strict=True):
            user, *more = by_state.get(tuple(rows.states[place].tolist()), [None])
            if user is None or more:  # nothing was rated high before, or the same items
                continue
            first, *others = [ids[i] for i in items if i >= 0]
            assert others
            assert all(is_right(ratings[user, first], ratings[user, i]) for i in others)
            wanted = [fitted.said.mean(i, user) for i in (first, *others)]
            assert means[: len(wanted)] == pytest.approx(wanted, abs=1e-6)
            checked += 1
        assert checked > 50


def test_states_of_pieces_know_the_last_items(script, model):
    history = list(model.code)[:8]
    (states,) = model.states([history])
    assert (states[0] == 0).all()
    for n, start in ((1, 0), (5, 0), (7, 3), (8, 3)):  # pieces begin at 0 and 3, and have at most 6 items
        (alone,) = model.states([history[start:n][: 2 * script.LENGTH]])
        torch.testing.assert_close(states[n], alone[-1], rtol=0, atol=1e-5)


def test_losses_are_the_product_s_with_the_mean_added(script, model):
    torch.manual_seed(0)
    states, wanted = torch.randn(3, model.head.vectors.shape[1]), torch.randn(3, script.WIDTH)
    items, means = torch.tensor([[0, 3, 5], [2, 1, 4], [6, 7, 8]]), torch.randn(3, 3)
    reference = model.head(states).detach().gather(1, items)
    policy = reference + (wanted[:, None] * model.vectors[items]).sum(dim=2)
    for name, loss in (("s-dpo", "softmax_dpo"), ("dpo", "dpo"), ("softmax", "softmax"), ("bpr", "bpr")):
        expected = losses.LOSSES[loss](policy + means, reference, 1.0).losses
        torch.testing.assert_close(script.losses(model, name, states, wanted, items, means), expected)
    plain = script.losses(model, script.PLAIN, states, wanted, items, means)
    torch.testing.assert_close(plain, losses.softmax_dpo_loss(policy, reference, 1.0).losses)
    chosen = script.losses(model, script.LIKED, states, wanted, items, means)
    full = (model.head(states) + wanted @ model.vectors.T).log_softmax(dim=1)
    torch.testing.assert_close(chosen, -full.gather(1, items[:, :1])[:, 0].detach())
    absent = items.clone()
    absent[:, 2] = -1
    fewer = script.losses(model, "s-dpo", states, wanted, absent, means)
    torch.testing.assert_close(fewer, script.losses(model, "s-dpo", states, wanted, items[:, :2], means[:, :2]))
