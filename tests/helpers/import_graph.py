"""Who imports whom: modules of the package, and test files that reach a module."""

import ast
from pathlib import Path


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted name → file, of every module below `package`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(["minilora", *parts]).removesuffix(".__init__")] = path
    return found


def imports(module: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules among `modules` that a file imports anywhere: at its top, in functions, for
    types.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    text = path.read_text(encoding="utf-8")
    if path.with_suffix(".pyi").exists():  # a face whose names are imported when asked for
        text += path.with_suffix(".pyi").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in modules else base)
    return {name for name in found if name in modules and name != module}


def tests_that_import(root: Path, module: str) -> list[Path]:
    """The test files from which imports lead to `module`: those of its room first, its own before
    the others, then by the length of the way.
    """
    package = modules_of(root / "minilora")
    helpers = {path.stem: path for path in (root / "tests/helpers").glob("*.py")}
    tests = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in sorted((root / "tests").rglob("test_*.py"))
    }
    files = {**package, **helpers, **tests}
    graph = {name: _reached(name, path, files) for name, path in files.items()}
    steps, edge = {module: 0}, {module}
    while edge:
        edge = {name for name in graph if name not in steps and graph[name] & edge}
        steps.update(dict.fromkeys(edge, 1 + max(steps.values())))
    room, own = module.split(".")[1], "test_" + module.rpartition(".")[2]
    seeing = [name for name in tests if name in steps]
    near = lambda name: (name.split(".")[1] != room, tests[name].stem != own, steps[name], name)
    return [tests[name] for name in sorted(seeing, key=near)]


def _reached(name: str, path: Path, files: dict[str, Path]) -> set[str]:
    """What a file imports, by name, by a list of names (the commands), or in a new process."""
    found = imports(name, path, files)
    text = path.read_text(encoding="utf-8")
    if "importlib.import_module(" in text and name.count(".") > 1:
        room = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found |= {other for other in files if other.startswith(f"{room}.")} - {name}
    if '"-m", "minilora"' in text:
        found.add("minilora.__main__")
    return found
