"""The settings of a finetune run: the ones that `minilora finetune` takes, a lesson passes to
`recipes.finetune.run`, and run.json keeps.

What it replaces: a parser, a table of defaults, a config class and a page of help that each spell
the same names.
How it works: each setting is declared once. Those of training come from train.TrainConfig;
the rest stands here. A parser reads
meaning, choices, range and group from a field's metadata, `minilora budget` its default.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MiniloraError
from ..qlora.base import INT8, own_code
from ..system.json_files import require
from ..system.ranges import ROWS, SEED, number, whole
from ..train.config import SAME_PRODUCT, TrainConfig, another_run, declared, setting

if TYPE_CHECKING:
    from ..lora import AdapterConfig

METHODS = ("lora", "qlora", "int8", "full")
BACKENDS = ("minilora", "peft")

FULL_RATE = 1e-3  # an adapter stands three times as much as all weights at once
MAX_SEQ = 512

STEPS = whole(0, 10**8)  # and what is counted in them

KINDS = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}

# The order of the groups in --help, each with its title.
GROUPS = {
    "what": "what learns from what",
    "the adapter": "the adapter (nothing for --method full)",
    "training": "training",
    "the run": "the run",
}


def of_train(name: str, **more: Any) -> Any:
    """A setting of train.TrainConfig, as it is declared there. more: what is said otherwise
    here.
    """
    each = declared(TrainConfig)[name]
    default = more.pop("default", each.default)
    return dataclasses.field(
        default=default, metadata={**each.metadata, **more, "train_config": name}
    )


def of_adapter(
    default: Any, meaning: str, choices: tuple[str, ...] | None = None, **more: Any
) -> Any:
    """A setting of lora.AdapterConfig, under its name there and with its default, which a test
    compares: that room loads torch, for which no --help should wait.
    """
    more["adapter_config"] = True
    return of_run(default, meaning, "the adapter", choices=choices, **more)


def of_run(default: Any, meaning: str, group: str, **more: Any) -> Any:
    """A setting that carries more than `setting` knows of, such as `within`, its Range."""
    known = {name: more.pop(name) for name in ("choices", "shown") if name in more}
    each = setting(default, meaning, group, **known)
    return dataclasses.field(default=default, metadata={**each.metadata, **more})


@dataclass(frozen=True)
class Settings:
    """Everything that decides a finetune run, except the folder it goes to. Raises MiniloraError
    on values that do not go together.
    """

    model: str = setting(
        "tiny",
        "tiny (the shipped base), a name of `minilora models`, a Hugging Face folder, a GGUF, or a "
        "Hub name",
        "what",
    )
    data: str | None = setting(
        None,
        "a .jsonl file, a folder with train.jsonl and valid.jsonl, or a shipped task: extract, "
        "facts, mood, style, sums",
        "what",
        shown="none: it is needed, except with --resume",
    )
    method: str = setting(
        "qlora",
        "lora: adapter over the model as it is; qlora: over a 4-bit copy; int8: over an 8-bit "
        "copy, LLM.int8(); full: all weights",
        "what",
        choices=METHODS,
    )
    code: str = setting(
        "nf4", "qlora's number format for the base", "what", shown="nf4; of a 4-bit folder its own"
    )
    rank: int = of_adapter(8, "columns of B, rows of A", within=whole(1, 2**16))
    alpha: float = of_adapter(
        16.0,
        "the adapter's output is scaled by alpha / rank",
        within=number(0, 10**6, above=True),
    )
    targets: str = of_adapter(
        "all", "all, names such as q_proj,v_proj, or a regular expression for whole paths"
    )
    variant: str = of_adapter("lora", "lora, rslora or dora", choices=("lora", "rslora", "dora"))
    init: str = of_adapter(
        "kaiming", "how A and B start: kaiming, gaussian, loftq, or (method lora alone) pissa"
    )
    dropout: float = of_adapter(0.0, "on the adapter's input", within=number(0, 0.999))
    lora_plus: float | None = of_train("lora_plus", within=number(1, 10**4, such="16"))
    steps: int = of_train("steps", within=whole(1, 10**8))
    batch: int = of_train("batch_size", within=ROWS)
    accumulate: int = of_train("accumulate", within=ROWS)
    seq: int | None = of_run(
        None,
        "longest row in tokens",
        "training",
        shown=f"the model's positions, at most {MAX_SEQ}",
        within=whole(2, 2**24),
    )
    lr: float | None = of_train(
        "lr",
        default=None,
        shown=f"{declared(TrainConfig)['lr'].default:g}, for --method full {FULL_RATE:g}",
        within=number(0, 100, above=True, such="1e-3"),
    )
    warmup: int | None = of_train("warmup", within=STEPS)
    weight_decay: float = of_train("weight_decay", within=number(0, 1000))
    clip: float = of_train("clip", within=number(0, 10**9))
    seed: int = of_train("seed", within=SEED)
    checkpointing: bool = of_train("checkpointing")
    precision: str = of_train("precision")
    eval_every: int = of_train("eval_every", within=STEPS)
    save_every: int = of_train("save_every", within=whole(1, 10**8))
    device: str | None = setting(None, "cpu or cuda", "the run", shown="cuda where there is one")
    backend: str = setting(
        "minilora",
        "minilora: our own Llama, adapters and quantization; peft: transformers, peft and "
        "bitsandbytes",
        "the run",
        choices=BACKENDS,
    )

    def __post_init__(self) -> None:
        for name, each in declared(Settings).items():
            choices, value = each.metadata["choices"], getattr(self, name)
            if choices and value not in choices:
                raise MiniloraError(f"{name} is {value!r}; choose {', '.join(choices)}")
            if value is not None and "within" in each.metadata:
                each.metadata["within"].require(value, flag(name))
            if each.type.startswith("float") and isinstance(value, int):  # as a parser gives it
                object.__setattr__(self, name, float(value))
        if self.lr is None:
            rate = FULL_RATE if self.method == "full" else declared(TrainConfig)["lr"].default
            object.__setattr__(self, "lr", rate)
        if self.init.startswith("pissa_niter") and "dora" in self.variant:
            raise MiniloraError(
                f"--init {self.init} splits at random and --variant {self.variant} "
                "cannot be saved over that; choose --init pissa"
            )
        if self.code == INT8:
            raise MiniloraError(
                f"--code {INT8} is no code book for qlora's blocks; leave it out and "
                "choose --method int8"
            )

    @property
    def adapts(self) -> bool:
        """Whether an adapter is trained, and not all weights."""
        return self.method != "full"

    @property
    def base_code(self) -> str | None:
        """The code that the frozen base is quantized with, or None."""
        return {"qlora": self.code, "int8": INT8}.get(self.method)

    def base_name(self, folder: Path) -> str:
        """The base as an adapter names it; `tiny` means the folder here."""
        return self.model if self.model != "tiny" else str(folder)

    def train_config(self) -> TrainConfig:
        """The part that train.fit takes."""
        ours = {
            each.metadata["train_config"]: name
            for name, each in declared(Settings).items()
            if "train_config" in each.metadata
        }
        try:
            return TrainConfig(**{there: getattr(self, here) for there, here in ours.items()})
        except MiniloraError as error:  # it names a field; who typed an option knows that one
            word, _, rest = str(error).partition(" ")
            raise MiniloraError(f"{flag(ours.get(word, word))} {rest}") from None

    def adapter_config(self) -> AdapterConfig:
        """The part that lora.add_adapter takes."""
        from ..lora import AdapterConfig

        names = [n for n, each in declared(Settings).items() if "adapter_config" in each.metadata]
        part = {name: getattr(self, name) for name in names}
        return AdapterConfig(**{**part, "targets": parse_targets(self.targets)})

    def to_json(self) -> dict:
        """What run.json keeps."""
        return asdict(self)


# What --method full has no use for.
ADAPTER_ONLY = tuple(
    name for name, each in declared(Settings).items() if each.metadata["group"] == "the adapter"
)


def flag(name: str) -> str:
    """The option of a setting: "save_every" → "--save-every"."""
    return "--" + name.replace("_", "-")


def parse_targets(text: str) -> str | list[str]:
    """ "all" and regular expressions as they are; names, with commas between them, as a list."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if text.strip() == "all" or not names or not all(re.fullmatch(r"\w+", name) for name in names):
        return text.strip()
    return names


