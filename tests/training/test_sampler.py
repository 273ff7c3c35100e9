"""prefrec.training.sampler: the same rows in each step, less padding, and an order that resuming finds again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import RandomSampler

from prefrec.lm.packing import tokens_of
from prefrec.prompts import ChoiceSet
from prefrec.training.sampler import StepSampler, own_batches
from tiny_training import FILMS, adapted_model, losses, many_negatives, trainable

ROWS = [
    {**row, "prompt": f"Seen {' and '.join(FILMS[: 1 + (5 * i) % 8])}. Next:"}
    for i, row in enumerate(many_negatives(4, 8) + many_negatives(4, 6))
]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 8), st.integers(0, 3), st.integers(0, 3))
def test_steps_are_those_of_a_random_sampler_sorted(lengths, step, seed, epoch):
    sampler = StepSampler(len(lengths), step, lambda: lengths, seed)
    sampler.set_epoch(epoch)
    got = list(sampler)
    plain = list(RandomSampler(lengths, generator=torch.Generator().manual_seed(seed + epoch)))
    for start in range(0, len(lengths), step):
        window = got[start : start + step]
        assert sorted(window) == sorted(plain[start : start + step])
        assert [lengths[i] for i in window] == sorted((lengths[i] for i in window), reverse=True)
    unsorted = StepSampler(len(lengths), step, None, seed)
    unsorted.set_epoch(epoch)
    assert list(unsorted) == plain
    assert len(got) == len(sampler)


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 4), st.integers(1, 3))
def test_processes_share_out_batches_of_falling_lengths(lengths, size, count):
    sets = [ChoiceSet((1,) * n, ((2,),)) for n in lengths]
    shares = []
    for index in range(count):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WORLD_SIZE", str(count))
            patch.setenv("RANK", str(index))
            shares.append(own_batches(sets, size))
    batches = [share[i] for i in range(len(shares[0])) for share in shares if i < len(share)]
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(sets)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in batches[:-1])


EPOCHS = {"rows": ROWS, "max_steps": -1, "num_train_epochs": 2, "global_batch_size": 8}
DRAWN = EPOCHS | {"num_negatives": 2, "negatives": "per_epoch"}


@pytest.mark.parametrize("kind", ["sft", "sdpo"])
def test_grouping_by_length_saves_padding_and_changes_nothing_else(request, tmp_path, kind):
    make, trained, padding = request.getfixturevalue(kind), {}, {}
    completions = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS]
    changes = DRAWN if kind == "sdpo" else EPOCHS | {"rows": completions}
    for strategy in ("random", "group_by_length"):
        trainer = make(adapted_model(), folder=tmp_path / strategy, train_sampling_strategy=strategy, **changes)
        padding[strategy] = 0

        def collate(rows, trainer=trainer, strategy=strategy):
            batch = trainer.collate(rows)
            padding[strategy] += batch["input_ids"].numel() - sum(tokens_of(r["choices"]) for r in rows)
            return batch

        trainer.data_collator = collate
        trainer.train()
        trained[strategy] = (losses(trainer), trainable(trainer.model))
    assert 0 < padding["group_by_length"] < 0.6 * padding["random"]
    assert trained["group_by_length"][0] == pytest.approx(trained["random"][0], abs=1e-5)
    torch.testing.assert_close(trained["group_by_length"][1], trained["random"][1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("checkpoint", [2, 3])
def test_a_resumed_run_finds_its_order_again(sdpo, tmp_path, checkpoint):
    """At the end of the first epoch, and in the middle of the second."""
    changes = {"save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": "group_by_length"}
    whole, resumed = (sdpo(**DRAWN, **changes) for _ in range(2))
    whole.train()
    assert whole.state.global_step == 4
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    torch.testing.assert_close(trainable(resumed.model), trainable(whole.model), rtol=0, atol=0)


def test_groups_stay_together_in_random_order():
    groups = [0, 0, 0, 1, 2, 2, 3, 3, 3]
    sampler = StepSampler(len(groups), 4, lambda: [1] * len(groups), seed=0, groups=groups)
    orders = set()
    for epoch in range(8):
        sampler.set_epoch(epoch)
        rows = list(sampler)
        assert sorted(rows) == [*range(len(groups))]
        for group in set(groups):
            own = [row for row, number in enumerate(groups) if number == group]
            at = rows.index(own[0])
            assert rows[at : at + len(own)] == own
        orders.add(tuple(rows))
    assert len(orders) > 3
