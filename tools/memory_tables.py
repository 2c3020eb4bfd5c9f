"""The tables of docs/budget.md: peaks that others predict, and peaks that others measured, beside
ours.
"""

from __future__ import annotations

from minilora.budget.published import peaks

from .results import command, results, script


def _guess(said: float | None, truth: float) -> str:
    return (
        "–"
        if said is None
        else f"{said / 1e9:.2f} ({100 * (said / truth - 1):+.0f} %)".replace("-", "−")
        .replace("(+0 %)", "(0 %)")
        .replace("(−0 %)", "(0 %)")
    )


def peers_table() -> str:
    """Predicted peaks of ten steps, ours and others', beside the measured one."""
    found = results("peers.json")
    if not found:
        return f"To come: `{command('peers.py')}` fills this table."
    names = list(found["sources"])
    rows = [
        "| peak of a step, GB (10⁹) | ledger | minilora | " + " | ".join(names) + " |",
        "| --- |" + " ---: |" * (2 + len(names)),
    ]
    for row in found["rows"]:
        cells = [
            _guess(said, row["ledger"])
            for said in (row["ours"], *(row["peers"][name] for name in names))
        ]
        rows.append("| " + " | ".join([row["told"], f"{row['ledger'] / 1e9:.2f}", *cells]) + " |")
    off = [found["errors"][name] for name in ("minilora", *names)]
    rows.append(
        "| mean error (setups answered) | | "
        + " | ".join(f"{100 * each['mean']:.2g} % ({each['answers']})" for each in off)
        + " |"
    )
    sources = "; ".join(
        f"{name}: {told['source']}; {told['reading']}" for name, told in found["sources"].items()
    )
    return "\n".join(
        [
            *rows,
            "",
            "Ledger: storages of a real step on tensors without memory, AdamW, SDPA, without the "
            "driver's context; no card ran it. The others leave out what they do not know. "
            f"torch {found['versions']['torch'].split('+')[0]}, transformers "
            f"{found['versions']['transformers']}; {found['date']}. "
            f"Written by `{script('peers.py')}`. {sources}.",
        ]
    )


def percent(share: float) -> str:
    """A signed share as text, without a minus before zero."""
    return f"{100 * share:+.1f} %".replace("-", "−").replace("−0.0", "+0.0")


def _published_row(row, why: str) -> str:
    """One published figure beside the prediction."""
    known = (
        f"; with what that program held by its own source {percent(row.error_explained)}"
        if row.measurement.program
        else ""
    )
    m, unit = row.measurement, peaks.UNITS[row.measurement.unit]
    published = f"{'≤ ' if m.bound else ''}{m.peak:.2f} {m.unit}"
    predicted = f"{row.predicted / unit:.2f} {m.unit} | {percent(row.error)}"
    return f"| {m.source.split()[0]}: {m.what} | {published} | {predicted} | {why}{known} |"


def published_table() -> str:
    """Peaks that others published beside our predictions of the same runs, computed now."""
    found = peaks.compared()
    counted = [row for row in found if not row.measurement.bound]
    worst = max(counted, key=lambda row: abs(row.error))
    known = max(counted, key=lambda row: abs(row.error_explained))
    low = sum(row.error < 0 for row in counted)
    lines = [
        f"Mean error over {len(counted)} published peaks: "
        f"**{100 * peaks.mean_error(found):.1f} %**; worst: **{percent(worst.error)}** "
        f"({worst.measurement.what}). With what the measured programs held by their own source "
        "code (written after the comparison): "
        f"{100 * peaks.mean_error(found, explained=True):.1f} %, worst "
        f"{percent(known.error_explained)} ({known.measurement.what}). {low} of {len(counted)} "
        "predictions are too low. Limits (≤) count in no mean.",
        "",
        "| setup | published | predicted | error | what is off |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    before = None
    for row in found:
        lines.append(
            _published_row(
                row, "as above" if row.measurement.why == before else row.measurement.why
            )
        )
        before = row.measurement.why
    sources = dict.fromkeys(row.measurement.source for row in found)
    return "\n".join(
        [
            *lines,
            "",
            "What a source does not say of its run is assumed; the list of figures in "
            f"`minilora.budget` names it with each. Sources: {'; '.join(sources)}.",
        ]
    )
