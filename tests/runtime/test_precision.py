"""A bfloat16 copy computes, and the float32 weights learn."""

from dataclasses import replace

import torch
from conftest import MINILM, prepare

from minirlhf import loops
from minirlhf.settings import FINETUNE


def test_a_bfloat16_copy_works_and_float32_weights_learn(monkeypatch):
    def plain(weights, **_):
        return torch.optim.SGD(weights, lr=1.0)

    monkeypatch.setattr(torch.optim, "AdamW", plain)
    # Both start with the same head; measured by the copy, its own would be a little different.
    monkeypatch.setattr(loops, "start_head", lambda *_: None)
    settings = replace(FINETUNE, epochs=1, batch_size=8, lr=1e-6, clip=1e9, warmup=0.0)
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        built, token_rows, part = prepare("bt-finetune", MINILM)
        torch.nn.init.normal_(built.head.output.weight)
        before = {n: p.detach().clone() for n, p in built.encoder.named_parameters()}
        list(loops.fit_finetune(built, token_rows, part, part, settings, dtype))
        assert {p.dtype for p in built.parameters()} == {torch.float32}
        after = dict(built.encoder.named_parameters())
        moved[dtype] = torch.cat([(after[n] - before[n]).flatten().detach() for n in before])
    exact, rough = moved.values()
    # In bfloat16 weights steps as small as these would be lost.
    assert not torch.equal(exact, rough)
    assert torch.cosine_similarity(exact.double(), rough.double(), dim=0) > 0.99
    assert 0.9 < rough.norm() / exact.norm() < 1.1


def test_a_copy_in_another_precision_leaves_the_buffers_alone(tiny_decoder):
    built, token_rows, _ = prepare("bt-finetune", tiny_decoder)
    worker = built.in_precision(torch.bfloat16)
    assert {p.dtype for p in worker.encoder.parameters()} == {torch.bfloat16}
    assert all(b.dtype != torch.bfloat16 for b in worker.encoder.buffers())
    assert worker.head is built.head
    assert built.in_precision(torch.float32) is built
    whole = built.vectors(token_rows)
    rough = worker.vectors(token_rows)
    assert rough.dtype == torch.float32
    assert 0 < (whole - rough).norm() / whole.norm() < 0.02
