"""Speed of quantization and of a QLoRA step beside bitsandbytes, PEFT and plain copying.

What it replaces: nothing; `benchmarks/cpu.py` gathers these rows with the others in one table.
How it works: every row times ours and the peer's alternately, so that a change of the machine's pace hits both, and takes
medians; the ratio is the median of the ratios of neighbouring runs. The processor is a shared one: believe ratios.
What it leaves out: other devices.
Where numerics differ: not measured here; `tests/parity` holds the results to each other.

Run alone: `python benchmarks/_quantize.py [threads ...]`.
"""

from __future__ import annotations

import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Callable

import torch

SIDE = 4096


def interleaved(functions: dict[str, Callable], rounds: int, clock=time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each function, called in turn `rounds` times after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = clock()
            function()
            if number:
                seconds[name].append(clock() - start)
    return seconds


def row(what: str, threads: int, seconds: dict[str, list[float]], goal: float, floor: str) -> dict:
    """One line of the table. `seconds` has "ours", "peer" and the floor's name; ratio > 1 means that ours is faster."""
    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = statistics.median(peer / ours for ours, peer in zip(seconds["ours"], seconds["peer"]))
    return {"what": what, "threads": threads, "ours_ms": median["ours"] * 1e3, "peer_ms": median["peer"] * 1e3,
            "ratio": ratio, "goal": goal, "floor": floor, "floor_ms": median[floor] * 1e3}  # fmt: skip


def code_rows(threads: int, rounds: int) -> list[dict]:
    """Quantize and dequantize a 4096 x 4096 matrix, beside bitsandbytes and beside copying as many fp32 numbers."""
    import bitsandbytes.functional as bnb

    from minilora.quantize import quantize

    x = torch.randn(SIDE, SIDE)
    ours, copied = quantize(x), torch.empty_like(x)
    packed, state = bnb.quantize_4bit(x, quant_type="nf4")
    memcpy = {"memcpy fp32": lambda: copied.copy_(x)}
    quantizing = memcpy | {"ours": lambda: quantize(x), "peer": lambda: bnb.quantize_4bit(x, quant_type="nf4")}
    rows = [row("NF4 quantize", threads, interleaved(quantizing, rounds), 5.0 if threads == 1 else 4.5, "memcpy fp32")]
    for dtype, goal in ((torch.float32, 1.7), (torch.bfloat16, 1.2)):
        state.dtype = dtype
        buffer, name = torch.empty(x.shape, dtype=dtype), f"NF4 dequantize to {str(dtype)[6:]}"
        peer = memcpy | {"peer": lambda: bnb.dequantize_4bit(packed, state)}  # on a CPU it cannot write into a given tensor
        into = peer | {"ours": lambda: ours.dequantize(out=buffer)}  # as the layer calls it
        rows.append(row(f"{name}, one buffer", threads, interleaved(into, rounds), goal, "memcpy fp32"))
        anew = peer | {"ours": lambda: ours.dequantize(dtype)}
        rows.append(row(f"{name}, new tensor", threads, interleaved(anew, rounds), goal, "memcpy fp32"))
    return rows


def step_rows(threads: int, rounds: int) -> list[dict]:
    """Forward and backward of a four-layer Llama, rank 8 on all linears, beside PEFT on bitsandbytes and frozen forward."""
    import peft
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    from minilora import lora, qlora

    rows = []
    config = LlamaConfig(vocab_size=4096, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4)
    ids = torch.randint(0, 4096, (8, 128))
    for dtype in (torch.float32, torch.bfloat16):
        dense = LlamaForCausalLM(config).to(dtype)
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            dense.save_pretrained(folder)
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=four)
        for module in theirs.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        ours = qlora.quantize_model(copy.deepcopy(dense))
        lora.add_lora(ours, rank=8, alpha=16)

        def step(model):
            model.zero_grad(set_to_none=True)
            model(input_ids=ids, labels=ids).loss.backward()

        def forward():
            with torch.no_grad():
                dense(input_ids=ids, labels=ids)

        times = interleaved({"frozen forward": forward, "ours": lambda: step(ours), "peer": lambda: step(theirs)}, rounds)
        rows.append(row(f"QLoRA step {str(dtype)[6:]}", threads, times, 1 / 0.8, "frozen forward"))
    return rows


def rows(threads: int = 1, rounds: int = 7) -> list[dict]:
    """All rows of this file at that number of threads. Sets torch's number of threads and puts it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return code_rows(threads, rounds) + step_rows(threads, rounds)
    finally:
        torch.set_num_threads(before)


def main() -> None:
    wanted = [int(word) for word in sys.argv[1:]] or [1, 2]
    for threads in wanted:
        if os.environ.get("OMP_NUM_THREADS") != str(threads):  # bitsandbytes' own OpenMP reads it at its start, not torch's number
            subprocess.run([sys.executable, __file__, str(threads)], env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)
            continue
        for line in rows(threads):
            print("{what:38s} threads {threads}  ours {ours_ms:8.1f} ms  peer {peer_ms:8.1f} ms  faster x{ratio:5.2f} "
                  "(goal {goal:.2f})  {floor} {floor_ms:.1f} ms".format(**line), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
