"""What a script that makes results has still to do, asked without doing it.

What it replaces: starting a script to see how long it takes.
How it works: with MINILORA_PLAN=FILE in its environment a script comes as far as its list of runs,
adds a line of JSON to FILE (the results file, how many runs it has, how many are to go, seconds of
a run) and ends where a run would begin.
What it leaves out: what depends on runs that are still to be made, such as sweeps at tuned rates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median

ASKED = "MINILORA_PLAN"


def only_asked(path: Path, there: Sequence[dict], to_go: int) -> bool:
    """Whether only the plan is asked for; then it is written. Ends the program if runs are to go.

    there: records of the file, whose `seconds` say what one takes.
    """
    file = os.environ.get(ASKED)
    if not file:
        return False
    seconds = [record["seconds"] for record in there if record.get("seconds")]
    told = {"file": path.name, "there": len(there), "to_go": to_go}
    told["seconds"] = median(seconds) if seconds else None
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(told) + "\n")
    if to_go:
        raise SystemExit(0)
    return True
