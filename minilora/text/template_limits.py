"""What a chat template may spend: seconds of work, and characters in any value that it makes.

What it replaces: nothing; transformers lets a template of a stranger loop and grow without end.
How it works: the template's syntax tree is changed before it becomes Python. Each statement, loop,
macro and block first calls `tick`, which looks at the thread's processor time; each `~`, list and
dict goes through a function that weighs it. Calls, filters, `+`, `*`, `**` and `%` are weighed by
the sandbox's own hooks, those that can grow beyond their inputs before they run. So no single step
is large, and between two steps the clock is read: no signal, no process, the same on every system
and in every thread.
What it leaves out: the clock is read between steps, so a template may overrun by one of them.
"""

from __future__ import annotations

import functools
import itertools
import re
import threading
import time
from collections.abc import Iterator

from jinja2 import TemplateError, nodes, pass_context
from jinja2.environment import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 1.0  # of processor time for one text; a real template takes a millisecond
CHARACTERS = 1_000_000  # of any one value, beside eight times those of the messages
VALUES = 20  # all values that are made may together have this many times as many
BITS = 10_000  # of a whole number
WIDTH = 10_000  # of what is padded, indented, or cut into rows
TEMPLATE = 100_000  # characters; the longest in use have 20,000
SLOW = 100_000  # characters for filters whose work grows with the square of them
EACH = 8  # what an entry of a list, a number or a key weighs beside its text


class TooMuch(TemplateError):
    """The template would take too long or grow too large."""


def weigh(value, most: float = float("inf")) -> int:
    """About how many characters `value` has as text; a part that is shared counts each time."""
    if type(value) is str and len(value) <= most:  # nearly always
        return len(value)
    total, left = 0, [value]
    if isinstance(value, Namespace):
        left = [object.__getattribute__(value, "_Namespace__attrs")]
    while left:
        one = left.pop()
        if isinstance(one, (str, bytes)):
            total += len(one)
        elif isinstance(one, int):
            total += EACH + one.bit_length() // 3
        elif isinstance(one, Namespace):  # which could then be changed behind the scales
            raise TooMuch("it keeps a namespace inside another value")
        elif isinstance(one, (list, tuple, dict, set, frozenset)) or type(one) in VIEWS:
            total += EACH * (1 + len(one))
            if total <= most:
                left.extend(one)
                left.extend(one.values() if isinstance(one, dict) else ())
        else:
            total += EACH
        if total > most:
            raise TooMuch(f"it makes a value of more than {most:,.0f} characters")
    return total


VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


_running = threading.local()


class Meter:
    """What one text has used up; `now()` is that of the text which this thread is making."""

    @staticmethod
    def now() -> Meter:
        return _running.meter

    def __init__(self, given: int):
        self.most = CHARACTERS + 8 * given
        self.left = VALUES * self.most
        self.end = time.thread_time() + SECONDS

    def tick(self, characters: int = 0) -> None:
        self.left -= characters
        if self.left < 0:
            raise TooMuch(f"it makes more than {VALUES * self.most:,} characters")
        if time.thread_time() > self.end:
            raise TooMuch(f"it takes more than {SECONDS:g} seconds")

    def made(self, value):
        self.tick(weigh(value, self.most))
        return value

    def fits(self, characters: float) -> None:
        """Raise before a step that would make a value of so many characters."""
        if characters > self.most:
            raise TooMuch(f"it makes a value of more than {self.most:,} characters")

    def slowly(self, values: Iterator):
        for value in values:
            yield self.made(value)


# ------------------------------------------------------- steps that grow beyond what they are given


def require_width(*numbers) -> None:
    for number in numbers:
        if isinstance(number, int) and abs(number) > WIDTH:
            raise TooMuch(f"it asks for a width of {number}, more than {WIDTH:,}")


def _form(form: str, mark: str, given) -> None:
    """Look at a text that is the form of `%` or `str.format`, by its `mark`, and what goes in."""
    if re.search(r"\d{5}|%[-#0 +]*\*|%[-#0 +]*\d*\.\*", form):
        raise TooMuch(f"it asks for a width of more than {WIDTH:,}")
    if re.search(r"\{[^{}]*\{", form.replace("{{", "").replace("}}", "")):
        raise TooMuch("it takes the width of a text from a value")
    meter = Meter.now()
    meter.fits(len(form) + form.count(mark) * weigh(given, meter.most))


