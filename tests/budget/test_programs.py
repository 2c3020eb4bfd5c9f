"""What other programs hold, as `programs` counts it: their steps rehearsed on tensors without
memory, and torch's own partitioner.

The layers here are written anew after the descriptions in `minilora.budget.programs`; nothing of
those programs is imported.
"""

import itertools
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from minilora import lora
from minilora.budget.catalog import Shape
from minilora.budget.estimate import WORKSPACES
from minilora.budget.measure import fake_run, ledger
from minilora.budget.published import programs
from minilora.budget.setup import make

pytestmark = pytest.mark.parity  # beside the library that people use

HALF = torch.bfloat16
SMALL = Shape("small", 1024, 2816, 3, 8, 8, 32000, context=4096)


class Decode(torch.autograd.Function):
    """A product with a 4-bit matrix, as bitsandbytes 0.41 had it: decoded in fp16, cast to bf16,
    its input kept.
    """

    @staticmethod
    def forward(ctx, x, weight, shape):
        ctx.kept = x, weight, shape
        return F.linear(x, torch.empty(shape, dtype=torch.float16).to(x.dtype))

    @staticmethod
    def backward(ctx, dy):
        shape = ctx.kept[-1]
        return dy @ torch.empty(shape, dtype=torch.float16).to(dy.dtype), None, None


