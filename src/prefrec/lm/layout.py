"""Check the packed layout: compare packed scores with those of one row per answer, on a few answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from prefrec.lm.attention import compute_dtype
from prefrec.lm.packing import Layout, pack
from prefrec.lm.scoring import answer_token_logps, language_model, takes
from prefrec.prompts import ChoiceSet

CHECKED_ANSWERS, RECHECKED_ANSWERS = 3, 16
"""Number of answers that the check scores in both layouts, and number for a second try if they differ too much."""
PIECE = 5
"""Tokens per answer of the check; all but the last go through the model."""
# Answers before the compared ones in the packed row. Errors of a wrong layout accumulate over them.
_BEFORE = 16
# Tokens of the shorter prompt, whose row is padded on the left.
_SHORT = 8
# Number of evenly spaced tokens of the vocabulary whose log-probabilities are compared.
_WORDS = 64
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.07}
"""Largest difference between the layouts that counts as rounding, relative to the spread of the logits, by dtype.

Measured on SmolLM2-135M in bfloat16 (MovieLens, CPU): correct layouts differ by 0.024 to 0.029; a causal mask by 0.73
to 1.05; a window of half the prompt by 0.92 to 1.06; columns for positions by 0.48 to 0.61 (0.078 in the tests' tiny
models). Correct layouts differ by 2e-6 in float32 and by 0.017 under bfloat16 autocast.
"""


def verified_layout(model: nn.Module, choice_set: ChoiceSet, pad_id: int, layout: Layout) -> tuple[Layout, str]:
    """Return `layout`, or `separate` if packed scores differ from those of one row per answer; and the reason.

    Answers made from the choice set's text (`probe_set`) are scored in both layouts, also after a shorter prompt, to
    check padding. Call this in the autocast context in which the model will be used.

    Args:
        model: a causal language model.
        choice_set: example to check with; a long prompt gives a stricter check.
        pad_id: token id for padding.
        layout: layout to check; `separate` is returned unchecked.
    """
    if layout == "separate":
        return layout, "nothing to check"
    core = language_model(model)
    name = repr(core.config.model_type)
    if getattr(core, "_is_stateful", False):
        return "separate", f"model type {name} has a recurrent state, which cannot branch"
    if not takes(core, "position_ids"):
        return "separate", f"model type {name} does not take position ids"
    is_right, comparison = agrees(partial(_gap, model, choice_set, pad_id), tolerance(model))
    return "packed" if is_right else "separate", f"model type {name}: the packed layout {comparison}"


def agrees(gap: Callable[[int], float], most: float) -> tuple[bool, str]:
    """Return True if a layout differs from separate rows only by rounding, and a description of the comparison.

    `gap` returns the relative gap over a number of answers. It is called again with more answers if the first gap
    exceeds `most`.
    """
    try:
        measured = gap(CHECKED_ANSWERS)
        measured = gap(RECHECKED_ANSWERS) if measured > most else measured
    except torch.OutOfMemoryError:  # a RuntimeError, but it says nothing about the layout
        raise
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as e:
        return False, f"fails with {type(e).__name__}: {e}"
    if measured <= most:  # False for NaN
        return True, f"agrees with separate rows (to {measured:.1e} of the logits' spread)"
    return False, f"differs from separate rows by {measured:.2g} of the logits' spread (rounding: at most {most:g})"


def probe_set(choice_set: ChoiceSet, compared: int) -> ChoiceSet:
    """Return a choice set whose last `compared` answers show whether a model can branch.

    Its answers are pieces of `PIECE` tokens of the given set's text. Positions do not exceed those of the given set,
    except that a short prompt is extended to leave room for padding in the shorter row.
    """
    prompt = choice_set.prompt
    text = [t for part in (*choice_set.answers, choice_set.prompt) for t in part]
    if len(text) % PIECE == 0:
        text.append(text[0])  # otherwise the second pass through a short text would repeat the same pieces
    tokens = cycle(text)
    answers = tuple(tuple(islice(tokens, PIECE)) for _ in range(_BEFORE + compared))
    longest = choice_set.length - len(prompt)
    prompt = prompt[max(0, PIECE - longest) :]
    return ChoiceSet((*islice(tokens, max(0, 2 * _SHORT - len(prompt))), *prompt), answers)


def probe_words(model: nn.Module) -> Tensor:
    """Return the ids of a sample of the vocabulary, whose log-probabilities are compared."""
    return torch.linspace(0, language_model(model).config.get_text_config().vocab_size - 1, _WORDS).long()


def relative_gap(got: Tensor, want: Tensor) -> Tensor:
    """Return the mean difference of logits [..., W], relative to the spread of `want`, as a scalar."""
    return _off_centre(got - want).mean() / _off_centre(want).median(-1).values.mean().clamp_min(1e-30)


def _gap(model: nn.Module, choice_set: ChoiceSet, pad_id: int, compared: int) -> float:
    """Return the larger relative gap between the layouts, for a long prompt and for a short one with padding."""
    probe = probe_set(choice_set, compared)
    prompts = probe.prompt, probe.prompt[-_SHORT:]
    rows = _probe_logps(model, [ChoiceSet(p, probe.answers) for p in prompts], pad_id, "packed")[:, -compared:]
    gaps = []
    for prompt, packed in zip(prompts, rows, strict=True):
        alone = ChoiceSet(prompt, probe.answers[-compared:])
        separate = _probe_logps(model, [alone], pad_id, "separate")[0]
        # In the row without padding, the first token is predicted at the prompt's end, where no layout can be wrong.
        # It would only dilute the mean.
        first = 1 if prompt is probe.prompt else 0
        gaps.append(relative_gap(packed[:, first:], separate[:, first:]))
    return float(torch.stack(gaps).max())  # NaN if one of them is, so that a broken layout is not accepted


def _probe_logps(model: nn.Module, choice_sets: list[ChoiceSet], pad_id: int, layout: Layout) -> Tensor:
    """Return the log-probabilities [B, C, PIECE, W] of the probed words at each token, without dropout."""
    batch, words = pack(choice_sets, pad_id=pad_id, layout=layout), probe_words(model)
    each = {k: getattr(batch, k).repeat_interleave(_WORDS) for k in ("rows", "columns", "positions", "choices")}
    first_tokens = batch.first_tokens * _WORDS
    batch = replace(batch, **each, first_tokens=first_tokens, targets=words.repeat(len(batch.targets)))
    # With dropout, the two layouts would differ although both are right.
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logps = answer_token_logps(model, batch.to(next(model.parameters()).device))
    finally:
        model.train(was_training)
    return logps.view(len(choice_sets), -1, PIECE, _WORDS)


def _off_centre(values: Tensor) -> Tensor:
    """Return the distances from the median of the last dimension, which are independent of a common offset."""
    return (values - values.median(-1, keepdim=True).values).abs()


def tolerance(model: nn.Module) -> float:
    """Return the limit of `TOLERANCE` for the dtype that the model computes in."""
    dtype = compute_dtype(language_model(model), next(model.parameters()).device)
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        dtype = torch.bfloat16  # matrix products may be rounded to it
    return TOLERANCE.get(dtype, TOLERANCE[torch.float32])
