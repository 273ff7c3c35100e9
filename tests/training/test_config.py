"""prefrec.training.config: the global batch, and settings that are refused."""

import pytest

from prefrec.errors import ConfigError
from prefrec.training import SFTConfig, SoftmaxDPOConfig


def test_accumulation_follows_from_the_global_batch(tmp_path):
    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4, global_batch_size=128)
    assert config.gradient_accumulation_steps == 32


DEVICE_4 = {"per_device_train_batch_size": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 6, **DEVICE_4}, "not a multiple of per_device_train_batch_size 4"),
        ({"global_batch_size": 2, **DEVICE_4}, "not a multiple"),
        ({"global_batch_size": 8, **DEVICE_4, "gradient_accumulation_steps": 3}, "contradict each other"),
        ({"train_sampling_strategy": "batch_rebalance"}, "expected one of group_by_length, random, sequential"),
        ({"loss_type": "magic"}, "expected one of softmax_dpo, .*, sft"),
        ({"loss_type": "sdpoo"}, r"^loss_type: loss 'sdpoo' is unknown: .*; did you mean s-dpo\?$"),
        ({"loss_type": [], "loss_weights": []}, "^loss_type: the list is empty: give at least one loss$"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"num_negatives": 0}, "at least 1"),
        ({"max_tokens_per_pass": 0}, "at least 1"),
        ({"negatives": "sometimes"}, "one of fixed, per_epoch, got"),
    ],
)
def test_wrong_settings_are_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        SoftmaxDPOConfig(output_dir=str(tmp_path), use_cpu=True, **changes)
