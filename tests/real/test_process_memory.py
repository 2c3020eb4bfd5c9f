"""The memory of the real command's process, beside what was foreseen before its model came."""

import json
import os
import subprocess
import sys

import pytest

from minilora.system.json_files import read_json

pytestmark = [pytest.mark.real, pytest.mark.slow]

# blocks of 64 KiB and more go back to the system at once, so that no holes of the heap stand
EXACT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**16),
    "MALLOC_TRIM_THRESHOLD_": "0",
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc's heap")
@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_the_peak_without_holes_is_foreseen_within_5_percent(folder, tmp_path, method):
    asked, answer = "Say it again: " + "word " * 100, "word " * 20
    rows = [json.dumps({"prompt": f"{n}. {asked}", "response": answer}) for n in range(16)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")
    command = [
        sys.executable,
        "-m",
        "minilora",
        "finetune",
        "--model",
        "smollm2-135m",
        "--method",
        method,
    ]
    more = ["--data", tmp_path / "data.jsonl", "--steps", "2", "--batch", "8"]
    done = subprocess.run(
        [*command, *more, "--out", tmp_path / "run"],
        env=os.environ | EXACT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "run" / "run.json")["result"]["memory"]
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.05)