class Linear(nn.Module):
    def __init__(self, inputs, outputs, packed):
        super().__init__()
        self.shape, self.packed = (outputs, inputs), packed
        self.register_buffer(
            "weight",
            torch.empty(inputs * outputs // 2, dtype=torch.uint8)
            if packed
            else torch.empty(outputs, inputs, dtype=HALF),
        )
        if packed:
            self.register_buffer("scales", torch.empty(inputs * outputs // 64))

    def forward(self, x):
        return Decode.apply(x, self.weight, self.shape) if self.packed else F.linear(x, self.weight)


def normed(x, weight):
    wide = x.float()
    return (weight * (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + 1e-5))).to(x.dtype)


def turned(x, cos, sin):
    half = x.shape[-1] // 2
    return (x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin).to(x.dtype)


class Layer(nn.Module):
    """LitGPT's block: one matrix for queries, keys and values, the adapter of rank r on queries and
    values padded to it.
    """

    def __init__(self, s, r, packed):
        super().__init__()
        h = s.hidden
        self.heads, self.scale = (
            s.heads,
            nn.Parameter(torch.empty(h, dtype=HALF), requires_grad=False),
        )
        self.qkv, self.out = Linear(h, 3 * h, packed), Linear(h, h, packed)
        self.gate, self.up, self.down = (
            Linear(h, s.ffn, packed),
            Linear(h, s.ffn, packed),
            Linear(s.ffn, h, packed),
        )
        self.A, self.B = (
            nn.Parameter(torch.empty(2 * r, h, dtype=HALF)),
            nn.Parameter(torch.empty(2 * h, r, dtype=HALF)),
        )

    def adapted(self, x):
        low = F.linear(torch.ops.aten.native_dropout(x, 0.05, True)[0], self.A)
        up = F.conv1d(low.transpose(1, 2), self.B[..., None], groups=2).transpose(1, 2)
        place = torch.empty(self.B.shape[0], dtype=torch.int64)
        padded = up.new_zeros(up.shape[0] * up.shape[1], 3 * x.shape[-1]).index_copy(
            1, place, up.transpose(0, 1).reshape(-1, self.B.shape[0])
        )
        return self.qkv(x) + padded.view(up.shape[1], up.shape[0], -1).transpose(0, 1) * 2.0

    def forward(self, x, cos, sin):
        b, t, h = x.shape
        both = (
            self.adapted(normed(x, self.scale)).view(b, t, self.heads, 3, -1).permute(0, 2, 3, 1, 4)
        )
        q, k, v = (part.reshape(b, self.heads, t, -1) for part in both.split(1, dim=2))
        q, k = (
            torch.cat((turned(q, cos, sin), q[..., :0]), -1),
            torch.cat((turned(k, cos, sin), k[..., :0]), -1),
        )
        x = (
            self.out(
                F.scaled_dot_product_attention(q, k, v, is_causal=True)
                .transpose(1, 2)
                .reshape(b, t, h)
            )
            + x
        )
        n = normed(x, self.scale)
        return self.down(F.silu(self.gate(n)) * self.up(n)) + x


def litgpt_peak(setup):
    """Most bytes that stand in the first step: weights before it, then forward and backward, the
    list of logits held throughout.
    """
    s, packed = setup.shape, setup.base == "4bit"
    with FakeTensorMode():
        table, scale = torch.empty(s.vocab, s.hidden, dtype=HALF), torch.empty(s.hidden, dtype=HALF)
        layers, head = (
            nn.ModuleList(Layer(s, setup.rank, packed) for _ in range(s.layers)),
            Linear(s.hidden, s.vocab, packed),
        )
        watch = ledger.Watch()
        for held in (table, scale, *layers.parameters(), *layers.buffers(), *head.buffers()):
            watch.number(held)
        with watch:
            cos, sin = torch.empty(setup.seq, s.head_dim), torch.empty(setup.seq, s.head_dim)
            ids = torch.randint(0, s.vocab, (setup.batch, setup.seq))
            x = F.embedding(ids, table)
            for layer in layers:
                x = layer(x, cos, sin)
            logits = [head(chunk) for chunk in normed(x, scale).split(programs.CHUNK, 1)]
            losses = [
                F.cross_entropy(chunk.reshape(-1, s.vocab), part.reshape(-1), reduction="none")
                for chunk, part in zip(logits, ids.split(programs.CHUNK, 1))
            ]
            torch.cat(losses).mean().backward()
    return max(itertools.accumulate(size for _, size in watch.events))


@pytest.mark.parametrize(
    "method, batch, seq", [("lora", 1, 1304), ("lora", 2, 600), ("qlora", 1, 1304)]
)
def test_what_is_counted_for_litgpt_is_what_its_step_holds(method, batch, seq):
    setup = make(
        SMALL,
        method=method,
        targets="q_proj,v_proj",
        batch=batch,
        seq=seq,
        checkpointing=False,
        double=False,
    )
    counted = sum(programs.litgpt(setup).values()) - WORKSPACES
    assert counted == pytest.approx(litgpt_peak(setup), rel=0.015)


@pytest.mark.slow
def test_what_the_allocator_reserves_is_what_is_written_down():
    setup = make("llama-2-7b", method="qlora", seq=1024, checkpointing=True)
    assert programs.reserved(setup) == programs.RESERVED[1024]


def saved_by_compiler(function, *inputs):
    """(shape, type) of the results that the min-cut partitioner keeps from the forward graph to the
    backward graph.
    """
    from functorch.compile import aot_function, make_boxed_func, min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    found = []

    def backward(graph, given):
        values = [
            node.meta.get("val")
            for node in graph.graph.nodes
            if node.op == "placeholder" and "tangents" not in node.name
        ]
        found.extend(
            (tuple(value.shape), value.dtype) for value in values if isinstance(value, torch.Tensor)
        )
        return make_boxed_func(graph.forward)

    compiled = aot_function(
        function,
        fw_compiler=lambda graph, given: make_boxed_func(graph.forward),
        bw_compiler=backward,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    compiled(*inputs).backward()
    return found


def test_a_compiled_loss_keeps_its_16_bit_logits_and_no_copy_in_fp32():
    logits, labels = (
        torch.randn(64, 500, dtype=HALF, requires_grad=True),
        torch.randint(0, 500, (64,)),
    )
    kept = saved_by_compiler(
        lambda x, y: F.cross_entropy(x.float(), y, reduction="sum"), logits, labels
    )
    wide = [(shape, dtype) for shape, dtype in kept if shape == (64, 500)]
    assert wide == [((64, 500), HALF)]


def test_the_shift_of_logits_copies_nothing_for_a_single_row():
    """So the copy that transformers before 4.46 asked for explains nothing of LLaMA-Factory's
    figures, which are of batch 1.
    """
    one, two = torch.zeros(1, 6, 5), torch.zeros(2, 6, 5)
    assert (
        one[..., :-1, :].contiguous().data_ptr() == one.data_ptr()
        and two[..., :-1, :].contiguous().data_ptr() != two.data_ptr()
    )


def per_layer(method, path):
    """Vectors of 2·N·h bytes by which the peak grows for each layer, by the ledger."""
    peaks = []
    for layers in (2, 3):
        setup = make(
            Shape("part", 4096, 11008, layers, 32, 32, 32000),
            method=method,
            targets="q_proj,v_proj",
            seq=512,
            checkpointing=False,
            detour="fused" if path == "fused" else "plain",
        )
        plan = fake_run.Plan(setup)
        with FakeTensorMode():
            model = fake_run.build(plan)
            if path == "shared":
                share_wide_inputs(model)
            peaks.append(ledger.watch_steps(model, plan, 1).peak)
    return (peaks[1] - peaks[0]) / (2 * setup.tokens * setup.shape.hidden)


def share_wide_inputs(model):
    """Give both adapters of a layer one fp32 copy of x, as norms in fp32 do (PEFT's
    prepare_model_for_kbit_training).
    """
    last = {}

    def forward(self, x):
        if last.get("x") is not x:
            last.update(x=x, wide=x.float())
        A, B = sorted((p for p in self.parameters() if p.requires_grad), key=lambda p: p.shape[0])
        return self.base(x) + (F.linear(F.linear(last["wide"], A), B) * 2.0).to(x.dtype)

    for layer in lora.adapted_layers(model).values():
        layer.forward = types.MethodType(forward, layer)


@pytest.mark.slow
def test_how_many_vectors_a_lora_path_keeps_over_four_bits():
    """7B, rank 8 on queries and values, 512 tokens: 5.97 GiB fused. One fp32 copy of x for both
    adapters is one vector more in each layer, 6.09 GiB (another rehearsal had 6.10); a copy for
    each adapter three more, 6.34. The fused path keeps A and B in 16 bits beside x, hence the
    little less.
    """
    fused = per_layer("qlora", "fused")
    assert per_layer("qlora", "shared") - fused == pytest.approx(1, abs=0.07)
    assert per_layer("qlora", "plain") - fused == pytest.approx(3, abs=0.07)
