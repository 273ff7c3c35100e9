"""Align the head of SFT models with item tokens, and compare with the softmax loss for as many steps.

    python scripts/head_alignment.py runs/demo-0 runs/demo-1 runs/demo-2 --out head.json

Runs are seeds of one recipe, finished up to `sft`. The layers stay as they are: the hidden states of all training
places are computed once, and the item vectors, the projection and the bias are trained on them. Every score is over
the whole catalogue without what the user has taken before. A setting and its number of steps are chosen on validation
rows, by the mean NDCG@1 of the runs among those that keep `KEPT` of the HR@50 of SFT. Only the chosen ones are asked
test rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prefrec.console import say
from prefrec.data import PreparedData, RankingExample, read_prepared, seen_items
from prefrec.evaluation import mean_interval, metrics_for, paired_difference, target_ranks
from prefrec.lm.items import item_table
from prefrec.losses import softmax_dpo_loss
from prefrec.recipe import load_recipe
from prefrec.stages.base import WEIGHTS
from prefrec.stages.encoders import prompt_encoder
from prefrec.training.weights import load_weights
from prefrec_systems.sequential.batches import pieces

METRICS = {"NDCG@1": "hr@1", "NDCG@10": "ndcg@10", "HR@50": "hr@50"}
KEPT = 0.98
BATCH, STEPS = 256, (25, 50, 100)
RATES = (1e-4, 1e-3)
SETTINGS: dict[str, list[dict[str, float]]] = {
    "softmax continued": [{}],
    "softmax, unseen items": [{}],
    "BEAR": [{"k": 1}, {"k": 10}],
    "expected DCG": [{"softmax": 0.0}, {"softmax": 0.2}],
    "S-DPO": [{"beta": 0.3}, {"beta": 1.0}],
}
"""Objective → what is tried, at each of `RATES`. As in SFT, all items compete in the first, elsewhere unseen ones."""
CONTROLS = ("SFT", "softmax continued", "softmax, unseen items")


# --- objectives: each returns the losses [B] of logits [B, I], with -inf at what the user has taken before


def bear(logits: Tensor, targets: Tensor, k: int, weight: float = 4.0, width: float = 1.0) -> Tensor:
    """Return the softmax loss × (1 + weight · σ((log p − log p_(k)) / width)), p_(k) being the k-th largest p (BEAR).

    No gradient goes through the weight.
    """
    logps = logits.log_softmax(dim=1)
    own = logps.gather(1, targets[:, None])[:, 0]
    gap = own - logps.topk(k, dim=1).values[:, -1]
    return -own * (1 + weight * torch.sigmoid(gap.detach() / width))


def expected_dcg(logits: Tensor, targets: Tensor, softmax: float = 0.0, top: int = 64) -> Tensor:
    """Return −E[1 / log2(1 + rank)] of the target among it and the `top` best others, + `softmax` × the softmax loss.

    Each other item i is above the target with probability σ(s_i − s_0), independently (SoftRank). The number of items
    above is then Poisson-binomial, and its distribution exact by adding one item at a time.
    """
    own = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], -torch.inf).topk(min(top, logits.shape[1] - 1), dim=1).values
    above = torch.sigmoid(others - own)
    counts = F.pad(torch.ones_like(own), (0, above.shape[1]))  # [B, 1 + top]: P(n items above), so far
    for p in above.split(1, dim=1):
        counts = counts * (1 - p) + F.pad(counts[:, :-1], (1, 0)) * p
    gains = 1 / torch.log2(torch.arange(counts.shape[1], device=logits.device) + 2.0)
    return softmax * F.cross_entropy(logits, targets, reduction="none") - counts @ gains


def own_top_sdpo(
    logits: Tensor, reference: Tensor, targets: Tensor, taken: Tensor, beta: float, top: int = 16
) -> Tensor:
    """Return the S-DPO loss against the `top` items not `taken` [B, I] that the policy ranks highest.

    `taken` holds all that the user has in the training log, earlier or later.
    """
    free = logits.detach().masked_fill(taken, -torch.inf).scatter(1, targets[:, None], -torch.inf)
    answers = torch.cat([targets[:, None], free.topk(top, dim=1).indices], dim=1)
    policy, ref = (x.log_softmax(dim=1).gather(1, answers) for x in (logits, reference))
    return softmax_dpo_loss(policy, ref, beta).losses


# --- hidden states and heads


class Head(nn.Module):
    """The logits of all items after hidden states: (P·hidden)·v_i + b_i, as in `ItemTable`, with v_i free."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        with torch.no_grad():
            self.vectors = nn.Parameter(table.project(table.titles) + table.own)
            self.predict = nn.Parameter(table.predict.weight.clone())
            self.bias = nn.Parameter(table.bias.clone())

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(F.linear(hidden, self.predict), self.vectors, self.bias)