def _before(name: str, text: str | bytes, given: list) -> None:
    """Look at a method of a text, or the filter of that name, before it runs."""
    meter = Meter.now()
    if name in ("center", "ljust", "rjust", "zfill"):
        meter.fits(given[0] if given and isinstance(given[0], int) else 80)
    elif name == "expandtabs":
        require_width(*given)
        meter.fits(len(text) * (1 + abs(given[0]) if given else 8))
    elif name == "replace" and len(given) > 1:
        old, new = given[0], given[1]
        if isinstance(old, (str, bytes)) and isinstance(new, (str, bytes)):
            times = text.count(old) if type(old) is type(text) else len(text)
            meter.fits(len(text) + times * len(new))
    elif name in ("format", "format_map"):
        _form(str(text), "{", given)
    elif name == "translate":
        raise TooMuch("it calls translate, whose result may be of any size")


FILTERS_OF_WIDTH = {"batch", "center", "indent", "round", "slice", "truncate", "urlize", "wordwrap"}
FILTERS_OF_SQUARES = {"striptags", "title", "urlize", "wordwrap", "xmlattr"}


def _bounded(name: str, work):
    """The filter `work`, which looks at what it is given and weighs what it makes."""
    skip = 1 if hasattr(work, "jinja_pass_arg") else 0  # the context or the environment

    @functools.wraps(work)
    def run(*args, **options):
        meter = Meter.now()
        meter.tick()
        first, (value, *given) = args[:skip], args[skip:]
        if isinstance(value, Iterator):
            value = meter.slowly(value)
        value = _ready(name, value, [*given, *options.values()])
        result = work(*first, value, *given, **options)
        return result if isinstance(result, Iterator) else meter.made(result)

    return run


