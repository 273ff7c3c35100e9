"""FSDP2: two processes on a CPU that share out weights (`fully_shard`) get the gradients of one process."""

import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.losses import softmax_dpo_loss
from prefrec.prompts import ChoiceSet
from tiny_training import adapted_model

SETS = [
    ChoiceSet(tuple(range(10, 26)), ((30, 31, 2), (32, 2), (33, 34, 35, 2))),
    ChoiceSet(tuple(range(40, 49)), ((50, 2), (51, 52, 53, 54, 2), (30, 2))),
]


def backward(model, sets):
    logps = choice_logps(model, pack(sets, pad_id=0))
    softmax_dpo_loss(logps, 0.9 * logps.detach(), 1.0).losses.sum().backward()


def shard_and_backward(rank, port, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model, mesh = adapted_model(), init_device_mesh("cpu", (2,))
    for layer in (*model.get_base_model().model.layers, model):
        fully_shard(layer, mesh=mesh)
    backward(model, SETS[rank : rank + 1])
    shares = [p.to_local().numel() / p.numel() for p in model.parameters()]
    # FSDP averages over the processes what one process sums over the rows.
    gradients = {n: 2 * p.grad.full_tensor().numpy() for n, p in model.named_parameters() if p.grad is not None}
    if rank == 0:
        queue.put((shares, gradients))
    dist.barrier()
    dist.destroy_process_group()


def test_gradients_are_those_of_one_process():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    fork = multiprocessing.get_context("fork")  # nothing is imported again
    queue = fork.Queue()
    jobs = [fork.Process(target=shard_and_backward, args=(rank, port, queue), daemon=True) for rank in (0, 1)]
    for job in jobs:
        job.start()
    shares, got = queue.get(timeout=120)
    for job in jobs:
        job.join(timeout=60)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert shares == pytest.approx([0.5] * len(shares))
    model = adapted_model()
    backward(model, SETS)
    want = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == want.keys()
    for name, grad in want.items():
        torch.testing.assert_close(torch.from_numpy(got[name]), grad, rtol=0, atol=1e-5 * float(grad.abs().max()))
