"""Fills the marked places of README.md and docs/ from what was really run: `make readme`.

How it works: between `<!-- NAME -->` and `<!-- /NAME -->` stands what `FILLS[NAME]` returns, in the
file that `PLACES[NAME]` names: the lessons from the notebooks that there are, tables of speed,
memory and tasks and the examples from benchmarks/results, published peaks beside what is predicted
today, the moving picture from docs/. A test compares, so that no page falls behind. A place whose
results are missing says how to make them. While the repository has no address, a line of text
stands in place of each button.
"""

from __future__ import annotations

import re

from minilora.budget.published import peaks

from . import capacity_table, memory_tables, moving_picture, real_tables
from .course_table import badges, clouds, lesson_table, time_needed
from .project import ROOT
from .results import command, results, script

METHODS = {
    "base": "base, untrained",
    "full": "full fine-tuning",
    "lora-all": "LoRA, all linears",
    "lora-qv": "LoRA, q and v",
    "qlora-all": "QLoRA, all linears",
    "qlora-qv": "QLoRA, q and v",
}
TASKS = ("extract", "mood", "style", "sums")


def slider() -> str:
    """The moving picture."""
    return f"![{moving_picture.alt()}](docs/{moving_picture.PICTURE.name})"


def facts() -> str:
    """Three facts that tests or results hold, each with a link to the page that shows how."""
    found = peaks.compared()
    counted = [row for row in found if not row.measurement.bound]
    worst = max(counted, key=lambda row: abs(row.error))
    return "\n".join(
        [
            "- The 4-bit codes are bitsandbytes' codes, byte for byte, and the LoRA layer's output "
            "is PEFT's, bit for bit ([how this is checked](docs/checked.md)).",
            "- The Llama's logits are transformers' within 10⁻⁵, and it writes the same tokens "
            "([how this is checked](docs/checked.md#models)).",
            f"- `minilora budget` predicts {len(counted)} memory peaks that others measured with a "
            f"mean error of {100 * peaks.mean_error(found):.1f} %; the worst is "
            f"{memory_tables.percent(worst.error)} "
            "([all of them](docs/budget.md#published-peaks)).",
        ]
    )


def gpu_commands() -> str:
    """How the benchmark of a card is started."""
    start = command("gpu.py")
    return f"    {start} --tiny\n    {start}\n    {start} --parts b65 --fresh"


def _by_task(what: str, scores: dict, cell) -> list[str]:
    """A table of tasks by methods; `cell` writes a run."""
    rows = [f"| {what} | " + " | ".join(TASKS) + " |", "| --- |" + " ---: |" * len(TASKS)]
    for method, title in METHODS.items():
        runs = [scores.get((task, method)) for task in TASKS]
        if any(runs):
            rows.append(f"| {title} | " + " | ".join(cell(r) if r else "–" for r in runs) + " |")
    return rows


def _own_text(run: dict) -> str:
    """What a model still knows of the base's own text."""
    own = run.get("own_text")
    return f"{own['loss']:.2f}, {100 * own['lookup']:.0f} %" if own else "–"


def task_table() -> str:
    """Exact match on the test split, by task and method, and what is forgotten meanwhile."""
    found = results("tasks.json")
    if not found:
        return "To come: `make bench` fills this table."
    scores = {(run["task"], run["method"]): run for run in found["runs"]}
    rows = [
        *_by_task("exact match, %", scores, lambda run: f"{100 * run['hits'] / run['of']:.1f}"),
        "",
        *_by_task("its own text after it: loss, look-ups right", scores, _own_text),
    ]
    asked = max(run["of"] for run in found["runs"])
    longer = sorted(
        {
            run["task"] + " " + run["command"].split("--steps ")[1].split()[0]
            for run in found["runs"]
            if "--steps " in run["command"]
        }
    )
    steps = "the default steps" + (f" ({', '.join(longer)})" if longer else "")
    slowest = max((run.get("seconds", 0) for run in found["runs"]), default=0)
    rows += [
        "",
        f"{asked} questions a task: people, towns, things and described places are new, plain "
        "places (“the mill”) and what `sums` counts recur. Its own text is held-out documents "
        "of the base's pretraining;"
        f" one seed, {steps}; {found['machine']}, torch {found['torch'].split('+')[0]}, one thread "
        f"a run, the slowest {slowest:.0f} s; {found['date']}. "
        f"Written by `{script('tasks/tasks.py')}`.",
    ]
    return "\n".join(rows)


