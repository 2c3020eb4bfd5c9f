"""`minilora models`: the models that are known by name, and what is in the cache.

What it replaces: `hf cache scan` and `hf cache delete`. How it works: the catalogue beside what
lies in the cache; --fetch fills it, --clear empties it. What it leaves out: models that were
fetched by another Hub name, which lie in the hub's own cache.
"""

from __future__ import annotations

from ..errors import MiniloraError

EXAMPLE = """examples:
  minilora models
  minilora models --fetch smollm2-135m
  minilora models --clear smollm2-135m"""


def add_arguments(parser) -> None:
    parser.usage, parser.epilog = "minilora models [options]", EXAMPLE
    group = parser.add_argument_group("what is done beside listing").add_mutually_exclusive_group()
    group.add_argument(
        "--fetch", metavar="NAME", help="fetch a model now, from the Hub or the index (default: no)"
    )
    group.add_argument(
        "--clear",
        metavar="NAME",
        help="remove a model from the cache; `all` removes every one (default: no)",
    )


def rows() -> list[list[str]]:
    """One row for each model: name, whether it is here, size, licence, where from."""
    from ..models import cache
    from ..models.catalogue import catalogue
    from ..system.files import data_folder

    shipped = data_folder() / "base"
    size = f"{cache.size(shipped) / 1e6:,.0f} MB" if shipped.is_dir() else ""
    found = [["tiny", "shipped", size, "MIT", "made for this course by `minilora pretrain`"]]
    here = {source.name: (source, path) for source, path in cache.listed()}
    for name, model in catalogue().items():
        if name in here:
            found.append(_row(*here.pop(name)))
            continue
        where = f"Hub: {model.hub}"
        if model.wheel:
            where += f"; index: {model.wheel.requirement}"
        found.append([name, "no", f"{model.bytes / 1e6:,.0f} MB", model.licence, where])
    return found + [_row(source, path) for source, path in here.values()]


def _row(source, path) -> list[str]:
    from ..models import cache

    where = source.source
    if source.went_through:
        where += f"; weights through {source.went_through}"
    return [source.name, "yes", f"{cache.size(path) / 1e6:,.0f} MB", source.licence, where]


def run(args) -> int:
    from ..models import cache, names
    from ..system.tables import Table

    if args.fetch is not None:
        model = names.known(args.fetch)
        if model is None:
            raise MiniloraError(_unknown("--fetch", args.fetch))
        print(names.folder_of(model))
        return 0
    if args.clear is not None:
        return clear(args.clear)
    print(Table(["name", "here", "size", "licence", "from"], rows()))
    print(f"cache: {cache.folder()} (${cache.VARIABLE} names another folder)")
    return 0


def clear(name: str) -> int:
    """Remove one model, or all. Raises MiniloraError for a name of which nothing is there."""
    from ..models import cache

    names = [source.name for source, _ in cache.listed()]
    gone = []
    for each in names if name == "all" else [name]:
        gone += cache.clear(each)
    if not gone and name != "all":
        raise MiniloraError(_unknown("--clear", name))
    for path in gone:
        print(f"{path}: removed")
    return 0


def _unknown(option: str, name: str) -> str:
    from ..models import cache
    from ..models.catalogue import catalogue

    known = list(catalogue()) if option == "--fetch" else [s.name for s, _ in cache.listed()]
    some = f"choose {', '.join(known)}" if known else "the cache is empty"
    return f"{option} {name}: there is no such model; {some}"
