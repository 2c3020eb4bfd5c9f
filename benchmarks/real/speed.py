"""Where a person waits with a real model: training steps and generation beside transformers, PEFT
and bitsandbytes, generation beside llama.cpp, and where a step's time goes.

What it replaces: single numbers from single runs.
How it works: a process for each section and number of threads, whose contenders take turns
(kit/measure.py):

    lora, qlora  steps of `minilora finetune` on extract, 8 rows each, by both backends; a step is
                 forward, loss, backward, AdamW. Their losses are compared before a clock is
                 believed
    generation   greedy, one row, with a cache, in fp32 and over NF4; in fp32 the tokens of both
                 must be equal. llama.cpp has the same weights in Q4_1 and is asked in a process of
                 its own, if MINILORA_LLAMA_CPP names a Python with its binding
    parts        a LoRA and a QLoRA step by torch's profiler (step_parts.py)

What the process waits for once, such as compiling, is called before anything is timed.
What it leaves out: prompts in batches; sampling.
Where numerics differ: fp32 everywhere but for NF4's and Q4_1's weights. Believe ratios, not
milliseconds, and neither on a busy machine: the load is in the file.

    python -m benchmarks.real.speed [--only qlora,generation/1] [--again] [--rounds 7] [--quick]
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.kit import machine, points
from benchmarks.real import model

RESULTS = machine.RESULTS / "real-speed.json"
LLAMA_CPP = "MINILORA_LLAMA_CPP"
SECTIONS, THREADS = ("lora", "qlora", "generation", "parts"), (1, 2)
BATCH, QUESTION = 8, "Why do we have day and night?"
GOALS = {"lora": 0.80, "qlora": 0.70, "generation": 1.5}
BACKENDS = ("minilora", "peft")


def keys() -> list[str]:
    return [f"{section}/{threads}" for threads in THREADS for section in SECTIONS]


def new_run(method: str, backend: str):
    """What finetune makes before its first step."""
    from benchmarks.tasks.peers_train import Run

    return Run("extract", backend, "cpu", model=model.NAME, method=method, batch=BATCH)


def step_section(method: str, rounds: int) -> dict:
    """Steps of both backends in turn, on the same rows."""
    from benchmarks.kit.measure import interleaved

    runs = {backend: new_run(method, backend) for backend in BACKENDS}
    losses: dict[str, list[float]] = {backend: [] for backend in BACKENDS}

    def one(backend: str) -> None:
        losses[backend].append(runs[backend].step(len(losses[backend])))

    seconds = interleaved({b: lambda b=b: one(b) for b in BACKENDS}, rounds)
    apart = max(abs(a - b) for a, b in zip(*losses.values()))
    assert apart < 0.05 * losses["peft"][0], f"the losses of the two stacks are {apart} apart"
    return {
        "ms": medians(seconds),
        "ratios": {"peft": told_ratio(seconds, "minilora", "peft")},
        "goal": GOALS[method],
        "losses_apart": apart,
    }


def medians(seconds: dict) -> dict[str, float]:
    from benchmarks.kit.measure import median_ms

    return {name: round(median_ms(seconds, name), 2) for name in seconds}


def told_ratio(seconds: dict, above: str, below: str) -> list[float]:
    """The median of the ratios of neighbouring runs, and their quarter marks."""
    from benchmarks.kit.measure import ratio

    middle, quarters = ratio(seconds, above, below)
    return [round(each, 4) for each in (middle, *quarters)]


class LlamaCpp:
    """llama.cpp in a process of its own, with the model in Q4_1."""

    def __init__(self, python: str, threads: int) -> None:
        from minilora.cli.main import main

        self.folder = tempfile.TemporaryDirectory(prefix="minilora-")
        file = str(Path(self.folder.name) / "f16.gguf")
        if main(["export", "--model", model.NAME, "--code", "none", "--out", file]):
            raise SystemExit("no file for llama.cpp could be written")
        side = Path(__file__).with_name("llama_cpp_side.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        command = [python, str(side), file, str(threads)]
        self.process = subprocess.Popen(command, text=True, **pipes)
        self.version = self._answer()["version"]

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{LLAMA_CPP}: its process ended with {self.process.wait()}")
        return json.loads(line)

    def generate(self, ids: list[int], new: int) -> list[int]:
        self.process.stdin.write(json.dumps({"ids": ids, "new": new}) + "\n")
        self.process.stdin.flush()
        return self._answer()["ids"]

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def writers(new: int) -> tuple[dict, list[int]]:
    """Who generates → a function that returns its `new` ids; and the prompt's ids."""
    import torch

    from minilora import hub
    from minilora.recipes import load
    from minilora.text import encode_prompt

    found = {}
    for form, code, method in (("fp32", None, "lora"), ("NF4", "nf4", "qlora")):
        ours, tokenizer = load.load(model.NAME, code=code, device="cpu")
        theirs = hub.load(model.NAME, method, device="cpu", dtype=torch.float32).eval()
        theirs.generation_config.eos_token_id = None  # both go on to the last token
        ids = torch.tensor([encode_prompt(QUESTION, tokenizer)])
        told = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        told["attention_mask"] = torch.ones_like(ids)

        def own(ours=ours, ids=ids) -> list[int]:
            return ours.generate(ids, new, stop=[])[0, ids.shape[1] :].tolist()

        def peer(theirs=theirs, ids=ids, told=told) -> list[int]:
            with torch.inference_mode():
                return theirs.generate(ids, **told)[0, ids.shape[1] :].tolist()

        found |= {f"minilora {form}": own, f"transformers {form}": peer}
    return found, ids[0].tolist()


