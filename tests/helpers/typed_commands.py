"""Commands as they are typed, and rows for them whose answers are letters."""

import json


def typed(command, *more, **options) -> list[str]:
    """The words of `command` with these options and their values, and `more` behind them, where it
    goes before what was said already.
    """
    words = [command]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", value]
    return [str(word) for word in (*words, *more)]


def write_letters(folder, letters, splits=("train", "valid", "test")):
    """Data files that teach "say aaa" → "a"."""
    lines = [
        json.dumps({"prompt": f"say {c * (1 + i % 4)}", "response": c}) + "\n"
        for i, c in enumerate(letters)
    ]
    for split in splits:
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder
