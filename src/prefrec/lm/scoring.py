"""The one function that scores answers: log-probabilities of choice sets under a language model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefrec.lm.attention import compute_dtype, fastest_attention
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.cpu.linear import OneDNNLinear
from prefrec.lm.masks import (
    MASKED_ATTENTION,
    MASKED_LAYERS,
    attention_implementation,
    attention_masks,
    layer_kinds,
    text_config,
)
from prefrec.lm.packing import Layout, PackedBatch, pack
from prefrec.prompts import ChoiceSet

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BRANCHING = frozenset(
    {
        "llama", "llama4_text", "mistral", "mixtral", "ministral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
        "gemma", "gemma2", "gemma3_text", "cohere", "cohere2", "gpt2", "gpt_bigcode", "gpt_neox", "gptj",
        "codegen", "gpt_oss", "phi", "phi3", "opt", "olmo", "olmo2", "olmo3", "olmoe", "granite", "granitemoe",
        "smollm3", "starcoder2", "stablelm", "exaone4", "glm4", "deepseek_v3", "ernie4_5", "nemotron",
        "seed_oss", "falcon",
    }
)  # fmt: skip
"""`config.model_type`s for which packed and separate scores were compared and agree."""

RECURRENT = frozenset(
    {
        "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "jamba", "bamba", "zamba", "zamba2", "zaya",
        "recurrent_gemma", "nemotron_h", "granitemoehybrid", "falcon_h1", "olmo_hybrid", "bailing_hybrid",
        "kimi_linear", "minimax", "lfm2", "lfm2_moe", "qwen3_next", "deepseek_v4",
    }
)  # fmt: skip
"""`config.model_type`s with a state that passes from token to token, whatever their `layer_types` say."""

BY_COLUMN = {
    "bloom": "ALiBi biases follow the columns, not the branches",
    "mpt": "ALiBi biases follow the columns, not the branches",
    "gpt_neo": "its local attention is measured in columns, not in positions",
}
"""`config.model_type`s that depend on a token's column in the row, and the reason."""

BLOCK_BYTES = 64 << 20
"""Bytes of logits in float32 at a time."""

CHECKED_ANSWERS, RECHECKED_ANSWERS = 3, 16
"""Number of answers that the first-batch check scores both ways, and number if these differ by too much."""

PIECE = 5
"""Tokens of each of the check's answers; all but the last go through the model."""

# Answers before the compared ones in the packed row of the check. Errors of a layout add up over them.
_BEFORE = 16

# Tokens of the check's shorter prompt, whose row is padded on the left.
_SHORT = 8

# Number of evenly spaced tokens of the vocabulary whose log-probabilities are compared.
_WORDS = 64

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.07}
"""Difference between the layouts up to which it counts as rounding, as a share of the logits' spread, by dtype.

Measured on SmolLM2-135M in bfloat16 (MovieLens, CPU): correct layouts differ by 0.024 to 0.029; a causal mask by 0.73
to 1.05; a window of half the prompt by 0.92 to 1.06; columns for positions by 0.48 to 0.61. Correct layouts differ by
2e-6 in float32 and by 0.017 under bfloat16 autocast. For the tests' tiny models in bfloat16 it is at most 0.012, and
the weakest fault, columns for positions, gives 0.078 for sets of 30 tokens or more.
"""


def choice_logps(model: nn.Module, *passes: PackedBatch, within: CatalogueSoftmax | None = None) -> Tensor:
    """Return the log-probabilities of the answers, [B, C] in float32.

    Each is a sum over the answer's tokens, end token included, without a length penalty. Tokens compete with all
    others, or with those that continue to a title of a catalogue. Entries outside every `choice_mask` are −inf.
    Gradients flow to the model.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        *passes: a batch from `prefrec.lm.packing.pack`, or all batches from `pack_passes`.
        within: the catalogue that the passes were packed with; None: among all tokens.
    """
    logps = sum_by_choice(answer_token_logps(model, passes[0], within), passes[0])
    for batch in passes[1:]:
        more = sum_by_choice(answer_token_logps(model, batch, within), batch)
        logps = torch.where(batch.choice_mask, more, logps)
    return logps


