"""The best weights so far: when they are kept, when training ends, and what is written."""

from itertools import pairwise

import polars as pl
import pytest
import torch
from transformers import TrainerControl, TrainerState

from prefrec.data import Catalogue
from prefrec.lm.items import ItemEncoder, add_items, item_table, load_item_model
from prefrec.training import ChoiceDataset
from prefrec.training.keep_best import BEST, KeepBest, read_best, save_weights
from prefrec.training.weights import is_adapter, load_weights
from tiny import VOCABULARY
from tiny_run import adapter_weights
from tiny_training import COMPLETIONS, FILMS, adapted_model, small_model, trainable


@pytest.fixture
def trainer(sft):
    return lambda model=None, rows=COMPLETIONS: sft(model or adapted_model(), rows=rows)


class Training:
    """Evaluations of one training, one after another; an epoch has ten steps."""

    def __init__(self, keep: KeepBest) -> None:
        self.keep = keep
        self.control = TrainerControl()
        self.state = TrainerState()

    def evaluate(self, epoch: int, **metrics: float) -> bool:
        """Evaluate after an epoch; returns whether training is to end."""
        self.state.global_step, self.state.epoch = 10 * epoch, float(epoch)
        self.state.log_history.append({**{f"eval_{n}": v for n, v in metrics.items()}, "step": 10 * epoch})
        named = {f"eval_{n.replace('ndcg', 'ndcg@10')}": v for n, v in metrics.items()}
        self.keep.on_evaluate(None, self.state, self.control, metrics=named)
        return self.control.should_training_stop


def move(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Change the weights that are trained; returns what they are then."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    return trainable(model)


def test_the_highest_ndcg_is_kept(trainer, tmp_path):
    made, found, told = trainer(), [], []
    training = Training(KeepBest(made, patience=5))
    for epoch, value in enumerate((0.3, 0.5, 0.4, 0.5, 0.6), start=1):
        move(made.model)
        assert not training.evaluate(epoch, ndcg=value, loss=float(epoch))  # the loss alone would keep the first
        found.append({name: tensor for name, tensor in adapter_weights(tmp_path / BEST).items() if "lora_A" in name})
        told.append(read_best(tmp_path / BEST))
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in pairwise(found)]
    assert same == [False, True, True, False]  # an equal one is not better
    assert [(best["value"], best["step"]) for best in told] == [(0.3, 10), *[(0.5, 20)] * 3, (0.6, 50)]
    assert told[-1]["epoch"] == 5.0


def test_without_lists_the_lowest_loss_is_kept(trainer, tmp_path):
    training = Training(KeepBest(trainer(), patience=5))
    for epoch, loss in enumerate((3.0, 2.0, 2.5), start=1):
        training.evaluate(epoch, loss=loss)
    assert read_best(tmp_path / BEST) == {"value": -2.0, "step": 20, "epoch": 2.0}


@pytest.mark.parametrize(("patience", "ends_at"), [(1, 3), (2, 6), (3, 7)])
def test_training_ends_after_evaluations_in_a_row_without_a_new_best(trainer, capsys, patience, ends_at):
    training = Training(KeepBest(trainer(), patience))
    values = (0.3, 0.5, 0.4, 0.6, 0.6, 0.5, 0.1)
    ended = [training.evaluate(epoch, ndcg=value, loss=1.0) for epoch, value in enumerate(values, start=1)]
    assert ended.index(True) + 1 == ends_at
    told = f"No improvement since epoch {ends_at - patience}.0: stopping early"
    assert told in capsys.readouterr().err


def test_the_best_of_a_training_that_was_given_up_does_not_count(trainer, tmp_path):
    """It went on to later steps, and the new one begins before them."""
    made = trainer()
    given_up = Training(KeepBest(made, patience=5))
    for epoch in (1, 2, 3):
        given_up.evaluate(epoch, ndcg=0.2 * epoch, loss=1.0)
    move(made.model)
    again = Training(KeepBest(made, patience=1))
    assert not again.evaluate(1, ndcg=0.1, loss=1.0)
    assert read_best(tmp_path / BEST) == {"value": 0.1, "step": 10, "epoch": 1.0}


def test_one_that_goes_on_keeps_its_best(trainer, tmp_path):
    """The evaluation that was made before the stop is made again, with the same outcome."""
    made = trainer()
    first = Training(KeepBest(made, patience=2))
    first.evaluate(1, ndcg=0.5, loss=1.0)
    first.evaluate(2, ndcg=0.4, loss=1.0)
    before = (tmp_path / BEST / "adapter_model.safetensors").stat().st_mtime_ns
    again = Training(KeepBest(made, patience=2))
    again.state.log_history = first.state.log_history[:1]
    assert not again.evaluate(2, ndcg=0.4, loss=1.0)
    assert again.evaluate(3, ndcg=0.4, loss=1.0)
    assert (tmp_path / BEST / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("text", [None, "", "[1, 2]"])
def test_a_folder_without_a_best(tmp_path, text):
    if text is not None:
        (tmp_path / "best.json").write_text(text)
    assert read_best(tmp_path) is None


def test_a_whole_model_is_written_with_its_tokenizer(trainer, tmp_path):
    made = trainer(small_model())
    want = move(made.model)
    save_weights(made, tmp_path / "out")
    assert not is_adapter(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert read_best(tmp_path / "out") is None
    found = load_weights("no base is read", tmp_path / "out", dtype="float32", is_trainable=True)
    torch.testing.assert_close(trainable(found), want, rtol=0, atol=0)


def test_a_model_of_items_is_written_as_one(trainer, tmp_path, bpe_tokenizer):
    catalogue = Catalogue(pl.DataFrame({"item_id": FILMS, "title": FILMS}))
    encoder = ItemEncoder(catalogue, bpe_tokenizer, VOCABULARY)
    model = small_model()
    add_items(model, FILMS, torch.randn(len(FILMS), 4))
    rows = ChoiceDataset([encoder.encode(None, FILMS[:3], [], FILMS[3:4])]).encoded_by(encoder)
    made = trainer(model, rows)
    want = move(made.model)
    save_weights(made, tmp_path / "out")
    again = load_item_model(tmp_path / "out")
    assert item_table(again).ids == FILMS
    assert all(torch.equal(again.get_parameter(name), parameter) for name, parameter in want.items())


def test_older_weights_give_way_as_a_whole(trainer, tmp_path):
    made, out = trainer(), tmp_path / "out"
    save_weights(made, out, {"value": 1.0})
    (tmp_path / ".out").mkdir()
    for file in (out / "of-old", tmp_path / ".out" / "half"):
        file.write_text("of a training that was killed")
    before = adapter_weights(out)
    move(made.model)
    save_weights(made, out)
    after = adapter_weights(out)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert not {"of-old", "half", "best.json"} & {p.name for p in out.iterdir()}
