"""LLM.int8(): a linear layer in 8-bit integers that survives outlier features.

What it replaces: bitsandbytes' `Linear8bitLt`, which is what transformers' `load_in_8bit` puts in
place of nn.Linear.
How it works: each row of the weight W (out, in) is scaled so that its largest magnitude becomes
127, and rounded half to
    even; so is each row of the input x (N, in). With s and t the row maxima,

        y = (Qx Qwᵀ) ⊙ (s tᵀ) / 127²                Qx, Qw int8, the product exact in int32

    One large feature in a row of x would push all the others into a few steps, and language models
    grow such features: the same few columns, a hundred times larger than the rest. So every column
    of x that holds a value of magnitude ≥ threshold (6.0) is taken out of the integer product and
    multiplied in floating point with the dequantized weights (Dettmers et al. 2022, "LLM.int8()",
    section 3). For training, W is dequantized and the product is a float one, as in bitsandbytes on
    a CPU; the backward pass dequantizes again and keeps nothing but the int8 weight, in eval mode
    too.
What it leaves out: training W itself, 8-bit gradients, kernels of its own for a GPU. There is no
`lora_forward`: an adapter
    adds its detour to this layer's output by LoRA's plain path, which keeps x and x Aᵀ for
    backward, and no weight.
Where numerics differ: weights and integers are those of bitsandbytes to the bit, weights passing
through fp16 as there. (But
    for a single input feature, where torch._int_mm, and with it bitsandbytes on a CPU, returns
    unwritten memory.) The unit is 1/127² = 6.2000124e-05, where bitsandbytes has 6.200124e-05
    (1.8e-5 relative): in a deep model that turns a few roundings of later layers. A row of zeros
    gives zeros on purpose, not by way of NaN. `SCB` stays fp32 and a bias keeps its type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import MiniloraError
from .replace import replace_linears

THRESHOLD = 6.0

UNIT = 1 / 127**2  # what one step of the integer product is worth, per unit of both row maxima

CHUNK = 1024  # 1024·127² < 2²⁴: a sum of so many products of int8 is exact in float32, in any order


def check_threshold(threshold: float) -> float:
    """The threshold, if it can be one: 0 (no decomposition) or a positive number."""
    if not (isinstance(threshold, (int, float)) and threshold >= 0):
        raise MiniloraError(
            f"outlier threshold {threshold!r} is no magnitude; choose 6.0, another number "
            "above 0, or 0 for none"
        )
    return float(threshold)


def outlier_columns(x: torch.Tensor, threshold: float = THRESHOLD) -> torch.Tensor:
    """Indices of the features that reach the threshold somewhere: x (..., in) -> (k,) int64. Judged
    in fp16, none at 0.
    """
    if not check_threshold(threshold):
        return torch.empty(0, dtype=torch.int64, device=x.device)
    reached = x.detach().half().abs() >= threshold
    return reached.reshape(-1, x.shape[-1]).any(dim=0).nonzero().flatten()


def quantize_rows(
    x: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (N, in) -> int8 codes (N, in), fp32 row maxima (N,), outlier columns (k,), whose codes are
    0.

    The row maximum leaves out the outliers themselves, not the rest of their columns (as
    bitsandbytes does).
    """
    half = x.detach().half()
    columns = outlier_columns(x, threshold)
    if columns.numel():
        half = half.masked_fill(half.abs() >= threshold, 0)
    scale = half.abs().amax(dim=1).float()
    # 0 for a row of zeros, NaN stays NaN and shows in the output
    steps = torch.where(scale > 0, 127 / scale, scale)
    codes = (half.float() * steps[:, None]).round_().nan_to_num_(0).to(torch.int8)
    codes[:, columns] = 0
    return codes, scale, columns


def _int_mm_fits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether torch's own int8 product takes these shapes here, is exact, and is the fast way."""
    if a.shape[1] == 1:  # torch 2.13 on a CPU returns memory that it has not written
        return False
    if (
        a.device.type == "cpu"
    ):  # before torch 2.6 it could saturate without VNNI; without AVX-512 it is slow
        version = tuple(int(part) for part in torch.__version__.split(".")[:2])
        return version >= (2, 6) and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return (
        a.device.type == "cuda" and a.shape[0] > 16 and a.shape[1] % 8 == 0 and b.shape[0] % 8 == 0
    )


