"""Executes the lessons and saves them with their outputs, cleaned:
`python -m tools.run_notebooks [notebooks/08-lora.ipynb …]`.

What it replaces: "Run all" and "Save" by hand, which leave timestamps, widget states and machine
names behind.
How it works: the parts of `lesson_parts` are rewritten, nbclient runs all cells in a new kernel,
then the outputs are cleaned: no widget views (they are dead without a kernel; a
`still()` call stands beside each), no stderr and progress bars, joined streams, plain metadata,
ids. A notebook is saved only if every cell ran. With --parts nothing is run, only the common parts
and the metadata are rewritten.
What it leaves out: judging the numbers; nbval and the tests do that.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

import nbformat

from minilora.system.files import atomic_write

from .lesson_parts import refresh, tags
from .project import lessons

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def clean_outputs(outputs: list) -> list:
    """Outputs without widget views, stderr and what a carriage return overwrote; adjacent streams
    joined.
    """
    kept: list = []
    for output in outputs:
        if output["output_type"] == "stream":
            if output["name"] == "stderr":
                continue
            output["text"] = "".join(
                line.rsplit("\r", 1)[-1]
                for line in output["text"].replace("\r\n", "\n").splitlines(keepends=True)
            )
            if kept and kept[-1]["output_type"] == "stream":
                kept[-1]["text"] += output["text"]
                continue
        elif WIDGET in output.get("data", {}):
            continue
        if output["output_type"] in ("display_data", "execute_result"):
            output["metadata"] = {}
        kept.append(output)
    return kept


def clean(notebook) -> None:
    """Leave in a notebook what is to be committed, in place: ids, kernelspec, tags, outputs,
    counts.
    """
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    notebook["metadata"] = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    seen: set[str] = set()
    for index, cell in enumerate(notebook["cells"]):
        if not cell.get("id") or cell["id"] in seen:
            cell["id"] = hashlib.sha256(f"{index}:{cell['source']}".encode()).hexdigest()[:8]
        seen.add(cell["id"])
        cell["metadata"] = nbformat.from_dict(
            {k: v for k, v in cell["metadata"].items() if k in ("tags", "jupyter", "cellView")}
        )
        if "solution" in tags(cell):
            cell["metadata"].update(
                nbformat.from_dict({"jupyter": {"source_hidden": True}, "cellView": "form"})
            )
        if cell["cell_type"] == "code":
            cell["outputs"] = clean_outputs(cell["outputs"])


def execute(notebook, folder: Path) -> None:
    """Run all cells in a new kernel, in place, and number them from 1. Raises nbclient's
    CellExecutionError at the first that fails.
    """
    from nbclient import NotebookClient

    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    code = [
        cell for cell in notebook["cells"] if cell["cell_type"] == "code" and cell["source"].strip()
    ]
    for count, cell in enumerate(code, start=1):
        cell["execution_count"] = count
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                output["execution_count"] = count


def save(notebook, path: Path) -> None:
    """Write a valid notebook, atomically, with a newline at its end."""
    nbformat.validate(notebook)
    with atomic_write(path) as temporary:
        temporary.write_text(
            nbformat.writes(notebook, version=nbformat.NO_CONVERT).rstrip("\n") + "\n",
            encoding="utf-8",
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "paths", nargs="*", type=Path, help="notebooks; all of the course if none is named"
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help="rewrite the parts that all lessons have and the metadata, run nothing",
    )
    options = parser.parse_args(arguments)
    failed = []
    for path in options.paths or lessons():
        notebook = nbformat.read(path, as_version=4)
        refresh(notebook, path.name)
        start = time.perf_counter()
        try:
            if not options.parts:
                execute(notebook, path.resolve().parent)
        except Exception as error:
            failed.append(path)
            print(f"{path}: not saved, {error}", file=sys.stderr)
            continue
        clean(notebook)
        save(notebook, path)
        print(
            f"{path}: {len(notebook['cells'])} cells, {time.perf_counter() - start:.0f} s, "
            f"{path.stat().st_size // 1000} kB"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
