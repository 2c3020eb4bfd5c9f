"""The tables of docs/benchmarks.md on the real model: what it loses with each precision, what it
learns and forgets, what it takes.

How it works: each function gets what a script of benchmarks/real wrote, or None, and gives the
lines of its table. A point that is not measured yet is a dash, and the last line counts them.
"""

from __future__ import annotations

TASKS, METHODS = ("extract", "mood", "style", "sums"), ("lora", "qlora", "full")
TITLES = {"lora": "LoRA", "qlora": "QLoRA", "full": "full"}
SECTIONS = {"lora": "LoRA step", "qlora": "QLoRA step"}


def _to_come(module: str) -> str:
    return f"To come: `python -m benchmarks.real.{module}` fills this table."


def _table(head: str, rows: list[list[str]]) -> list[str]:
    """The lines of a table whose first column stands to the left."""
    columns = head.count("|") - 1
    rule = "| --- |" + " ---: |" * (columns - 1)
    return [head, rule, *("| " + " | ".join(cells) + " |" for cells in rows)]


def _points(found: dict) -> dict[str, dict]:
    return {point["key"]: point for point in found["points"]}


def _number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _where(found: dict, module: str) -> str:
    """Model, machine and versions, for the last line of a table."""
    versions = found["versions"]
    libraries = ", ".join(f"{n} {versions[n].split('+')[0]}" for n in ("python", "torch"))
    way = f" ({found['went_through']})" if found["went_through"] else ""
    return (
        f"{found['model']}, weights {found['weights']} from {found['source']}{way}; "
        f"{found['machine']['processor']}, {found['machine']['cores']} cores; {libraries}; "
        f"{found['date']}. Written by `benchmarks/real/{module}.py`."
    )


def precision(found: dict | None) -> str:
    """Loss on real text by precision, and what a short QLoRA wins back."""
    if not found:
        return _to_come("precision")
    points = _points(found)
    plain = points.get("loss/fp32", {}).get("text_loss")
    trained = points.get("won/fp32", {}).get("text_loss")
    rows = []
    for key, point in points.items():
        if not key.startswith("loss/"):
            continue
        after = points.get(f"won/{point['code']}", {}).get("text_loss")
        beyond = None if plain is None else point["text_loss"] - plain
        left = None if None in (after, trained) else after - trained
        cells = [point["code"], _number(point["bits"]), _number(point["text_loss"], 3)]
        cells += [_number(beyond, 3, True), _number(after, 3), _number(left, 3, True)]
        rows.append(cells)
    steps = {p["steps"]: p["lr"] for k, p in points.items() if k.startswith("won/")}
    told = "".join(
        f" Training is {steps} steps of {found['batch']} rows of {found['tokens']} tokens from "
        f"other docstrings, rank 8, rate {rate:g}, chosen at {found['tried']['code']} with seed "
        f"{found['tried']['seed']} and {found['tried']['steps']} steps."
        for steps, rate in steps.items()
    )
    head = (
        "| linear layers in | bits a weight | loss, nats a token | beside fp32 | after training "
        "| beside fp32, trained alike |"
    )
    last = f"Loss on {found['text']}.{told} {_where(found, 'precision')}"
    return "\n".join([*_table(head, rows), "", last])


def _task_row(task: str, method: str, points: dict[str, dict]) -> list[str]:
    """One run beside its base."""
    point, base = points.get(f"{task}/{method}"), points.get(f"base/{task}")
    before = points.get("text/qlora" if method == "qlora" else "text/lora", {}).get("text_loss")
    share = lambda p: _number(100 * p["hits"] / p["of"], 0) if p else "–"  # noqa: E731
    cells = [f"{task}, {TITLES[method]}", share(base), share(point)]
    if point is None:
        return [*cells, _number(before, 3), *["–"] * 7]
    rise = None if before is None else point["text_loss"] - before
    cells += [_number(before, 3), _number(point["text_loss"], 3), _number(rise, 3, True)]
    own = point["peak"] - point["resident_before"]
    pairs = [(point.get("predicted_process"), point["peak"]), (point.get("predicted"), own)]
    for said, truth in pairs:  # predictions come when the table is whole
        off = _number(said and 100 * (said / truth - 1), 0, True)
        cells += [f"{said / 1e9:.2f} ({off} %)" if said else "–", f"{truth / 1e9:.2f}"]
    return [*cells, _number(point["seconds"], 0)]


def _trials(points: dict[str, dict], tried: dict) -> str:
    """What the short runs at several rates say, and what was made of it."""
    best = {}
    for method in METHODS:
        runs = [p for key, p in points.items() if key.startswith(f"rate/{method}/")]
        if runs:
            best[method] = min(runs, key=lambda run: run["valid_loss"])["lr"]
    told = ", ".join(f"{TITLES[method]} {rate:g}" for method, rate in best.items())
    said = (
        f"Trials of {tried['steps']} steps on {tried['task']} with seed {tried['seed']}, over "
        f"grids open at neither end, were best at: {told}."
    )
    high, before = points.get(f"front/lora/{best.get('lora', 0):g}"), points.get("text/lora")
    if high and before:
        said += (
            f" Over all steps LoRA's {high['lr']:g} raises the loss on real text by "
            f"{high['text_loss'] - before['text_loss']:.1f} nats (next table), so adapters got the "
            "next lower rate."
        )
    return said + " One seed each: no verdict between methods."