def _by_threads(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each thing that was measured, fewest threads first."""
    found: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["threads"]):
        found.setdefault(row["what"], []).append(row)
    return found


def _amount(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"


def _ratio(row: dict) -> str:
    """The ratio in words; one that misses its goal says so."""
    return row["told"].format(row["ratio"]) + (", **missed**" if row["met"] is False else "")


def _speed_table(rows: list[dict]) -> list[str]:
    threads = sorted({row["threads"] for row in rows})
    lines = [
        "| against | "
        + " | ".join(
            f"{n} thread{'s' * (n > 1)}: ours | theirs | ratio | beside the floor" for n in threads
        )
        + " | goal |",
        "| --- |" + " ---: | ---: | --- | --- |" * len(threads) + " --- |",
    ]
    for what, group in _by_threads(rows).items():
        cells = [f"{what}, {group[0]['peer_name']}"]
        for n in threads:
            row = next((row for row in group if row["threads"] == n), None)
            cells += (
                [
                    _amount(row["ours"], row["unit"]),
                    _amount(row["peer"], row["unit"]),
                    _ratio(row),
                    row["beside"],
                ]
                if row
                else ["–"] * 4
            )
        goals = dict.fromkeys(
            f"{'≥' if row['goal'] > 1 else '≤'} {row['goal']:g}" for row in group if row["goal"]
        )
        lines.append("| " + " | ".join([*cells, " / ".join(goals) or "–"]) + " |")
    return lines


def _memory_table(rows: list[dict]) -> list[str]:
    lines = [
        "| MB (10⁶ bytes) | kept for backward: ours | theirs | peak of a step: ours | theirs |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    parts: dict[str, dict[str, dict]] = {}
    for row in rows:
        title, _, kind = row["what"].rpartition(": ")
        parts.setdefault(title, {}).setdefault(
            kind, row
        )  # at the fewest threads; the bytes hardly depend on them
    for title, kinds in parts.items():
        numbers = [
            f"{kinds[kind][who]:.1f}"
            for kind in ("kept for backward", "peak memory")
            for who in ("ours", "peer")
        ]
        lines.append(
            "| " + " | ".join([f"{title}, {kinds['peak memory']['peer_name']}", *numbers]) + " |"
        )
    return lines


def cpu_tables() -> str:
    """Speed and memory beside the libraries', and which goals were missed."""
    found = results("cpu.json")
    if not found:
        return "To come: `make bench` fills this table."
    rows = found["rows"]
    missed = sum(row["met"] is False for row in rows)
    goals = sum(row["goal"] is not None for row in rows)
    machine, versions = found["machine"], found["versions"]
    told = ", ".join(
        f"{name} {number.split('+')[0]}" for name, number in versions.items() if name != "python"
    )
    return "\n".join(
        [
            *_speed_table([row for row in rows if row["unit"] != "MB"]),
            "",
            *_memory_table([row for row in rows if row["unit"] == "MB"]),
            "",
            f"All {goals} goals are met."
            if not missed
            else f"{goals - missed} of {goals} goals are met; those missed are marked.",
            f"Medians of {found['rounds']} interleaved runs; {machine['processor']}, "
            f"{machine['cores']} cores; {told}; {found['date']}. "
            f"Written by `{script('cpu.py')}`, which says how.",
        ]
    )


def _seeds(runs: list[dict]) -> str:
    """Exact match in percent, seed by seed, for each number of steps."""
    by_steps: dict[int, list[dict]] = {}
    for run in sorted(runs, key=lambda run: (run["steps"], run["key"])):
        by_steps.setdefault(run["steps"], []).append(run)
    return (
        "; ".join(
            " ".join(f"{100 * run['hits'] / run['of']:.1f}" for run in group) + f" ({steps} steps)"
            for steps, group in by_steps.items()
        )
        or "–"
    )


def training_table() -> str:
    """Fine-tuning by both backends: accuracy by seed, time of a step, memory."""
    found = results("peers-train.json")
    if not found:
        return f"To come: `{command('peers_train.py')}` fills this table."
    records = {record["key"]: record for record in found["records"]}
    rows = [
        "| QLoRA on | exact match by seed, %: ours | theirs | ms a step: ours | theirs "
        "| of its time | peak of storages, MB: ours | theirs "
        "| resident set rises by, MB: ours | theirs |",
        "| --- |" + " --- | --- | ---: | ---: | ---: |" + " ---: |" * 4,
    ]
    for device, task in dict.fromkeys((key.split()[0], key.split()[2]) for key in records):
        cells = [
            _seeds(
                [
                    r
                    for key, r in records.items()
                    if key.startswith(f"{device} exact {task} {backend} ")
                ]
            )
            for backend in ("minilora", "peft")
        ]
        timed = records.get(f"{device} time {task}")
        cells += (
            [
                f"{timed['ms']['minilora']:.0f}",
                f"{timed['ms']['peft']:.0f}",
                f"{timed['ratio']:.2f}",
            ]
            if timed
            else ["–"] * 3
        )
        for field in ("storages", "resident_rise"):
            sizes = [
                records.get(f"{device} memory {task} {backend}", {}).get(field)
                for backend in ("minilora", "peft")
            ]
            cells += [f"{size / 1e6:.0f}" if size else "–" for size in sizes]
        rows.append(
            "| "
            + " | ".join([f"{task}, {'processor' if device == 'cpu' else device}", *cells])
            + " |"
        )
    versions, machine = found["versions"], found["machine"]
    told = ", ".join(
        f"{name} {versions[name].split('+')[0]}"
        for name in ("torch", "transformers", "peft", "bitsandbytes")
        if versions[name]
    )
    return "\n".join(
        [
            *rows,
            "",
            f"{found['what'][0].upper()}{found['what'][1:]}, {found['threads']} thread; "
            f"{machine['processor']}, {machine['cores']} cores; {told}; {found['date']}. Steps of "
            "the two in turn in one process, medians; storages as the ledger counts them, of a "
            "process's resident set the rise since before the model was read. "
            f"Written by `{script('peers_train.py')}`.",
        ]
    )


def example() -> str:
    """The commands and what they printed."""
    found = results("example.json")
    if not found:
        return (
            "    minilora finetune --model tiny --data extract --method qlora"
            " --rank 8 --targets all --out runs/extract\n"
            "    minilora evaluate --model tiny --adapter runs/extract --data extract"
        )
    return _console(found)


def _console(found: dict) -> str:
    lines = [f"$ {step['command']}\n{step['output']}" for step in found["commands"]]
    return "```console\n" + "\n\n".join(lines) + "\n```"


def budget() -> str:
    """What `minilora budget` says of a run that does not fit, and its picture."""
    found = results("budget.json")
    if not found:
        return "    minilora budget --model llama-7b --method qlora --gpu T4"
    return (
        _console(found)
        + "\n\n![The parts of that run beside the memory of graphics cards](budget.svg)"
    )


def picture() -> str:
    """The loss curve of the example, once there is one."""
    if not (ROOT / "docs" / "loss.png").exists():
        return ""
    return "![Training and validation loss of the example above, by step](loss.png)"


def _real(name: str, file: str | None = None):
    """What fills the table of that name on the real model."""
    return lambda: getattr(real_tables, name)(results(f"real-{file or name}.json"))


README, CLI, BUDGET = "README.md", "docs/cli.md", "docs/budget.md"
PLACES = {  # place → the file in which it stands
    "badges": README,
    "slider": README,
    "time": README,
    "table:lessons": README,
    "facts": README,
    "clouds": "docs/install.md",
    "example": CLI,
    "picture": CLI,
    "budget": BUDGET,
    "table:published": BUDGET,
    "table:peers": BUDGET,
    "gpu": "docs/gpu.md",
    "table:tasks": "docs/benchmarks.md",
    "table:cpu": "docs/benchmarks.md",
    "table:training": "docs/benchmarks.md",
    "table:capacity": "docs/benchmarks.md",
    "table:real:precision": "docs/benchmarks.md",
    "table:real:tasks": "docs/benchmarks.md",
    "table:real:front": "docs/benchmarks.md",
    "table:real:speed": "docs/benchmarks.md",
}
FILLS = {
    "badges": badges,
    "slider": slider,
    "time": time_needed,
    "table:lessons": lesson_table,
    "facts": facts,
    "clouds": clouds,
    "example": example,
    "picture": picture,
    "budget": budget,
    "table:published": memory_tables.published_table,
    "table:peers": memory_tables.peers_table,
    "gpu": gpu_commands,
    "table:tasks": task_table,
    "table:cpu": cpu_tables,
    "table:training": training_table,
    "table:capacity": lambda: capacity_table.capacity(results("capacity.json")),
    **{f"table:real:{name}": _real(name) for name in ("precision", "tasks", "speed")},
    "table:real:front": _real("front", "tasks"),
}


def filled(text: str) -> str:
    """A page's text, every marked place filled. Raises KeyError for one that nothing fills."""

    def fill(match: re.Match) -> str:
        inside = FILLS[match[1]]()
        return (
            f"<!-- {match[1]} -->\n{inside}\n<!-- /{match[1]} -->"
            if inside
            else f"<!-- {match[1]} -->\n<!-- /{match[1]} -->"
        )

    return re.sub(r"<!-- ([a-z:]+) -->\n.*?<!-- /\1 -->", fill, text, flags=re.S)


if __name__ == "__main__":
    moving_picture.write()
    for name in dict.fromkeys(PLACES.values()):
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