@dataclass(frozen=True)
class Places:
    """All training places: hidden states [N, D], targets [N]; place n is item `positions[n]` of user `users[n]`."""

    hidden: Tensor
    targets: Tensor
    users: NDArray[np.int64]
    positions: NDArray[np.int64]
    sequences: list[Tensor]

    def masks(self, rows: NDArray[np.int64], size: int) -> tuple[Tensor, Tensor]:
        """Return what is taken before each place [B, I], without the target, and all that is taken, ever."""
        before, ever = (torch.zeros(len(rows), size, dtype=torch.bool) for _ in range(2))
        for n, row in enumerate(rows.tolist()):
            own = self.sequences[self.users[row]]
            before[n, own[: self.positions[row]]] = True
            ever[n, own] = True
        before[torch.arange(len(rows)), self.targets[rows]] = False
        return before, ever


@dataclass(frozen=True)
class Questions:
    """Held-out rows: hidden states [B, D], targets [B], what is left out [B, I], and users."""

    hidden: Tensor
    targets: Tensor
    seen: Tensor
    users: list[str]

    @torch.no_grad()
    def ranks(self, head: Head) -> NDArray[np.int64]:
        """Return the targets' ranks in the whole catalogue, and the numbers of items tied with them [2, B]."""
        scores = head(self.hidden).masked_fill(self.seen, -torch.inf)
        return np.stack(target_ranks(scores.numpy(), self.targets.numpy()))


@torch.no_grad()
def hidden_states(model: Any, begin: int, first: int, histories: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the hidden states [n, D] after each of the n items of histories."""
    out: list[Tensor] = [torch.empty(0)] * len(histories)
    order = sorted(range(len(histories)), key=lambda i: len(histories[i]))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        tokens = [torch.tensor([begin, *(first + i for i in histories[r])]) for r in rows]
        hidden = model.base_model(input_ids=nn.utils.rnn.pad_sequence(tokens, True), use_cache=False)
        for r, states in zip(rows, hidden.last_hidden_state.float(), strict=True):
            out[r] = states[1 : 1 + len(histories[r])].clone()
    return out


class Cached:
    """The head of a run's SFT model, and the hidden states of its training, validation and test rows."""

    def __init__(self, run: Path) -> None:
        recipe, data = load_recipe(run / "recipe.yaml"), read_prepared(run / "data")
        encoder: Any = prompt_encoder(recipe.model, data.catalogue)
        model = load_weights(
            recipe.model.name, run / "sft" / WEIGHTS, **recipe.model.loading() | {"dtype": "float32"}
        ).eval()
        table = item_table(model)
        assert table is not None
        first = len(model.get_input_embeddings().weight)
        self.head, self.dropout, self.data = Head(table), recipe.model.items.dropout, data
        self.code = data.catalogue.index
        self._states = lambda histories: hidden_states(model, encoder.begin, first, histories)
        self.places = self._places(recipe.data.history_length or recipe.sft.titles)
        self.validation = self._questions(data, data.validation)
        self.test = self._questions(data, data.test)

    def _places(self, length: int) -> Places:
        log = self.data.train_interactions.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]
        sequences = [[self.code[i] for i in items] for items in log.to_list() if len(items) > 1]
        rng = np.random.default_rng(0)
        cut = [(user, piece) for user, s in enumerate(sequences) for piece in pieces(s, length, rng)]
        states = self._states([piece[:-1] for _, piece in cut])
        # The targets of a user's pieces are all items but the first, in order.
        positions = np.concatenate([np.arange(1, len(s)) for s in sequences])
        users = np.repeat(np.arange(len(sequences)), [len(s) - 1 for s in sequences])
        targets = torch.tensor([i for _, piece in cut for i in piece[1:]])
        return Places(torch.cat(states), targets, users, positions, [torch.tensor(s) for s in sequences])

    def _questions(self, data: PreparedData, rows: Sequence[RankingExample]) -> Questions:
        targets = torch.tensor([self.code[e.target] for e in rows])
        seen = torch.zeros(len(rows), len(self.code), dtype=torch.bool)
        for n, taken in enumerate(seen_items(data, rows)):
            seen[n, [self.code[i] for i in taken]] = True
        seen[torch.arange(len(rows)), targets] = False
        hidden = torch.stack([h[-1] for h in self._states([[self.code[i] for i in e.history] for e in rows])])
        return Questions(hidden, targets, seen, [e.user_id for e in rows])


# --- training and choice