def _ready(name: str, value, given: list):
    """What the filter `name` may be given: `value`, as a list where the filter would need all of it
    at once.
    """
    meter = Meter.now()
    if name in FILTERS_OF_WIDTH:
        require_width(*given)
    if name in FILTERS_OF_SQUARES and weigh(value, meter.most) > SLOW:
        raise TooMuch(f"it gives the filter {name} more than {SLOW:,} characters")
    texts = [len(each) for each in given if isinstance(each, str)]
    if name == "indent":
        wide = max([*texts, *(each for each in given if isinstance(each, int))], default=4)
        meter.fits(len(str(value)) + (str(value).count("\n") + 1) * wide)
    elif name == "wordwrap":
        meter.fits((len(str(value)) + 1) * max(texts, default=1))
    elif name in ("join", "sum"):
        value = list(itertools.islice(value, meter.most // EACH + 1))
        weight = weigh(value, meter.most)
        meter.fits(weight + sum(texts) * len(value))
        # lists are joined anew at each step
        if name == "sum" and not all(isinstance(each, (int, float)) for each in value):
            weigh(value, SLOW // 10)
    elif name == "format":
        _form(str(value), "%", given)
    elif name == "replace":
        _before(name, str(value), [str(each) for each in given[:2]])
    return value


# ------------------------------------------------------------------------- the tree and its sandbox


class _Ticks(NodeTransformer):
    """Puts `tick` before each statement, and sends what makes a value through the environment."""

    def visit_Concat(self, node, *args):
        return self._through("joined", self.generic_visit(node).nodes, node)

    def visit_List(self, node, *args):
        return self._through("made", [self.generic_visit(node)], node)

    visit_Dict = visit_List

    def visit_Tuple(self, node, *args):
        if node.ctx != "load":  # names on the left of an assignment
            return node
        return self._through("made", [self.generic_visit(node)], node)

    def generic_visit(self, node, *args, **kwargs):
        node = super().generic_visit(node, *args, **kwargs)
        for field in ("body", "else_"):
            body = getattr(node, field, None)
            if isinstance(body, list):
                setattr(node, field, self._ticking(body, node))
        return node

    def _ticking(self, body: list, node) -> list:
        text = sum(
            len(part.data)
            for each in body
            if isinstance(each, nodes.Output)
            for part in each.nodes
            if isinstance(part, nodes.TemplateData)
        )
        ticked: list = [self._tick(text, node)]
        for each in body:
            ticked += [each] if isinstance(each, nodes.Output) else [self._tick(0, each), each]
        return ticked

    def _tick(self, text: int, node):
        return nodes.ExprStmt(self._through("tick", [nodes.Const(text)], node)).set_lineno(
            node.lineno
        )

    @staticmethod
    def _through(name: str, given: list, node):
        call = nodes.Call(nodes.EnvironmentAttribute(name), given, [], None, None)
        return call.set_lineno(node.lineno)


class MeteredTemplate(Template):
    """A template that starts a meter for each text."""

    def render(self, *args, **kwargs):
        outer = getattr(_running, "meter", None)
        _running.meter = Meter(weigh([args, kwargs]))
        try:
            return super().render(*args, **kwargs)
        finally:
            _running.meter = outer


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with a meter for each text that is rendered in it."""

    template_class = MeteredTemplate
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options):
        # nothing is worked out while the template is compiled, where no meter runs
        super().__init__(optimized=False, finalize=_finalize, **options)
        self.globals["namespace"] = BoundedNamespace
        del self.globals["lipsum"]  # makes as many random words as it is asked for

    def bound_filters(self) -> None:
        """Weigh what every filter makes; call it when all of them are there."""
        self.filters = {name: _bounded(name, work) for name, work in self.filters.items()}

    def _parse(self, source, name, filename):
        if len(source) > TEMPLATE:
            raise TooMuch(f"it has {len(source):,} characters, more than {TEMPLATE:,}")
        return _Ticks().visit(super()._parse(source, name, filename))

    def tick(self, characters: int) -> None:
        Meter.now().tick(characters)

    def made(self, value):
        return Meter.now().made(value)

    def joined(self, *parts) -> str:
        meter = Meter.now()
        meter.fits(sum(weigh(part, meter.most) for part in parts))
        return meter.made("".join(str(part) for part in parts))

    def call(self, context, called, /, *args, **kwargs):
        of = getattr(getattr(called, "__wrapped__", called), "__self__", None)
        if of is self:  # put there by _Ticks
            return called(*args)
        meter, name = Meter.now(), getattr(called, "__name__", "")
        meter.tick()
        if isinstance(of, (str, bytes)):
            _before(name, of, [*args, *kwargs.values()])
            if name == "join" and args:
                values = list(itertools.islice(args[0], meter.most // EACH + 1))
                meter.fits(weigh(values, meter.most) + len(of) * len(values))
                args = (values, *args[1:])
        elif name == "to_bytes":
            require_width(*args, *kwargs.values())
        result = super().call(context, called, *args, **kwargs)
        return result if isinstance(result, Iterator) else meter.made(result)

    def call_binop(self, context, operator, left, right):
        meter = Meter.now()
        meter.tick()
        if operator == "+":
            meter.fits(weigh(left, meter.most) + weigh(right, meter.most))
        elif operator == "*":
            _times(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _whole(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            _form(left if isinstance(left, str) else left.decode("latin-1"), "%", right)
        return meter.made(super().call_binop(context, operator, left, right))


def _times(left, right) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _whole(left.bit_length() + right.bit_length())
        return
    meter = Meter.now()
    for many, times in ((left, right), (right, left)):
        if isinstance(times, int) and not isinstance(many, float):
            meter.fits(weigh(many, meter.most) * max(times, 0))


def _whole(bits: int) -> None:
    if bits > BITS:
        raise TooMuch(f"it makes a whole number of more than {BITS:,} bits")


@pass_context  # so that it runs while the text is made, not while the template is compiled
def _finalize(context, value):
    return Meter.now().made(value)


class BoundedNamespace(Namespace):
    """Jinja's namespace; what it is given is weighed, and names of Python's insides are refused, as
    transformers refuses them.
    """

    def __init__(*args, **names):  # so that a name may be `self`, as Jinja allows it
        self, *given = args
        for name, value in dict(*given, **names).items():
            _kept(name, value)
        Namespace.__init__(self, *given, **names)

    def __setitem__(self, name, value):
        _kept(name, value)
        super().__setitem__(name, value)


def _kept(name, value) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TooMuch(f"it gives a namespace the name {name!r}, with an underscore in front")
    weigh([value], Meter.now().most)