def chunked_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (N, K) int8, b (M, K) int8 -> a bᵀ (N, M), exact on any device: float products of 1024
    columns, summed as int64.
    """
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int64, device=a.device)
    for start in range(0, a.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        total += (a[:, part].float() @ b[:, part].float().T).to(torch.int64)
    return total


def integer_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (N, K) int8, b (M, K) int8 -> a bᵀ (N, M), exact: int32, or int64 for K so large that int32
    could wrap.
    """
    if a.shape[1] * 128 * 128 >= 2**31:
        return chunked_product(a, b)
    return torch._int_mm(a, b.T) if _int_mm_fits(a, b) else chunked_product(a, b).to(torch.int32)


def dequantize(
    codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """codes · (scale / 127), row by row: (out, in) int8 and (out,) fp32 -> (out, in), rounded to
    dtype once.
    """
    return codes.to(dtype).mul_((scale * (1 / 127))[:, None])


def int8_matmul(x, codes, scale, bias=None, threshold: float = THRESHOLD) -> torch.Tensor:
    """The two-part product x Wᵀ + bias: x (N, in), codes (out, in) int8, scale (out,) -> (N, out)
    of x's type.

    threshold=0 is plain row-wise int8, without the second part.
    """
    rows, row_scale, columns = quantize_rows(x, threshold)
    whole = integer_product(rows, codes)  # (N, out)
    y = whole * (row_scale[:, None] * scale[None, :]) * UNIT
    if bias is not None:
        y += bias
    y = y.to(x.dtype)
    if columns.numel():  # the second part, with x as it came, not as fp16
        y = y.addmm(x[:, columns], dequantize(codes[:, columns], scale, x.dtype).T)
    return y


class _Int8Product(torch.autograd.Function):
    """y = x Wᵀ + b with W in int8. Backward: ∂L/∂x = G W and ∂L/∂b = Σ G, W dequantized anew; x is
    not kept.
    """

    @staticmethod
    def forward(ctx, x, codes, scale, bias, threshold, integers):
        ctx.save_for_backward(codes, scale)
        ctx.bias_dtype = None if bias is None else bias.dtype
        if not integers:
            return F.linear(
                x, dequantize(codes, scale, x.dtype), None if bias is None else bias.to(x.dtype)
            )
        flat = x.reshape(-1, x.shape[-1])
        return int8_matmul(flat, codes, scale, bias, threshold).reshape(
            *x.shape[:-1], codes.shape[0]
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        codes, scale = ctx.saved_tensors
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = grad @ dequantize(codes, scale, grad.dtype)
        if ctx.needs_input_grad[3]:
            db = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
        return dx, None, None, db, None, None


def check_weight(weight: torch.Tensor, name: str) -> None:
    """Raise MiniloraError for a weight that fp16, the first step of its quantization, cannot
    hold.
    """
    largest = weight.detach().abs().max().item()  # NaN wins
    if not largest < 65520:  # what rounds to 65504, the last fp16
        raise MiniloraError(
            f"{name} has a weight of magnitude {largest:g}; int8 starts from fp16, which ends "
            "at 65504: use qlora or lora instead"
        )


class Int8Linear(nn.Module):
    """A frozen linear layer in int8. In eval mode the integer product, in train mode the
    dequantized float one.

    State as in bitsandbytes: `weight` (out, in) int8, `SCB` (out,) fp32 row maxima, `weight_format`
    0 ("row"), `bias`. dtype: the floating type that the weight stood for; follows `.to()` and is
    what `dense_weight` gives.
    """

    SCB: torch.Tensor  # (out,) fp32
    weight_format: torch.Tensor  # () uint8

    def __init__(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        threshold: float = THRESHOLD,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.threshold, self.dtype = check_threshold(threshold), dtype
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        )
        self.register_buffer("SCB", scale)
        self.register_buffer(
            "weight_format", torch.zeros((), dtype=torch.uint8, device=codes.device)
        )

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, threshold: float = THRESHOLD, name: str = "the layer"
    ) -> Int8Linear:
        """Quantize an nn.Linear. Raises MiniloraError (with `name`) for weights that fp16 cannot
        hold.
        """
        check_weight(linear.weight, name)
        weight = linear.weight.detach()
        codes, scale, _ = quantize_rows(weight)
        return cls(codes, scale, linear.bias, threshold, weight.dtype).train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        return _Int8Product.apply(
            x, self.weight, self.SCB, self.bias, self.threshold, not self.training
        )

    def dense_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """W (out, in) as numbers: what merging an adapter adds to."""
        return dequantize(self.weight, self.SCB, dtype or self.dtype)

    def _apply(self, fn, recurse=True):
        """`.to()` and its kin: the weight's nominal type follows, SCB moves but stays fp32."""
        scale = self.SCB
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=scale.device)).dtype
        super()._apply(fn, recurse)
        if self.SCB.dtype != torch.float32:
            self.SCB = scale.to(self.SCB.device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        """Refuses what would load silently wrong: a float weight (truncated to integers) or another
        layout.
        """
        weight = state_dict.get(prefix + "weight")
        layout = state_dict.setdefault(prefix + "weight_format", self.weight_format)
        if weight is not None and weight.dtype != torch.int8:
            raise MiniloraError(
                f"{prefix}weight is {weight.dtype}, not int8; load it into the float model, "
                "then quantize that"
            )
        if int(layout) != 0:
            raise MiniloraError(
                f"{prefix}weight_format is {int(layout)}, not 0 (row); save it again with "
                "bitsandbytes 0.45 or later"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        has_bias = self.bias is not None
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={has_bias}, "
            f"threshold={self.threshold}"
        )


def quantize_model_int8(
    model: nn.Module, threshold: float = THRESHOLD, skip: Sequence[str] = ()
) -> nn.Module:
    """Put an Int8Linear in place of every nn.Linear but the output head and names in `skip`; works
    in place, returns model.

    Embeddings and norms stay as they are. Quantize first, then `lora.add_lora`. Raises
    MiniloraError for a model that has adapters already, no nn.Linear left, or a weight that fp16
    cannot hold; the model is then as it was.
    """
    check_threshold(threshold)
    return replace_linears(
        model, lambda linear, path: Int8Linear.from_linear(linear, threshold, path), skip
    )


# ---- seeing outliers


class ProductError(NamedTuple):
    """What `product_error` measures."""

    error: float  # ‖y − x Wᵀ‖ / ‖x Wᵀ‖
    columns: int  # features that took the floating-point way
    share: float  # the same as a share of all features


def product_error(
    x: torch.Tensor, weight: torch.Tensor, threshold: float = THRESHOLD
) -> ProductError:
    """Relative error of the int8 product of x (N, in) and weight (out, in); threshold=0 measures
    plain int8.
    """
    codes, scale, _ = quantize_rows(weight)
    exact = x.double() @ weight.double().T
    error = (
        int8_matmul(x, codes, scale, threshold=threshold).double() - exact
    ).norm() / exact.norm()
    columns = outlier_columns(x, threshold).numel()
    return ProductError(error.item(), columns, columns / x.shape[-1])


def trace_outliers(
    model: nn.Module, run: Callable[[], object], threshold: float = THRESHOLD
) -> dict[str, torch.Tensor]:
    """Call run(), which uses the model, and return for each linear layer the outlier columns (k,)
    that its inputs had.
    """
    found: dict[str, torch.Tensor] = {}

    def watch(name):
        def look(module, inputs):
            columns = outlier_columns(inputs[0], threshold)
            found[name] = torch.cat([found[name], columns]).unique() if name in found else columns

        return look

    linears = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Int8Linear))
    }
    hooks = [module.register_forward_pre_hook(watch(path)) for path, module in linears.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def plant_outliers(model: Any, columns: list[int], factor: float = 64.0) -> nn.Module:
    """Give a Llama, ours or transformers', the outlier features of a large model without changing
    its answers: in every layer the norms' weights of `columns` are multiplied by factor and the
    columns of the linears that read them divided by it. In place.

    With a factor that is a power of two the float model's logits stay the same up to the order of
    summation.
    """
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers = {
            layer.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
            layer.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
        }
        for norm, linears in readers.items():
            norm.weight[columns] *= factor
            for linear in linears:
                linear.weight[:, columns] /= factor
    return model
