"""Slow, obvious twins of what prefrec computes fast."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prefrec.prompts import ChoiceSet


def slow_logps(model: torch.nn.Module, choices: ChoiceSet) -> Tensor:
    """Log-probabilities [C]: one full sequence an answer, logits at all positions, a loop over its tokens."""
    out = []
    for answer in choices.answers:
        ids = torch.tensor([choices.prompt + answer])
        logps = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
        start = len(choices.prompt)
        out.append(sum(logps[start + t - 1, token] for t, token in enumerate(answer)))
    return torch.stack(out)


def slow_logps_within(
    model: torch.nn.Module, prompt: tuple[int, ...], answers: Sequence[tuple[int, ...]]
) -> list[float]:
    """Log-probabilities [C] within a catalogue of C answers: a forward pass a token, a softmax over what goes on."""
    out = []
    for answer in answers:
        total = 0.0
        for t, token in enumerate(answer):
            children = sorted({a[t] for a in answers if len(a) > t and a[:t] == answer[:t]})
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer[:t]])).logits[0, -1].double()
            total += float(torch.log_softmax(logits[children], 0)[children.index(token)])
        out.append(total)
    return out


def slow_greedy(model: torch.nn.Module, prompt: tuple[int, ...], end: int, limit: int) -> list[int]:
    """Tokens of the greedy answer without its end token, one whole forward pass a token, no padding."""
    ids = list(prompt)
    for _ in range(limit):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == end:
            break
        ids.append(token)
    return ids[len(prompt) :]