def answer_token_logps(model: nn.Module, batch: PackedBatch, within: CatalogueSoftmax | None = None) -> Tensor:
    """Return the log-probability of every answer token, [M] in float32 (M as in `PackedBatch`).

    Raises:
        ValueError: the batch was not packed within this catalogue.
    """
    if (batch.nodes is None) != (within is None):
        raise ValueError("a batch must be scored within the catalogue that it was packed with")
    core = language_model(model)
    # Kept columns are passed as indices and not as a number. The model then gathers them into contiguous memory, and
    # the head is one matrix product. A sliced view would cost a copy of the head's weights for every row.
    kept, columns = _kept_columns(batch)
    inputs: dict[str, Any] = {"use_cache": False}
    if takes(core, "logits_to_keep"):
        inputs["logits_to_keep"] = kept
    else:
        columns = kept[columns]  # of all columns
    rows = batch.rows
    words = None if within is None else within.words.to(batch.targets.device)
    with fastest_attention(core, batch) as shaped, _head_at(model, rows, columns, words) as head:
        if _is_packed(batch):
            masks = attention_masks(core.config, shaped.attention_mask, shaped.position_ids, core.dtype)
            inputs |= {"attention_mask": masks, "position_ids": shaped.position_ids}
        else:
            inputs["attention_mask"] = batch.attention_mask.long()
        logits = model(input_ids=shaped.input_ids, **inputs).logits
    if head.index is not None:
        rows, columns = torch.zeros_like(rows), head.index
    if within is None or batch.nodes is None:
        return token_logps(logits, rows, columns, batch.targets)
    # Answers that branch at one node read the same position: its softmax is computed once.
    positions, index = torch.unique(rows * logits.shape[1] + columns, return_inverse=True)
    picked = logits.flatten(0, 1)[positions]
    nodes = torch.empty_like(positions).index_copy_(0, index, batch.nodes)
    return within.token_logps(picked if head.is_restricted else picked[:, words], nodes, index, batch.targets)


@dataclass
class _Head:
    """The form of the head's output in one call.

    Attributes:
        index: [M] each token's index among the positions passed to the head; None if all were passed.
        is_restricted: the logits are those of some words only.
    """

    index: Tensor | None = None
    is_restricted: bool = False


@contextmanager
def _head_at(model: nn.Module, rows: Tensor, columns: Tensor, words: Tensor | None) -> Iterator[_Head]:
    """Pass only the needed positions to the head inside this context, each once, as one row [1, P].

    This skips padding and the ends of answers. With `words`, the head computes only their logits, in float32.
    Compiled models, and models not known to call their head once on hidden states [R, K, D], are not changed.

    Args:
        model: as in `answer_token_logps`.
        rows, columns: [M], position of each token's logits.
        words: [U] token ids; None: all.
    """
    core, out = language_model(model), _Head()

    def pick(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0]
        positions, out.index = torch.unique(rows * hidden.shape[1] + columns, return_inverse=True)
        return hidden.flatten(0, 1)[positions][None], *inputs[1:]

    if core.config.model_type not in BRANCHING or _is_compiled(model):
        yield out
        return
    head = core.get_output_embeddings()
    with ExitStack() as stack:
        stack.callback(head.register_forward_pre_hook(pick).remove)
        if words is not None:
            out.is_restricted = stack.enter_context(restricted_head(head, words))
        yield out


@contextmanager
def restricted_head(head: nn.Module, words: Tensor) -> Iterator[bool]:
    """Restrict a head to the logits of `words` [U] inside this context: [..., U] in float32, in their order.

    Args:
        head: a linear layer, or one with a method `logits_of(hidden, words)`.
        words: token ids.

    Yields:
        False if the head is not changed, because it is adapted or quantised.
    """
    if not (hasattr(head, "logits_of") or type(head) in (nn.Linear, OneDNNLinear)):
        yield False
        return
    whole = cast(Any, head)

    def forward(hidden: Tensor) -> Tensor:
        # Autocast would round the logits to bfloat16, which makes titles with close scores equal.
        with torch.autocast(hidden.device.type, enabled=False):
            if hasattr(whole, "logits_of"):
                return whole.logits_of(hidden.float(), words)
            bias = None if whole.bias is None else whole.bias[words].float()
            return F.linear(hidden.float(), whole.weight[words].float(), bias)

    own = head.__dict__.get("forward")
    cast(Any, head).forward = forward
    try:
        yield True
    finally:
        if own is None:
            del head.forward
        else:
            cast(Any, head).forward = own


