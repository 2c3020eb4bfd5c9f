"""A piece of code is found by its tokens, however a formatter lays it out, and only where it stands
once.
"""

import ast

import pytest
from spans import DoesNotFit, find, replaced

CODE = """
def rate(step, total):
    if step < total:  # warm
        return self.base(step, total) * "of"
    return 0.5
"""
PIECE = 'return self.base(step, total) * "of"'

LAID_OUT = {
    "as it was": CODE,
    "other white space": CODE.replace("step, total) *", "step,total)*"),
    "a line broken": CODE.replace("(step, total) *", "(\n            step, total\n        ) *"),
    "a backslash": CODE.replace(") *", ") \\\n            *"),
    "a comment inside": CODE.replace("(step, total) *", "(step,  # now\n            total) *"),
    "a trailing comma": CODE.replace("(step, total) *", "(\n            step,\n  total,\n  ) *"),
    "other quotes": CODE.replace('"of"', "'of'"),
    "deeper": "class Loop:" + CODE.replace("\n", "\n    ") + "\n",
}


@pytest.mark.parametrize("layout", LAID_OUT)
def test_a_piece_is_found_however_it_is_laid_out(layout):
    changed = replaced(LAID_OUT[layout], PIECE, "return None")
    assert changed.count("return None") == 1 and "self.base" not in changed
    wanted = ast.dump(ast.parse(CODE.replace(PIECE, "return None")).body[0])
    assert wanted in ast.dump(ast.parse(changed))


@pytest.mark.parametrize(
    "piece",
    [
        'return self.base(step, total,) * "of"',
        'return self.base(\n    step,\n    total,\n) * "of"',
        'return self.base(step, total)  # why\n * "of"',
        "\n        return self.base(step, total) * 'of'\n",
    ],
    ids=["a trailing comma", "broken lines", "a comment", "indented"],
)
def test_the_piece_itself_may_be_laid_out_otherwise(piece):
    assert find(CODE, piece) == find(CODE, PIECE)


def test_f_strings_and_docstrings_are_found_in_other_quotes():
    assert find('x = f"{a} b"', "f'{a} b'") == (4, 12)
    assert find("x = '''a\nb'''", '"""a\nb"""') == (4, 13)
    with pytest.raises(DoesNotFit):
        find('x = f"{a} b"', "'{a} b'")


@pytest.mark.parametrize(
    "piece, times",
    [
        ("step, total", 2),
        ("self.base(step)", 0),
        ("bas", 0),  # a part of a name
        ("step <= total", 0),
        ("return 0", 0),  # a part of a number
        ("warm", 0),  # a comment is no code
    ],
)
def test_never_and_twice_are_errors(piece, times):
    with pytest.raises(DoesNotFit, match=f"stands there {times} times, not once"):
        find(CODE, piece)
    with pytest.raises(DoesNotFit, match="there is no code"):
        find(CODE, "# warm\n")


def test_a_comma_that_means_something_counts():
    assert find("f(a, b)", "f(a,") == (0, 4)
    with pytest.raises(DoesNotFit):
        find("f(a)", "f(a, b")


@pytest.mark.parametrize("depth", [0, 2, 4, 8])
@pytest.mark.parametrize(
    "old, new",
    [
        ("        a = 1\n        b = 2\n", "        if a:\n            b = 3\n"),
        ("a = 1\nb = 2", "if a:\n    b = 3"),
        ("a = 1\n        b = 2", "if a:\n            b = 3"),
    ],
    ids=["as in the file", "at the margin", "from the middle of a line"],
)
def test_what_is_put_in_stands_as_deep_as_what_it_replaces(old, new, depth):
    source = "if x:\n" * bool(depth) + " " * depth + "a = 1\n" + " " * depth + "b = 2\n"
    expected = ("if x:\n" * bool(depth) + " " * depth + "if a:\n") + " " * (depth + 4) + "b = 3\n"
    assert replaced(source, old, new) == expected


def test_a_piece_may_begin_and_end_inside_brackets():
    assert replaced("f(a, g(b), c)", "a, g(", "a, h(") == "f(a, h(b), c)"
    assert replaced("f(a, g(b), c)", "b), c", "c), b") == "f(a, g(c), b)"