def tasks(found: dict | None) -> str:
    """Score, forgetting, memory and time of each task by each method."""
    if not found:
        return _to_come("tasks")
    points = _points(found)
    done = [points[f"{t}/{m}"] for t in TASKS for m in METHODS if f"{t}/{m}" in points]
    rows = [_task_row(task, method, points) for task in TASKS for method in METHODS]
    head = (
        "| 60 steps of 8 rows | exact match, %: base | after | loss on real text: before | after "
        "| rise | peak of the process, GB: predicted | measured | without what stood there before "
        "the model: predicted | measured | seconds |"
    )
    rates = ", ".join(
        f"{TITLES[method]} {rate:g}"
        for method, rate in {point["method"]: point["lr"] for point in done}.items()
    )
    asked = max((point["of"] for point in done), default=0)
    threads = sorted({point["threads"] for point in done})
    last = (
        f"{asked} test rows a task; loss on {found['text']}, which rises as a model forgets. "
        f"Rates: {rates}. {_trials(points, found['tried'])} {len(done)} of {len(rows)} runs "
        f"are measured, with {' or '.join(map(str, threads))} threads; seconds only where nothing "
        f"else ran. {_where(found, 'tasks')}"
    )
    return "\n".join([*_table(head, rows), "", last])


def front(found: dict | None) -> str:
    """Learning against forgetting on one task, by rate."""
    if not found:
        return _to_come("tasks")
    points = _points(found)
    task = found["tried"]["task"]
    runs = [p for key, p in points.items() if key.startswith("front/")]
    runs += [points[f"{task}/{m}"] for m in ("lora", "full") if f"{task}/{m}" in points]
    before = points["text/lora"]["text_loss"]
    rows = [
        [
            f"{TITLES[run['method']]}, {run['lr']:g}",
            _number(100 * run["hits"] / run["of"], 0),
            _number(run["valid_loss"], 4),
            _number(run["text_loss"], 3),
            _number(run["text_loss"] - before, 3, True),
        ]
        for run in sorted(runs, key=lambda run: (run["method"] != "lora", run["lr"]))
    ]
    head = (
        f"| {task}: method, rate | exact match, % | validation loss | loss on real text after "
        "| rise |"
    )
    last = (
        f"The same {runs[0]['steps'] if runs else ''} steps as above, seed 0; before, the loss on "
        f"real text is {before:.3f}."
    )
    return "\n".join([*_table(head, rows), "", last])


def _spread(ratio: list[float]) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})"


def _goal(ratio: float, goal: float) -> str:
    met = round(ratio, 2) >= goal if goal > 1 else round(ratio, 2) <= goal
    return f"{'≥' if goal > 1 else '≤'} {goal:g}" + ("" if met else ", **missed**")


def _step_rows(points: dict[str, dict]) -> list[list[str]]:
    rows = []
    for section, title in SECTIONS.items():
        for key, point in points.items():
            if key.split("/")[0] == section:
                ratio = point["ratios"]["peft"]
                cells = [f"{title}, threads: {point['threads']}"]
                cells += [f"{point['ms'][who] / 1e3:.2f} s" for who in ("minilora", "peft")]
                rows.append([*cells, _spread(ratio), _goal(ratio[0], point["goal"])])
    return rows


def _generation_rows(points: dict[str, dict]) -> list[list[str]]:
    rows = []
    for key, point in points.items():
        if not key.startswith("generation/"):
            continue
        speed = point["tokens_per_second"]
        for form, ratio in point["ratios"].items():
            cells = [f"generation, {form}, threads: {point['threads']}"]
            cells += [f"{speed[f'{w} {form}']:.1f} tokens/s" for w in ("minilora", "transformers")]
            rows.append([*cells, _spread(ratio), _goal(ratio[0], point["goal"])])
        for form, ratio in point.get("ratios_llama_cpp", {}).items():
            cells = [f"generation, ours in {form}, llama.cpp Q4_1, threads: {point['threads']}"]
            cells += [
                f"{speed[who]:.1f} tokens/s" for who in (f"minilora {form}", "llama.cpp Q4_1")
            ]
            rows.append([*cells, _spread(ratio), "–"])
    return rows


def _parts_lines(points: dict[str, dict]) -> list[str]:
    lines = []
    for key, point in points.items():
        if key.startswith("parts/"):
            for method, ms in point["ms"].items():
                total = sum(ms.values())
                told = ", ".join(f"{part} {100 * each / total:.0f} %" for part, each in ms.items())
                threads = f"{point['threads']} thread{'s' * (point['threads'] > 1)}"
                lines.append(f"- {SECTIONS[method]}, {threads}: {told}.")
    return lines


def speed(found: dict | None) -> str:
    """Steps and generation beside the libraries', and the parts of a step."""
    if not found:
        return _to_come("speed")
    points = _points(found)
    rows = _step_rows(points) + _generation_rows(points)
    head = "| | ours | theirs | ratio (middle half) | goal |"
    rounds = sorted({point["rounds"] for point in points.values()})
    loads = [load for point in points.values() for load in point["load"]]
    last = (
        f"Steps: {found['batch']} rows of extract, of our time and that of PEFT and bitsandbytes; "
        "generation: of our tokens a second and theirs. Medians of "
        f"{' or '.join(map(str, rounds))} rounds in turn; the machine's load was {min(loads):g} to "
        f"{max(loads):g}. {_where(found, 'speed')}"
    )
    parts = _parts_lines(points)
    title = ["Where our step's time goes, by torch's profiler:", "", *parts, ""] if parts else []
    return "\n".join([*_table(head, rows), "", *title, last])