def token_logps(
    logits: Tensor, rows: Tensor, columns: Tensor, targets: Tensor, *, block_bytes: int | None = None
) -> Tensor:
    """Return the log-softmax of `logits` [R, K, V] at (rows, columns, targets), each [M]: [M] in float32.

    The log-softmax is computed in blocks of positions, and again for the gradient, so only one block is in float32 at
    a time. The gradient has the dtype of the logits. A position read by several tokens is computed once.

    Args:
        logits: of the model, in its own dtype.
        rows: first index of each token's logits.
        columns: second index.
        targets: token ids.
        block_bytes: size of a block in float32, of at least one position; None: `BLOCK_BYTES`.
    """
    kept, vocabulary = logits.shape[1:]
    size = max(1, (BLOCK_BYTES if block_bytes is None else block_bytes) // (4 * vocabulary))
    return _TokenLogps.apply(logits.reshape(-1, vocabulary), rows * kept + columns, targets, size)


class _TokenLogps(torch.autograd.Function):
    """The log-softmax of some rows of [P, V] at one column each, without a float32 copy of all rows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, positions: Tensor, targets: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(logits, positions, targets)
        ctx.size = size
        out = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
        for block, tokens, index in _blocks(positions, size, len(logits)):
            logps = torch.log_softmax(logits[block], dim=-1, dtype=torch.float32)
            out[tokens] = logps[index, targets[tokens]]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        logits, positions, targets = ctx.saved_tensors
        out = None
        for block, tokens, index in _blocks(positions, ctx.size, len(logits)):
            # d log softmax(x)[t] / dx = onehot(t) − softmax(x), summed over the tokens of a position
            slope, grad = slopes[0][tokens], torch.softmax(logits[block], dim=-1, dtype=torch.float32)
            total = torch.zeros(len(grad), device=slope.device).index_add_(0, index, slope)
            # Answers may share a token at one position, so the slopes must add up.
            grad.mul_(-total[:, None]).index_put_((index, targets[tokens]), slope, accumulate=True)
            if len(grad) == len(logits):  # one block of all rows needs no second buffer
                return grad.to(logits.dtype), None, None, None
            out = torch.zeros_like(logits) if out is None else out
            out[block] = grad.to(logits.dtype)
        return torch.zeros_like(logits) if out is None else out, None, None, None


def _blocks(positions: Tensor, size: int, count: int) -> Iterator[tuple[Tensor | slice, Tensor, Tensor]]:
    """Yield at most `size` distinct positions at a time, the tokens [m] read there, and their index in the block."""
    different, index = torch.unique(positions, return_inverse=True)
    order = torch.argsort(index)
    starts = torch.arange(0, len(different) + size, size, device=positions.device)
    ends = torch.searchsorted(index[order], starts).tolist()
    for i, start in enumerate(range(0, len(different), size)):
        tokens = order[ends[i] : ends[i + 1]]
        block = slice(start, start + size)
        # If all positions are read, a slice is a view, where an index would copy the logits.
        yield block if len(different) == count else different[block], tokens, index[tokens] - start


def sum_by_choice(token_logps: Tensor, batch: PackedBatch) -> Tensor:
    """Return the answers' log-probabilities [B, C] from those of their tokens [M]; −inf where there is no answer."""
    sums = torch.zeros(batch.choice_mask.numel(), dtype=token_logps.dtype, device=token_logps.device)
    sums = sums.index_add(0, batch.choices, token_logps)
    return sums.view(batch.choice_mask.shape).masked_fill(~batch.choice_mask, -torch.inf)


def layout_for(config: PretrainedConfig) -> tuple[Layout, str]:
    """Return the layout that the configuration of a model allows, and the reason.

    It is `separate` where a mask alone does not separate answers and packed scores would be silently wrong: layers
    with a state, positions from columns, and attention implementations without a mask of pairs. Other models get
    `packed`; those not in `BRANCHING` should be checked with `verified_layout`.
    """
    name, implementation = config.model_type, attention_implementation(config)
    if name in RECURRENT:
        return "separate", f"model type {name!r} passes a state from token to token, which cannot branch"
    if foreign := sorted(set(layer_kinds(config)) - MASKED_LAYERS):
        return "separate", f"layers of type {', '.join(foreign)} cannot branch (model type {name!r})"
    if name in BY_COLUMN:
        return "separate", f"{BY_COLUMN[name]} (model type {name!r})"
    if getattr(config, "alibi", False):
        return "separate", f"ALiBi biases follow the columns, not the branches (model type {name!r})"
    if implementation not in MASKED_ATTENTION:
        return "separate", f"attention implementation {implementation!r} does not take a mask of pairs; use sdpa"
    if name not in BRANCHING:
        return "packed", f"model type {name!r} is not in the table: checked on the first batch"
    return "packed", f"model type {name!r} branches by its mask"


def verified_layout(model: nn.Module, choice_set: ChoiceSet, pad_id: int, layout: Layout) -> tuple[Layout, str]:
    """Return `layout`, or `separate` if packed scores differ from those of one row per answer; and the reason.

    Answers made from the choice set's text (`probe_set`) are scored both ways, also after a shorter prompt, to check
    padding. The check is as strict for sets with one answer or short answers. Call this in the autocast context that
    the model will be used in.

    Args:
        model: a causal language model, on its device.
        choice_set: a prompt with its answers; a long prompt gives a stricter check.
        pad_id: token id for padding.
        layout: from `layout_for`; `separate` is returned unchecked.
    """
    if layout == "separate":
        return layout, "nothing to check"
    core = language_model(model)
    name = repr(core.config.model_type)
    if getattr(core, "_is_stateful", False):
        return "separate", f"model type {name} passes a state from token to token, which cannot branch"
    if not takes(core, "position_ids"):
        return "separate", f"model type {name} does not take position ids"
    most = tolerance(core, next(model.parameters()).device)
    try:
        gap = recheck_gap(lambda answers: _gap(model, choice_set, pad_id, answers), most)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as e:
        return "separate", f"model type {name} refuses the packed layout: {type(e).__name__}: {e}"
    if gap <= most:
        return "packed", f"model type {name}: packed and separate scores agree ({gap:.1e} of the logits' spread)"
    return (
        "separate",
        f"model type {name} gives other scores in a packed row (by {gap:.2g} of the logits' spread; rounding: at "
        f"most {most:g})",
    )


def recheck_gap(gap: Callable[[int], float], most: float) -> float:
    """Return the gap over a few answers, or over more answers if the first one exceeds `most`."""
    first = gap(CHECKED_ANSWERS)
    return gap(RECHECKED_ANSWERS) if first > most else first


def probe_set(choice_set: ChoiceSet, compared: int) -> ChoiceSet:
    """Return a choice set whose last `compared` answers show if a model can branch.

    Its answers are pieces of `PIECE` tokens of the set's own text. Positions do not exceed those of the set, except
    that a short prompt is extended to leave room for padding in the shorter row.
    """
    prompt, text = choice_set.prompt, [t for part in (*choice_set.answers, choice_set.prompt) for t in part]
    if len(text) % PIECE == 0:
        text.append(text[0])  # otherwise the second round through a short text would repeat the same pieces
    tokens = cycle(text)
    answers = tuple(tuple(islice(tokens, PIECE)) for _ in range(_BEFORE + compared))
    longest = choice_set.length - len(prompt)
    prompt = prompt[max(0, PIECE - longest) :]
    return ChoiceSet((*islice(tokens, max(0, 2 * _SHORT - len(prompt))), *prompt), answers)


def probe_words(core: Any) -> Tensor:
    """Return the token ids whose log-probabilities represent the vocabulary."""
    return torch.linspace(0, text_config(core.config).vocab_size - 1, _WORDS).long()


def relative_gap(got: Tensor, want: Tensor) -> Tensor:
    """Return the mean difference of logits [..., W] as a share of the spread of the wanted ones, a scalar."""
    return _off_centre(got - want).mean() / _off_centre(want).median(-1).values.mean().clamp_min(1e-30)


def language_model(model: nn.Module) -> Any:
    """Return the transformers model inside adapters, compilation and wrappers for many processes."""
    while True:
        inner: Any = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None and callable(base := getattr(model, "get_base_model", None)):
            inner = base()
        if inner is None:
            return model
        model = inner


def _is_compiled(model: nn.Module) -> bool:
    """Return True if the model or one of its modules is compiled."""
    return any("_orig_mod" in m._modules for m in model.modules())


def _is_packed(batch: PackedBatch) -> bool:
    return batch.attention_mask.dim() == 4


def _kept_columns(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return the columns of the row that need logits, and each answer token's index [M] among them."""
    length = batch.input_ids.shape[1]
    first = length - batch.logits_to_keep
    if _is_packed(batch):
        return torch.arange(first, length, device=batch.columns.device), batch.columns
    # Rows start their answers at different columns, and not every column between the first and the last is needed.
    kept, columns = torch.unique(batch.columns + first, return_inverse=True)
    return kept, columns


def takes(model: nn.Module, argument: str) -> bool:
    """Return True if the model's forward has an argument of this name."""
    # Inspect the class, because accelerate wraps the forward of the instance.
    return argument in inspect.signature(type(model).forward).parameters


def _gap(model: nn.Module, choice_set: ChoiceSet, pad_id: int, compared: int) -> float:
    """Return the larger relative gap between the layouts, of a long prompt's row and of the padded row beside it."""
    probe = probe_set(choice_set, compared)
    prompts = probe.prompt, probe.prompt[-_SHORT:]
    rows = _probe_logps(model, [ChoiceSet(p, probe.answers) for p in prompts], pad_id, "packed")[:, -compared:]
    gaps = []
    for prompt, packed in zip(prompts, rows, strict=True):
        alone = ChoiceSet(prompt, probe.answers[-compared:])
        separate = _probe_logps(model, [alone], pad_id, "separate")[0]
        # In the row without padding the first token is read at the prompt's end, where no layout can be wrong. It
        # would only dilute the mean.
        first = 1 if prompt is probe.prompt else 0
        gaps.append(relative_gap(packed[:, first:], separate[:, first:]))
    return float(torch.stack(gaps).max())  # NaN if one of them is, so that a broken layout is not accepted


def _probe_logps(model: nn.Module, choice_sets: list[ChoiceSet], pad_id: int, layout: Layout) -> Tensor:
    """Return log-probabilities [B, C, PIECE, W] of the probed words at each token, without gradient or dropout."""
    batch, words = pack(choice_sets, pad_id=pad_id, layout=layout), probe_words(language_model(model))
    each = {k: getattr(batch, k).repeat_interleave(_WORDS) for k in ("rows", "columns", "choices")}
    batch = replace(batch, **each, targets=words.repeat(len(batch.targets)))
    # With dropout on, the two layouts would differ although both are right.
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logps = answer_token_logps(model, batch.to(next(model.parameters()).device))
    finally:
        model.train(was_training)
    return logps.view(len(choice_sets), -1, PIECE, _WORDS)


def _off_centre(values: Tensor) -> Tensor:
    """Return the distances from the median of the last dimension, which do not change with a common offset."""
    return (values - values.median(-1, keepdim=True).values).abs()


def tolerance(core: Any, device: torch.device) -> float:
    """Return the limit of `TOLERANCE` for the dtype that the model computes in."""
    dtype = compute_dtype(core, device)
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        dtype = torch.bfloat16  # matrix products may be rounded to it
    return TOLERANCE.get(dtype, TOLERANCE[torch.float32])
