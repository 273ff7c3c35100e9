"""A training step asks a device for no number: it runs on shapes alone, and is one graph."""

from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from loss_cases import ALL_LOSSES
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.packing import pack, pack_passes
from prefrec.lm.scoring import answer_token_logps, choice_logps
from prefrec.losses import needs_reference, takes
from prefrec.prompts import ChoiceSet
from prefrec.training import lora_config
from prefrec.training.softmax_dpo import preference_metrics
from tiny import tiny_llama

LLAMA_2_7B = LlamaConfig(
    vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=32,
)  # fmt: skip


class OnlyMeta(TorchDispatchMode):
    """Refuses tensors on the CPU, as an index of which a GPU would get a copy in the middle of a step."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        seen = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        assert seen <= {"meta"}, f"{func} meets a tensor of the CPU"
        return out


@pytest.fixture(scope="module")
def llama():
    """Llama-2-7B with an adapter on every layer, without a weight in memory."""
    with torch.device("meta"):
        return get_peft_model(LlamaForCausalLM(LLAMA_2_7B), lora_config(r=16)).bfloat16().train()


@pytest.mark.parametrize("negatives", [3, 63])
def test_scores_losses_and_gradients_on_shapes_alone(llama, negatives):
    answers = tuple((n, *range(5)) for n in range(1 + negatives))
    batch = pack([ChoiceSet(tuple(range(256)), answers)] * 2, pad_id=0).to("meta")
    with OnlyMeta():
        logps = choice_logps(llama, batch)
        assert logps.shape == (2, 1 + negatives)
        losses = []
        for name, loss in ALL_LOSSES.items():
            columns = {c: torch.ones_like(logps) for c in ("scores", "lengths") if takes(loss, c)}
            out = loss(logps, logps.detach() if needs_reference(loss) else None, 1.0, **columns)
            assert out.losses.shape == (2,), name
            assert all(v.shape == (2,) for v in preference_metrics(out, logps).values()), name
            losses.append(out.losses)
        torch.cat(losses).sum().backward()
    assert all(p.grad.shape == p.shape for p in llama.parameters() if p.requires_grad)


@pytest.mark.parametrize("within", [False, True])
def test_scoring_is_one_graph(within):
    sets = [ChoiceSet((1, 2, 3), ((4, 9), (5, 6, 9))), ChoiceSet((1, 2), ((7, 9), (8, 9)))]
    among = CatalogueSoftmax([a for choices in sets for a in choices.answers]) if within else None
    (batch,) = pack_passes(sets, pad_id=0, within=among)
    model = tiny_llama()
    torch._dynamo.reset()
    found = torch._dynamo.explain(partial(answer_token_logps, within=among))(model, batch)
    assert (found.break_reasons, found.graph_count) == ([], 1)