def generation_section(threads: int, rounds: int, new: int) -> dict:
    """Tokens a second of each, and the ratios that the course asks for."""
    from benchmarks.kit.measure import interleaved

    functions, ids = writers(new)
    python, llama_cpp, more = os.environ.get(LLAMA_CPP), None, {}
    if python:
        llama_cpp = LlamaCpp(python, threads)
        functions["llama.cpp Q4_1"] = lambda: llama_cpp.generate(ids, new)
        more["llama_cpp"] = llama_cpp.version
    written = {name: write() for name, write in functions.items()}
    assert written["minilora fp32"] == written["transformers fp32"], written
    seconds = interleaved(functions, rounds)
    if llama_cpp:
        llama_cpp.end()
        more["ratios_llama_cpp"] = {
            form: told_ratio(seconds, "llama.cpp Q4_1", f"minilora {form}")
            for form in ("fp32", "NF4")
        }
    return {
        "tokens": new,
        "prompt": len(ids),
        "tokens_per_second": {n: round(1e3 * new / ms, 2) for n, ms in medians(seconds).items()},
        "ratios": {
            form: told_ratio(seconds, f"transformers {form}", f"minilora {form}")
            for form in ("fp32", "NF4")
        },
        "goal": GOALS["generation"],
        "same_nf4": written["minilora NF4"] == written["transformers NF4"],
        **more,
    }


def parts_section() -> dict:
    """Milliseconds of the parts of a step, ours."""
    from benchmarks.real.step_parts import parts

    found = {}
    for method in ("lora", "qlora"):
        run = new_run(method, "minilora")
        found[method] = parts(lambda run=run: run.step(0))
    return {"ms": found}


def child(point: dict) -> dict:
    """One section, in this process."""
    import torch

    section, threads, rounds = point["section"], point["threads"], point["rounds"]
    torch.set_num_threads(threads)
    before = machine.load()
    if section == "parts":
        found = parts_section()
    elif section == "generation":
        found = generation_section(threads, rounds, point["tokens"])
    else:
        found = step_section(section, rounds)
    return {"threads": threads, "rounds": rounds, **found, "load": [before, machine.load()]}


def measure(key: str, options) -> dict:
    """One point, by a process of its own."""
    section, threads = key.split("/")
    point = {"section": section, "threads": int(threads), "rounds": options.rounds}
    point["tokens"] = 4 if options.quick else 64
    return points.measured("benchmarks.real.speed", json.dumps(point), int(threads))


def main() -> None:
    parser = points.arguments(__doc__.splitlines()[0], RESULTS)
    parser.add_argument("--rounds", type=int, help="timed runs of each (default 7)")
    parser.add_argument(
        "--quick", action="store_true", help="one round, to see that all runs; needs --out"
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 7)
    if options.quick and options.out == RESULTS:
        parser.error("--quick measures nothing worth keeping: give another --out")
    if options.child:
        options.to.write_text(json.dumps(child(json.loads(options.child))), encoding="utf-8")
        return
    place = model.folder()
    if place is None:
        return
    machine.use_all_cores()
    os.environ["MINILORA_COMPILE"] = "auto" if options.quick else "always"
    about = {"what": "steps and generation of a real model", "batch": BATCH}
    about |= {"question": QUESTION, "command": machine.command(), **model.about(place)}
    points.run(options, about, keys(), lambda key, has: measure(key, options))


if __name__ == "__main__":
    main()
