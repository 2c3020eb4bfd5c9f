"""The package as a house: imports run one way, importing it costs nothing, every file says what it
is.
"""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import minilora

PACKAGE = Path(minilora.__file__).parent
MODULES = {
    ".".join(["minilora", *p.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): p
    for p in sorted(PACKAGE.rglob("*.py"))
}

# From the ground up. A room may import from its own floor and those below. A helper of a room
# need not be named: it stands as high as what it imports.
FLOORS = (
    {"errors", "files"},
    {
        "quantize",
        "codebooks",
        "packing",
        "arrays",
        "blockcodes",
        "devicecodes",
        "affine",
        "bnb_format",
        "lowrank",
        "numerics",
        "autograd",
        "autograd_graph",
        "optim",
        "int8",
    },
    {"text", "llama", "lora"},
    {"qlora", "qcheckpoint"},
    {"train"},
    {"hub", "kernels", "parallel", "budget"},
    {"exercises", "check", "explore"},
    {"cli", "commands", "__main__"},
)

# What takes more than eight parameters, self aside: where a call names each setting, or an exercise
# each wrong answer.
MANY_PARAMETERS = {
    "minilora.budget.activations.op",
    "minilora.hub.generate",
    "minilora.pretrain.run_stage",
    "minilora.sampling.generate",
    "minilora.exercises.lesson01._adamw",
    "minilora.exercises.lesson03._count",
    "minilora.exercises.lesson03._operations",
    "minilora.exercises.lesson04._value",
}


def _named_floor(module: str) -> int | None:
    room = module.split(".")[1] if "." in module else ""
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


@functools.cache
def _floor(module: str) -> int:
    """The floor in FLOORS; a helper that is not named there stands as high as the highest room it
    imports.
    """
    named = _named_floor(module)
    if named is not None:
        return named
    return max(
        (_floor(other) for other in _imports(module, MODULES[module], True) - {"minilora"}),
        default=0,
    )


def _imports(module: str, path: Path, inside_functions: bool) -> set[str]:
    """The minilora modules that a file imports, at its top level or (also) inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if inside_functions else _top_level(tree)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names if a.name.split(".")[0] == "minilora")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            if base.split(".")[0] == "minilora":
                found.update(
                    f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base
                    for a in node.names
                )
    return {name for name in found if name in MODULES and name != module}


def _top_level(tree: ast.AST):
    """Statements that run when the module is imported: all but function bodies and
    `if TYPE_CHECKING`.
    """
    waiting = list(ast.iter_child_nodes(tree))
    while waiting:
        node = waiting.pop()
        yield node
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if (
            not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            and not typing_only
        ):
            waiting.extend(ast.iter_child_nodes(node))


def test_imports_run_one_way():
    for module, path in MODULES.items():
        if module == "minilora":
            continue
        for other in _imports(module, path, inside_functions=True) - {"minilora"}:
            assert _floor(other) <= _floor(module), (
                f"{module} (floor {_floor(module)}) imports {other} (floor {_floor(other)})"
            )


def test_there_is_no_circle():
    graph = {
        module: _imports(module, path, inside_functions=False) for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple) -> None:
        # A package's __init__ importing its own parts, which import the package by name, is no
        # circle of ideas.
        assert module not in trail, " → ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                if not module.startswith(f"{other}."):
                    visit(other, (*trail, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module):
    told = (ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8"))) or "").lower()
    for part in ("what it replaces", "how it works", "what it leaves out", "where numerics differ"):
        assert part in told, f"{MODULES[module].name}: its docstring lacks {part!r}"


@pytest.mark.parametrize("module", MODULES)
def test_no_file_holds_a_second_idea(module):
    text = MODULES[module].read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{text.count(chr(10))} lines; a second idea has moved in"
    many = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 50, f"{node.name}: {lines} lines"
            named = [
                a.arg
                for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                if a.arg not in ("self", "cls")
            ]
            if len(named) > 8:
                many.add(f"{module}.{node.name}")
    assert many == {name for name in MANY_PARAMETERS if name.rpartition(".")[0] == module}, (
        "more than eight parameters, or no longer"
    )


def _in_new_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    ).stdout.strip()


def test_importing_costs_nothing():
    code = (
        "import time; start = time.perf_counter(); import minilora; spent = "
        "time.perf_counter() - start; import sys;"
        "dir(minilora); print(spent, [m for m in ('torch', 'transformers', 'bitsandbytes', "
        "'peft', 'numpy') if m in sys.modules])"
    )
    runs = [_in_new_python(code).split(" ", 1) for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 0.3
    assert {loaded for _, loaded in runs} == {"[]"}


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("minilora.__main__",)])
def test_importing_a_module_loads_no_other_library(module):
    """Only `hub` may load transformers and its kin, and that inside functions; so a reader can
    delete it.
    """
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in _top_level(tree):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
        for name in names:
            assert name.split(".")[0] not in (
                "transformers",
                "bitsandbytes",
                "peft",
                "accelerate",
                "ipywidgets",
            ), f"{module} imports {name} at its top"


def test_no_pickle_and_no_remote_code():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {
                    ("torch", "load"),
                    ("torch", "save"),
                } and node.value.id != "pickle", f"{module}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, (
                    f"{module}:{node.value.lineno}"
                )


def test_names_are_found_when_asked_for():
    assert minilora.errors.MiniloraError.__name__ == "MiniloraError"
    assert {"check", "errors", "explore", "__version__"} <= set(dir(minilora))
    with pytest.raises(AttributeError, match="no attribute 'quantise'; its modules are"):
        minilora.quantise