def settle(typed: Mapping[str, Any]) -> Settings:
    """The settings of a new run from those that were given. Raises MiniloraError for what says
    nothing with the method.
    """
    settings = Settings(**typed)
    if settings.method == "qlora" and "code" not in typed:
        settings = dataclasses.replace(settings, code=own_code(settings.model) or settings.code)
    if not settings.adapts:
        for name in ADAPTER_ONLY:
            if name in typed:
                raise MiniloraError(
                    f"{flag(name)} says nothing for --method full, which has no adapter; leave it "
                    "out, or choose lora, qlora or int8"
                )
    if settings.method != "qlora" and "code" in typed:
        raise MiniloraError(
            f"--code {typed['code']} says nothing for --method {settings.method}; leave it "
            "out, or choose --method qlora"
        )
    return settings


def saved_schema() -> dict:
    """The JSON schema of the settings in a run.json."""
    properties = {}
    for name, each in declared(Settings).items():
        kinds = [KINDS.get(kind, kind) for kind in each.type.split(" | ")]
        properties[name] = {"type": ["null" if kind == "None" else kind for kind in kinds]}
    return {"type": "object", "properties": properties}


def resumed(
    saved: Mapping[str, Any], typed: Mapping[str, Any], source: str | Path = "run.json"
) -> Settings:
    """The settings that `saved`, of the run.json `source`, began with; those in `typed` must be the
    same or such as may change. A run from before a setting was there had its default.
    """
    known, anew = declared(Settings), "begin anew with another --out or --overwrite"
    require(saved, saved_schema(), f"{source}, settings", anew)
    began = {name: each.default for name, each in known.items()}
    began |= {name: value for name, value in saved.items() if name in known}
    try:
        Settings(**began)
    except MiniloraError as error:
        raise MiniloraError(f"{source}: {error}; {anew}") from error
    if name := another_run(Settings, began, typed):
        product = ""
        if known[name].metadata["resume"] == SAME_PRODUCT:
            rows = began["batch"] * began["accumulate"]
            product = f", give --batch and --accumulate whose product is {rows}"
        raise MiniloraError(
            f"{flag(name)} {typed[name]} is not what this run began with ({began[name]}); leave it "
            f"out{product}, or begin anew with another --out"
        )
    return Settings(**{**began, **typed})
