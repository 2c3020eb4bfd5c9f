"""The claims of the course, and the verdicts that its lessons reached, read from their outputs.

What it replaces: a table kept by hand, which is wrong as soon as a lesson changes.
How it works: `CLAIMS` names each claim and the lessons that run it. A cell with the tag `claim-C27`
prints a line `C27, …: holds …`; `gather` reads these lines from the executed notebooks. A lesson
that is not written, or does not run the claim yet, is "to come", so the table fills itself as
lessons land. Verdicts of the lesson that is running come from `Verdicts`, for its file still holds
the old ones.
What it leaves out: judging. A verdict is the lesson's, with its reasons; here it is only read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import MiniloraError
from ...system.tables import Table

KINDS = ("does not hold", "holds if", "holds", "rounds")

LINE = re.compile(r"^\s*(C\d\d)\b.*?:\s*((?:does not hold|holds|rounds)\b.*)$")


@dataclass(frozen=True)
class Claim:
    """A claim that is widely told: its id, what it says in a few words, and the lessons that run
    it, as two digits each.
    """

    id: str
    says: str
    lessons: tuple[str, ...]


def _claims(text: str) -> dict[str, Claim]:
    found = {}
    for line in text.strip().splitlines():
        identity, lessons, says = (part.strip() for part in line.split("|"))
        found[identity] = Claim(identity, says, tuple(lessons.split()))
    return found


CLAIMS = _claims("""
C01 | 03 | computing is counted in floating-point operations; a bigger model needs more of them
C02 | 03 | a forward pass takes millions of operations
C03 | 01 | p − α·∂L/∂p: a large positive gradient lowers the parameter by much
C04 | 01 | repeated steps descend the loss, and a batch of B examples smooths the noise
C05 | 02 | next-token training predicts each token from all before it
C06 | 02 | deep learning is matrix multiplication
C07 | 03 | full fine-tuning updates every parameter at every step: 1,875 steps of 7 billion
C08 | 03 | pretraining took trillions of tokens, millions of dollars and months
C09 | 03 | a GPU reads its memory far faster than a CPU its own; weights left there are too slow
C10 | 03 | consumer GPUs have up to 24 GB, professional ones 80 GB, at 15 to 20 thousand dollars
C11 | 03 15 | 7 billion parameters in fp32 are 28 GB; 30 GB to load them
C12 | 03 15 | a billion fp32 parameters are 3.74 GB, about 4 GB
C13 | 03 | GPT-3 takes 700 GB to store
C14 | 03 15 | 65 billion parameters need 780 GB just for inference
C15 | 03 10 | training adds gradients, optimizer states, activations and temporaries to the weights
C16 | 03 13 | 70 billion parameters fit no single GPU; four A100 would train them
C17 | 04 | half precision halves the storage, and training in pure 16 bits can work
C18 | 04 05 | a model of 20 billion takes 80, 40, 20 or 10 GB, by precision
C19 | 04 05 | lower precision loses accuracy, as 3.14 does for π
C20 | 05 12 | quantization makes operations faster and cheaper
C21 | 06 | LLM.int8() keeps accuracy by leaving outliers in fp16
C22 | 06 14 | loading in 8 bits is one flag
C23 | 07 | 100 × 100 at rank 2: 400 numbers instead of 10,000, 96 % fewer
C24 | 07 | the larger the matrix, the larger the advantage of low rank
C25 | 07 08 | the actual rank of attention's weight matrices is low
C26 | 07 08 | low rank carries less information, so a smaller model would do as well
C27 | 08 | W + ΔW = W + (α/r)·BA
C28 | 08 | freezing the base saves gradients and computing
C29 | 08 | LoRA belongs on the query and value matrices
C30 | 08 15 | 4.7 million numbers adapt GPT-3's 96 layers, at ranks from 64 down to 2
C31 | 09 15 | an adapter of 35 MB beside a base of 350 GB
C32 | 15 | LoRA cut the memory to train GPT-3 from 1.2 TB to 350 GB
C33 | 08 | PEFT on mt0-large trains 2,359,296 of 1,231,940,608 numbers, 0.1915 %
C34 | 08 15 | LoRA will always stay below full fine-tuning
C35 | 08 | LoRA makes neither inference faster nor the stored base smaller, and needs full passes
C36 | 09 | one base, many adapters, switched at will
C37 | 09 | reference and active logits from one model, by disabling its adapter
C38 | 10 14 15 | QLoRA takes 65 billion parameters from 780 to 41 GB on one GPU, 7 billion to 5 GB
C39 | 10 15 | QLoRA loses nothing that can be measured; Guanaco reaches 99.3 % of ChatGPT
C40 | 10 | 7 billion parameters in 5 GB run on a laptop, and adapters fit a phone
C41 | 14 | in 4 bits, 20 billion parameters fit and train on a consumer card of 24 GB
C42 | 12 | several operations fused into one kernel are much faster
C43 | 13 | data parallel: the same model, other batches
C44 | 13 | model parallel: a pipeline of layers, or tensors split within a layer
C45 | 13 | sharding splits one large blob
C46 | 13 | communication is the challenge of many devices
C47 | 14 | a free GPU, or one at a dollar an hour, and a matter of hours
C48 | 08 | there are adapter methods beyond LoRA, and for sequence-to-sequence models, too
""")


class Verdicts:
    """The verdicts of the lesson that is running: says each in the form that `gather` reads, and
    remembers it.
    """

    def __init__(self, lesson: str):
        self.lesson, self.said = lesson, {}

    def say(self, identity: str, words: str, verdict: str) -> None:
        """Print `C11, words: verdict` and keep it. Raises MiniloraError for a claim of another
        lesson or a verdict of another form.
        """
        if identity not in CLAIMS or self.lesson not in CLAIMS[identity].lessons:
            raise MiniloraError(f"{identity} is no claim of lesson {self.lesson}")
        if not verdict.startswith(KINDS):
            raise MiniloraError(
                f"the verdict on {identity} begins with {verdict.split(' ')[0]!r}; begin with "
                f"one of: {', '.join(KINDS)}"
            )
        self.said.setdefault(identity, []).append(verdict)
        print(f"{identity}, {words}: {verdict}")


def read_lesson(path: Path) -> dict[str, list[str]]:
    """Claim → its verdicts, from the outputs of the cells that carry the claim's tag. An empty
    list: run, but without such a line.
    """
    found: dict[str, list[str]] = {}
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    # what was not run has no verdict
    for cell in (cell for cell in cells if cell.get("execution_count")):
        for tag in cell["metadata"].get("tags", []):
            if claim := re.fullmatch(r"claim-(C\d\d)", tag):
                said = found.setdefault(claim[1], [])
                lines = (
                    line
                    for output in cell.get("outputs", [])
                    for line in _text(output).splitlines()
                )
                said += [
                    match[2].strip().rstrip(";,")
                    for line in lines
                    if (match := LINE.match(line)) and match[1] == claim[1]
                ]
    return found


def _text(output: dict) -> str:
    text = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return text if isinstance(text, str) else "".join(text)


def gather(folder: Path, here: Verdicts | None = None) -> dict[str, dict[str, list[str] | None]]:
    """Claim → lesson → its verdicts, None if the lesson is still to come; lessons are `NN-….ipynb`
    in `folder`.
    """
    lessons = {
        path.name[:2]: read_lesson(path) for path in sorted(Path(folder).glob("[0-9][0-9]-*.ipynb"))
    }
    if here is not None:
        lessons[here.lesson] = here.said
    return {
        claim.id: {lesson: lessons.get(lesson, {}).get(claim.id) for lesson in claim.lessons}
        for claim in CLAIMS.values()
    }


def kind(verdict: str) -> str:
    """The verdict's first words: "holds", "holds if", "rounds" or "does not hold"."""
    return next(name for name in KINDS if verdict.startswith(name))


def _told(lesson: str, verdicts: list[str] | None) -> str:
    if verdicts is None:
        return f"lesson {lesson}, to come"
    return f"lesson {lesson}: " + ("; ".join(dict.fromkeys(verdicts)) or "run, see there")


def table(verdicts: dict[str, dict[str, list[str] | None]]) -> Table:
    """All claims with what the lessons found, and below how many have a verdict."""
    rows = [
        [
            claim.id,
            claim.says,
            " · ".join(_told(lesson, said) for lesson, said in verdicts[claim.id].items()),
        ]
        for claim in CLAIMS.values()
    ]
    judged = [
        [verdict for said in verdicts[claim].values() for verdict in said or []]
        for claim in verdicts
    ]
    latest = [kind(found[-1]) for found in judged if found]
    counts = ", ".join(
        f"{latest.count(name)} {name}"
        for name in ("holds", "holds if", "rounds", "does not hold")
        if name in latest
    )
    return Table(
        ["claim", "what is said", "verdict"],
        rows,
        f"{len(latest)} of {len(rows)} claims have a verdict ({counts}); a claim with several "
        "counts by its last.",
    )