def train(
    cached: Cached, objective: str, setting: dict[str, float], rate: float, seed: int, steps: Sequence[int]
) -> list[Head]:
    """Return the heads after each number of steps of `BATCH` places."""
    start, places = cached.head, cached.places
    head = _copy(start)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.0)
    order, heads = np.random.default_rng(seed).permutation(len(places.targets)), []
    torch.manual_seed(seed)
    for step in range(max(steps)):
        rows = np.take(order, range(step * BATCH, (step + 1) * BATCH), mode="wrap")
        before, ever = places.masks(rows, len(start.bias))
        if objective == "softmax continued":
            before.zero_()
        hidden, targets = F.dropout(places.hidden[rows], cached.dropout), places.targets[rows]
        logits = head(hidden).masked_fill(before, -torch.inf)
        if objective == "S-DPO":
            with torch.no_grad():  # the same dropout, which the ratio then leaves out
                reference = start(hidden).masked_fill(before, -torch.inf)
            losses = own_top_sdpo(logits, reference, targets, ever, **setting)
        else:
            losses = OBJECTIVES[objective](logits, targets, **setting)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        if step + 1 in steps:
            heads.append(_copy(head))
    return heads


def _softmax(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "softmax continued": _softmax,
    "softmax, unseen items": _softmax,
    "BEAR": bear,
    "expected DCG": expected_dcg,
}


def _copy(head: Head) -> Head:
    made = Head.__new__(Head)
    nn.Module.__init__(made)
    for name, p in head.named_parameters():
        setattr(made, name, nn.Parameter(p.detach().clone()))
    return made


def values(ranks: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return metric → values [B] of ranks and ties [2, B]."""
    metrics = metrics_for((1, 10, 50))
    return {name: metrics[key](*ranks) for name, key in METRICS.items()}


def means(ranks: NDArray[np.int64]) -> dict[str, float]:
    """Return metric → mean."""
    return {name: float(v.mean()) for name, v in values(ranks).items()}


def best_of(trials: list[dict[str, Any]], floor: float) -> dict[str, Any]:
    """Return the trial of highest NDCG@1 with an HR@50 of at least `floor`; without one, that of highest HR@50."""
    kept = [t for t in trials if t["HR@50"] >= floor]
    return max(kept, key=lambda t: (t["NDCG@1"], t["NDCG@10"])) if kept else max(trials, key=lambda t: t["HR@50"])


def choose(runs: Sequence[Cached]) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return the chosen trial of each objective, and all trials with their validation means over the runs."""
    floor = KEPT * float(np.mean([means(r.validation.ranks(r.head))["HR@50"] for r in runs]))
    trials: list[dict[str, Any]] = []
    for objective, settings in SETTINGS.items():
        for setting, rate in product(settings, RATES):
            heads = [train(run, objective, setting, rate, seed, STEPS) for seed, run in enumerate(runs)]
            for n, steps in enumerate(STEPS):
                found = [means(run.validation.ranks(own[n])) for run, own in zip(runs, heads, strict=True)]
                mean = {name: float(np.mean([f[name] for f in found])) for name in METRICS}
                trials.append({"objective": objective, "setting": setting, "rate": rate, "steps": steps, **mean})
                say(json.dumps(trials[-1]))
    return {o: best_of([t for t in trials if t["objective"] == o], floor) for o in SETTINGS}, trials


def measure(runs: Sequence[Cached], chosen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return means on the test rows of all runs, and paired differences to `CONTROLS`."""
    ranks = {"SFT": np.concatenate([run.test.ranks(run.head) for run in runs], axis=1)}
    for objective, t in chosen.items():
        heads = [train(r, objective, t["setting"], t["rate"], n, (t["steps"],))[0] for n, r in enumerate(runs)]
        ranks[objective] = np.concatenate([r.test.ranks(head) for r, head in zip(runs, heads, strict=True)], axis=1)
    users = [user for run in runs for user in run.test.users]
    found = {name: values(r) for name, r in ranks.items()}
    out: dict[str, Any] = {"n": len(users), "rankers": {}}
    for name, own in found.items():
        out["rankers"][name] = {m: mean_interval(v, users).to_json() for m, v in own.items()} | {
            f"{m} minus {other}": paired_difference(v, found[other][m], users).to_json()
            for other in CONTROLS
            for m, v in own.items()
            if other != name
        }
    return out


def main() -> None:
    """Choose on validation rows, ask the test rows, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    started = time.process_time()
    runs = [Cached(run) for run in args.runs]
    sft = [means(run.validation.ranks(run.head)) for run in runs]
    chosen, trials = choose(runs)
    found = {"validation of SFT": sft, "chosen": chosen, "test": measure(runs, chosen), "trials": trials}
    found |= {"places": len(runs[0].places.targets), "cpu_seconds": time.process_time() - started}
    args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
