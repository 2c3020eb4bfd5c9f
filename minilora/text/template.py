"""A chat template: from messages to one text, as transformers renders it.

What it replaces: transformers' `render_jinja_template`.
How it works: jinja2's sandbox with transformers' two extra functions, its tags and its variables;
what the template may spend is bounded by template_limits.py. Whatever goes wrong in it, a division
by zero as well, becomes one line.
What it leaves out: tools and documents; both are none, as where nobody gives any.
Where it differs: a template that writes today's date (Llama 3.2's) gets TODAY here, or rows would
change at midnight and a broken run could not go on with them.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence

from ..errors import MiniloraError

# for every run and every answer; the day that Llama 3.2's template itself falls back to
TODAY = datetime.date(2024, 7, 26)

# what a message's thoughts are called; templates read the first, gpt-oss' the second
THOUGHTS = ("reasoning_content", "thinking", "reasoning")


def compile_template(template: str):
    """The template as transformers compiles it: sandboxed, blocks trimmed, with its two extra
    functions.
    """
    from jinja2 import TemplateError
    from jinja2.ext import Extension

    from .template_limits import BoundedEnvironment, Meter, require_width

    class Generation(Extension):
        """{% generation %} … {% endgeneration %} marks the answer for a training library; the text
        is what stands in it.
        """

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        require_width(indent)
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        return "".join(Meter.now().slowly(encoder.iterencode(value)))

    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = TODAY.strftime
    environment.bound_filters()
    try:
        return environment.from_string(template)
    except Exception as error:  # also Python's own, for blocks that are nested too deep
        raise MiniloraError(
            f"the tokenizer's chat template cannot be compiled: {_short(error)}; mend "
            "tokenizer_config.json or chat_template.jinja"
        ) from error


def render(compiled, messages: Sequence[dict], **values) -> str:
    """The conversation as one text; `values` are the variables that the template sees beside it.

    Raises MiniloraError for whatever the template raises, and for what takes it too long.
    """
    from jinja2 import TemplateError

    from .template_limits import TooMuch

    try:
        return compiled.render(
            messages=[_with_thoughts(each) for each in messages],
            tools=None,
            documents=None,
            **values,
        )
    except TooMuch as error:
        raise MiniloraError(
            f"the tokenizer's chat template is stopped: {error}; mend tokenizer_config.json or "
            "chat_template.jinja"
        ) from error
    except TemplateError as error:
        raise MiniloraError(
            f"the tokenizer's chat template refuses these messages: {_short(error)}; check their "
            "roles and order"
        ) from error
    except Exception as error:
        raise MiniloraError(
            f"the tokenizer's chat template fails on these messages ({type(error).__name__}: "
            f"{_short(error)}); mend the template, or give data with `text`"
        ) from error


def _with_thoughts(message: dict) -> dict:
    """The message with its thoughts under each name that templates read, as transformers fills
    them in.
    """
    found = next((message[name] for name in THOUGHTS if message.get(name) is not None), None)
    return message if found is None else {"thinking": found, **message, THOUGHTS[0]: found}


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
