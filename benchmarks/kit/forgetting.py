"""What a training has cost the base: loss and look-ups on held-out documents of its own text.

What it replaces: a score on the new task alone, which says nothing of the old ones.
How it works: `pretrain.examine` on DOCUMENTS documents of each family; `lookup` is the share of
questions whose answer, standing in the document, is found.
What it leaves out: other models' own text (course/real_text.py has some for the real one).

    python -m benchmarks.kit.forgetting [--model DIR] [--adapter DIR]   prints it as JSON
"""

from __future__ import annotations

import argparse
import json

DOCUMENTS = 8


def own_text(model) -> dict[str, float]:
    """{"loss": nats a token, "lookup": share right} of a model of the shipped base's vocabulary."""
    from tokenizers import Tokenizer

    from minilora.recipes.pretrain import examine
    from minilora.system.files import data_folder
    from minilora.system.precision import mode

    tokenizer = Tokenizer.from_file(str(data_folder() / "base" / "tokenizer.json"))
    with mode(model, False):
        found = examine(model, tokenizer, DOCUMENTS)
    return {"loss": round(found["loss"], 4), "lookup": round(found["lookup"], 4)}


def main() -> None:
    from minilora.recipes import load

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--adapter")
    options = parser.parse_args()
    model, _ = load.load(options.model, options.adapter, device="cpu")
    print(json.dumps(own_text(model)))


if __name__ == "__main__":
    main()
