"""The reward of an alignment as a score."""

import numpy as np
import pytest

from prefrec.data import RankingExample
from prefrec.errors import ModelError
from prefrec.rankers.reward import RewardRanker


class Given:
    def __init__(self, name, scores):
        self.name, self.scores = name, np.array(scores)

    def score(self, examples):
        return self.scores


ROWS = [RankingExample("u", (), ("a", "b", "c"), "a"), RankingExample("v", (), ("a", "b"), "b")]


def test_the_reward_is_beta_times_the_log_ratio_and_empty_columns_stay_empty():
    policy = Given("s-dpo", [[-1.0, -2.0, -3.0], [-1.0, -4.0, -np.inf]])
    reference = Given("sft", [[-2.0, -2.0, -1.0], [-2.0, -1.0, -np.inf]])
    rewards = RewardRanker("s-dpo reward", policy, reference, 0.5).score(ROWS)
    assert rewards.tolist() == [[0.5, 0.0, -1.0], [0.5, -1.5, -np.inf]]


def test_a_score_that_is_no_number_names_the_model():
    with pytest.raises(ModelError, match="'sft': 1 of 2"):
        RewardRanker("r", Given("s-dpo", np.zeros((2, 2))), Given("sft", [[0, np.nan], [0, 0]]), 1.0).score(ROWS)
