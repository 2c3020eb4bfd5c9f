"""The package as a house: imports run one way, importing it costs nothing, every file says what it
is.
"""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from import_graph import imports, modules_of

import minilora

PACKAGE = Path(minilora.__file__).parent

# From the ground up. A room may import from the floors below its own, and from its own room.
FLOORS = (
    {"errors"},
    {"system"},
    {"numerics", "lowrank", "autograd", "quantize"},
    {"text", "llama", "lora"},
    {"models"},
    {"qlora"},
    {"train"},
    {"budget", "parallel"},
    {"hub"},
    {"recipes"},
    {"course"},
    {"cli"},
    {"__main__"},
)

# What takes more than eight parameters, self aside: where a call names each setting.
MANY_PARAMETERS = {
    "minilora.recipes.pretrain.run_stage",
    "minilora.llama.generate.generate",
    "minilora.hub.answers.generate",
}


MODULES = modules_of(PACKAGE)


def floor(module: str) -> int:
    """The floor of a module's room."""
    room = module.split(".")[1] if "." in module else ""
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"{module}: the room {room!r} stands on no floor; name it in FLOORS")


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def upward(modules: dict[str, Path]) -> list[str]:
    """Imports that climb, or leave their room on one floor."""
    wrong = []
    for module, path in modules.items():
        for other in imports(module, path, modules) - {"minilora"}:
            if module == "minilora" or room_of(module) == room_of(other):
                continue
            if floor(other) >= floor(module):
                wrong.append(f"{module} imports {other}")
    return wrong


def circles(modules: dict[str, Path]) -> list[list[str]]:
    """Every set of modules that reach each other (Tarjan 1972). A package's face imports its parts;
    a part that imports its own face closes a circle, too.
    """
    graph = {name: sorted(imports(name, path, modules)) for name, path in modules.items()}
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            ring = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(ring) > 1:
                found.append(ring)

    for name in graph:
        if name not in number:
            visit(name)
    return found


def test_imports_run_one_way():
    assert not upward(MODULES)


def test_there_is_no_circle():
    assert not circles(MODULES)


def test_few_entries_stand_at_the_top():
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 20, sorted(path.name for path in entries)


@pytest.fixture
def copy(tmp_path):
    """A copy of the package's sources, to plant in."""
    for path in PACKAGE.rglob("*.py*"):
        if "__pycache__" in path.parts:
            continue
        target = tmp_path / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


def plant(path: Path, line: str, inside_a_function: bool) -> None:
    text = f"\n\ndef planted():\n    {line}\n" if inside_a_function else f"\n\n{line}\n"
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


@pytest.mark.parametrize("inside", [False, True], ids=["at the top", "in a function"])
def test_a_planted_upward_import_is_seen(copy, inside):
    plant(copy / "llama" / "decoder.py", "from ..train.loop import fit", inside)
    assert upward(modules_of(copy)) == ["minilora.llama.decoder imports minilora.train.loop"]


@pytest.mark.parametrize("inside", [False, True], ids=["at the top", "in a function"])
@pytest.mark.parametrize(
    "line", ["from .model import Llama", "from . import model", "from minilora.llama import Llama"]
)
def test_a_planted_circle_is_seen(copy, inside, line):
    plant(copy / "llama" / "checkpoint.py", line, inside)
    assert any("minilora.llama.checkpoint" in ring for ring in circles(modules_of(copy)))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


def lengths(module: str) -> tuple[int, dict[str, int], set[str]]:
    """(lines of the file, lines by function, functions with more than eight parameters)."""
    text = MODULES[module].read_text(encoding="utf-8")
    functions, many = {}, set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions[f"{module}.{node.name}"] = node.end_lineno - node.lineno + 1
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if len([a for a in named if a.arg not in ("self", "cls")]) > 8:
                many.add(f"{module}.{node.name}")
    return text.count("\n"), functions, many


@pytest.mark.parametrize("module", MODULES)
def test_no_file_holds_a_second_idea(module):
    lines, functions, many = lengths(module)
    assert lines <= 450, "a second idea has moved in"
    for name, long in functions.items():
        assert long <= 70, f"{name}: {long} lines"
    assert many == {name for name in MANY_PARAMETERS if name.rpartition(".")[0] == module}, (
        "more than eight parameters, or no longer"
    )


def _in_new_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    ).stdout.strip()


def test_importing_costs_nothing():
    code = textwrap.dedent(
        """
        import time; start = time.perf_counter(); import minilora
        spent = time.perf_counter() - start; import sys; dir(minilora)
        heavy = ('torch', 'transformers', 'bitsandbytes', 'peft', 'numpy')
        print(spent, [m for m in heavy if m in sys.modules])
        """
    )
    runs = [_in_new_python(code).split(" ", 1) for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 0.3
    assert {loaded for _, loaded in runs} == {"[]"}


def _top_level(tree: ast.AST):
    """Statements that run when the module is imported: all but function bodies."""
    waiting = list(ast.iter_child_nodes(tree))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))


OTHERS = ("transformers", "bitsandbytes", "peft", "accelerate", "ipywidgets")


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("minilora.__main__",)])
def test_importing_a_module_loads_no_other_library(module):
    """Only `hub` may load transformers and its kin, and that inside functions; so a reader can
    delete it.
    """
    for node in _top_level(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] not in OTHERS, f"{module} imports {name} at its top"


def test_no_pickle_and_no_remote_code():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}
                assert node.value.id != "pickle", f"{module}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, module


def test_names_are_found_when_asked_for():
    assert minilora.errors.MiniloraError.__name__ == "MiniloraError"
    assert {"course", "errors", "quantize", "__version__"} <= set(dir(minilora))
    with pytest.raises(AttributeError, match="no attribute 'quantise'; its modules are"):
        minilora.quantise
