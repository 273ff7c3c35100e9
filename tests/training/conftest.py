"""Trainers of the small model on rows of text; a test says what is different by keywords."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from prefrec.training import SFTConfig, SFTTrainer, SoftmaxDPOConfig, SoftmaxDPOTrainer
from tiny_training import COMPLETIONS, PREFERENCES, adapted_model, settings, small_model


@pytest.fixture
def sft(tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerBase) -> Callable[..., SFTTrainer]:
    """Makes SFT trainers, of all weights of the small model unless another is given."""
    return _maker(SFTTrainer, SFTConfig, small_model, COMPLETIONS, tmp_path, bpe_tokenizer)


@pytest.fixture
def sdpo(tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerBase) -> Callable[..., SoftmaxDPOTrainer]:
    """Makes S-DPO trainers, of the small model with an adapter unless another is given."""
    return _maker(SoftmaxDPOTrainer, SoftmaxDPOConfig, adapted_model, PREFERENCES, tmp_path, bpe_tokenizer)


def _maker(kind: Any, config: Any, usual: Any, usual_rows: Any, usual_folder: Path, tokenizer: Any) -> Any:
    def make(
        model: Any = None, *, rows: Any = usual_rows, evaluate: Any = None, folder: Path = usual_folder,
        peft_config: Any = None, train: bool = False, **changes: Any,
    ) -> Any:  # fmt: skip
        """Make a trainer and, where this is asked for, train it."""
        args, data = config(**settings(folder, **changes)), {"train_dataset": rows, "eval_dataset": evaluate}
        trainer = kind(model or usual(), args=args, **data, processing_class=tokenizer, peft_config=peft_config)
        if train:
            trainer.train()
        return trainer

    return make
