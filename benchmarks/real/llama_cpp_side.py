"""llama.cpp's side of `speed.py`: greedy tokens by its Python binding, in whichever environment
that is installed. It needs nothing of minilora; `speed.py` starts it and talks to it by lines.

What it replaces: nothing. How it works: the file of 16 bits that it is given is quantized to Q4_1
(llama.cpp's own quantizer), then each line on standard input, {"ids": [...], "new": N}, is answered
by {"ids": [...], "seconds": S} on standard output.

    PYTHON llama_cpp_side.py FILE.gguf THREADS
"""

import json
import os
import sys
import tempfile
import time


def quantized(source: str, folder: str) -> str:
    """The file in Q4_1, in that folder."""
    import llama_cpp

    to = os.path.join(folder, "q4_1.gguf")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1
    if llama_cpp.llama_model_quantize(source.encode(), to.encode(), settings):
        raise SystemExit(f"llama.cpp does not quantize {source}")
    return to


def main() -> None:
    source, threads = sys.argv[1], int(sys.argv[2])
    import llama_cpp
    import llama_cpp.llama_cpp as low

    plain = low.llama_model_default_params

    def without_repacking():
        """As by default, but no weights laid out for AMX: 0.3.36 crashes over them (Q4_1)."""
        settings = plain()
        settings.use_extra_bufts = False
        return settings

    low.llama_model_default_params = without_repacking
    with tempfile.TemporaryDirectory() as folder:
        file = quantized(source, folder)
        settings = {"n_ctx": 1024, "n_threads": threads, "n_threads_batch": threads}
        model = llama_cpp.Llama(file, verbose=False, **settings)
    print(json.dumps({"version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began, found = time.perf_counter(), []
        model.reset()
        model.eval(asked["ids"])
        while len(found) < asked["new"]:
            found.append(int(model.sample(temp=0.0)))
            if len(found) < asked["new"]:
                model.eval(found[-1:])
        seconds = time.perf_counter() - began
        print(json.dumps({"ids": found, "seconds": seconds}), flush=True)


main()  # no benchmark of its own
