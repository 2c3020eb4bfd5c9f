"""The course's second model, for the cells of a lesson that show the same on a real one.

What it replaces: a download in the middle of a lesson.
How it works: `opened` looks into the cache, where `minilora models --fetch` and `--model` put
models. If the model is not there, it says so in a line and the cell goes on without it; nothing is
ever fetched here.
What it leaves out: other models. The stored outputs of the lessons are this one's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..models import cache
from ..models.catalogue import catalogue

if TYPE_CHECKING:
    from ..llama.model import Llama
    from ..text.tokenizer import Tokenizer

NAME = "smollm2-135m"


def opened() -> tuple[Llama, Tokenizer] | None:
    """(model, tokenizer), in fp32 and with nothing to train; None, and a line, if it is not in the
    cache.
    """
    folder = cache.have(NAME)
    if folder is None:
        print(
            f"skipped: {catalogue()[NAME].title} is not on this computer; "
            f"`minilora models --fetch {NAME}` fetches it"
        )
        return None
    from ..llama.model import Llama
    from ..text.tokenizer import Tokenizer

    model = Llama.from_pretrained(folder).requires_grad_(False).eval()
    return model, Tokenizer.from_pretrained(folder)


def name_or_tiny() -> str:
    """The name of a model for a lesson that runs on one as a whole: this one, else `tiny` and a
    line.
    """
    if cache.have(NAME) is not None:
        return NAME
    print(
        f"{catalogue()[NAME].title} is not on this computer, so all cells run with the tiny "
        f"model; `minilora models --fetch {NAME}` fetches it"
    )
    return "tiny"
