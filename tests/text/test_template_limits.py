"""Templates that loop, grow or break: one line each, soon; and what no template may reach."""

import gc
import threading
import time
import tracemalloc

import pytest

from minilora.errors import MiniloraError
from minilora.text import template, template_limits
from minilora.text.template import compile_template, render

MESSAGES = [{"role": "user", "content": "who?"}]
LONG = "{% for i in range(99999) %}"
END = "{% endfor %}"
KEEP = "{% set ns = namespace(a='x', n=3, l=[1]) %}" + LONG


def text_of(template, messages=MESSAGES, **values):
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    return render(compile_template(template), messages, **(names | values))


GROWING = {
    "a loop in a loop": LONG + LONG + END + END,
    "a loop without a body of its own": LONG + "{% for j in range(99999) if j < 0 %}" + END + END,
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}"
    "{% endif %}{% endmacro %}{{ f(60) }}",
    "text in a loop in a loop": LONG + LONG + "a" * 200 + END + END,
    "a block of text set aside": "{% set x %}"
    + LONG
    + "a" * 900
    + END
    + "{% endset %}{{ x|length }}",
    "~": KEEP + "{% set ns.a = ns.a ~ ns.a %}" + END,
    "+": KEEP + "{% set ns.a = ns.a + ns.a %}" + END,
    "lists added": KEEP + "{% set ns.l = ns.l + ns.l %}" + END,
    "lists in lists": KEEP + "{% set ns.l = [ns.l, ns.l] %}" + END + "{{ ns.l }}",
    "tuples compared": KEEP + "{% set ns.l = (ns.l, ns.l) %}" + END + "{{ ns.l == ns.l }}",
    "dicts in dicts": KEEP + "{% set ns.l = {'x': ns.l, 'y': ns.l} %}" + END + "{{ ns.l|tojson }}",
    "*": "{{ 'a' * 10**10 }}",
    "* of a list": "{{ 10**9 * [1] }}",
    "* of numbers": KEEP + "{% set ns.n = ns.n * ns.n %}" + END,
    "**": "{% set ns = 10 ** 10 ** 10 %}{{ (2 ** 99999) ** 99999 }}",
    "%": "{{ '%1000000000d' % 1 }}",
    "% by a star": "{{ '%*d' % (10**9, 1) }}",
    "%s many times": "{{ ('%s' * 9999) % (['x' * 99999] * 9999) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format by a value": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format_map": "{{ '{a:99999999}'.format_map({'a': 1}) }}",
    "the filter format": "{{ '%1000000000d'|format(1) }}",
    "center": "{{ 'x'.center(10**9) }}",
    "the filter center": "{{ 'x'|center(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "ljust by name": "{{ ('x'|attr('ljust'))(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "replace nothing": "{{ ('a' * 99999)|replace('', 'b' * 99999) }}",
    "join": "{{ ('b' * 99999).join('a' * 99999) }}",
    "the filter join": "{{ range(99999)|join('b' * 99999) }}",
    "the filter join of few": "{{ range(3000)|join('b' * 99999) }}",
    "join what map makes": "{{ range(99999)|map('string')|map('center', 9999)|join }}",
    "translate": "{{ 'a'.translate({97: 'x' * 99999}) }}",
    "to_bytes": "{{ (5).to_bytes(10**9, 'big') }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "indent": "{{ ('a\n' * 99999)|indent('x' * 99999) }}",
    "tojson": "{{ [[1]]|tojson(indent=10**9) }}",
    "wordwrap": "{{ ('a ' * 9999)|wordwrap(1, wrapstring='x' * 9999) }}",
    "sum of lists": "{{ ([[1]] * 99999)|sum(start=[]) }}",
    "striptags": "{{ ('<!--' * 99999)|striptags }}",
    "fromkeys": "{{ dict().fromkeys(range(99999), 'x' * 999) }}",
    "a name in itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "a long template": "x" * 200_000,
}


@pytest.mark.parametrize("name", GROWING)
def test_a_template_that_loops_or_grows_is_stopped(name, monkeypatch):
    monkeypatch.setattr(template_limits, "SECONDS", 0.1)
    started = time.thread_time()
    with pytest.raises(MiniloraError) as caught:
        text_of(GROWING[name])
    assert time.thread_time() - started < 2 and "\n" not in str(caught.value)
    assert "is stopped: it " in str(caught.value) or "cannot be compiled: it has" in str(
        caught.value
    )


STEPS = ["*", "* of a list", "%", "format", "zfill", "center", "replace", "join", "to_bytes"]


@pytest.mark.parametrize(
    "name", [*STEPS, "the filter join", "the filter join of few", "batch", "indent", "tojson", "~"]
)
def test_a_step_that_would_be_large_is_not_taken(name):
    """What is weighed when it is there has filled the memory by then."""
    tracemalloc.start()
    try:
        with pytest.raises(MiniloraError):
            text_of(GROWING[name])
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


BROKEN = {
    "a division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "a number beyond all": ("{{ 10.0 ** 400 }}", "OverflowError"),
    "a macro without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a block without end": ("{% block a %}{{ self.a() }}{% endblock %}", "RecursionError"),
    "another file": ("{% include 'x' %}", "TypeError"),
    "two kinds sorted": ("{{ [3, 'a']|sort }}", "TypeError"),
    "a name that is not there": ("{{ x.y }}", "'x' is undefined"),
    "its own refusal": ("{{ raise_exception('no\nsystem') }}", "no system"),
    "brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be compiled"),
    "blocks": ("{% for i in [1] %}" * 30 + END * 30, "cannot be compiled"),
    "a long sum": ("{{ " + "+".join("1" * 20000) + " }}", "cannot be compiled"),
    "no syntax": ("{% if %}", "cannot be compiled"),
    "a tag of nobody": ("{% nothing %}", "cannot be compiled"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_goes_wrong_in_a_template_is_one_line(name):
    template, words = BROKEN[name]
    with pytest.raises(MiniloraError) as caught:
        text_of(template)
    assert words in str(caught.value) and "\n" not in str(caught.value)


DUNDERS = ("__class__", "__init__", "__globals__", "__subclasses__", "__mro__", "__base__")
REACHING = [
    *(f"{{{{ ''.{a}.{b} }}}}" for a in DUNDERS[:3] for b in DUNDERS),
    *(f"{{{{ {name}.__init__.__globals__['os'] }}}}" for name in ("cycler", "joiner", "namespace")),
    *(f"{{{{ {name}.__globals__ }}}}" for name in ("raise_exception", "strftime_now", "dict")),
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ (messages|attr('__class__'))('x') }}",
    "{{ messages|map(attribute='__class__')|list|first|attr('__base__') }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}).__class__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ messages[0].pop('role') }}",
    "{% set messages[0].role = 'x' %}",
    "{{ namespace(_x=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ environment.tick }}{{ environment.call }}",
    "{% set x = (1).__class__ %}{{ x.from_bytes }}{{ x('7') }}",
    "{{ range.__self__.open('/etc/hostname').read() }}",
    "{% for x in [].__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{ cycler.next.__func__.__globals__ }}",
    "{% macro f() %}{% endmacro %}{{ f.__globals__ }}{{ f._func.__globals__ }}",
    "{% macro f() %}{% endmacro %}{{ f._environment.globals }}",
    "{{ loop.__init__.__globals__ }}",
    "{% for i in [1] %}{{ loop._undefined.__init__.__globals__ }}{% endfor %}",
]


@pytest.mark.parametrize("template", REACHING)
def test_a_template_reaches_nothing_of_python(template):
    """As in the sandbox without a meter: an error, or an empty text; and nothing is changed."""
    messages = [{"role": "user", "content": "who?"}]
    try:
        text = text_of(template, messages)
    except MiniloraError:
        text = ""
    assert not any(word in text for word in ("<class", "<module", "<function", "<built-in", "root"))
    assert messages == MESSAGES


PLAIN = [
    "{{ messages[0].content|upper|replace('W', 'w')|center(9)|trim|title }}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ [1, 2.5, -3]|sum }}"
    "{{ [[1], [2]]|sum(start=[]) }}",
    "{{ '%s-%05.2f' % ('a', 2) }}{{ '%s'|format(3) }}{{ '{:>5}|{a}'.format(1, a=[2]) }}",
    "{% set ns = namespace(x='', n=0) %}{% for m in messages %}"
    "{% set ns.x = ns.x ~ m.role ~ 1 ~ none %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.x }}{{ ns.n ** 3 * 2 % 5 }}",
    "{{ messages|tojson }}{{ {'é': [1, none, true]}|tojson(indent=2) }}{{ messages|string }}",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}{{ f('x') }}"
    "{% call f('y') %}z{% endcall %}",
    "{% filter upper %}a{{ 1 }}{% endfilter %}{% with a = 3 %}{{ a }}{% endwith %}"
    "{% set x %}é{% endset %}{{ x }}",
    "{% for k, v in messages[0].items()|sort %}{{ loop.index }}{{ k }}{{ v }}{{ loop.last }}"
    "{% else %}-{% endfor %}{% for g in messages|groupby('role') %}{{ g.grouper }}"
    "{{ g.list|length }}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
    "{{ tools is none }}{{ documents is defined }}{{ pad_token is defined }}{{ bos_token }}"
    "{{ messages is sequence }}{{ 3 in [1, 3] }}{{ 'x' ~ [1] ~ {'a': (1, 2)} }}",
    "{{ (messages * 2)|length }}{{ [3, 1, 2]|sort|first }}{{ 'a b'.split()|last }}{{ 'ab'|list }}"
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ 'x,y'|wordcount }}",
    "{{ '  a\nb'|indent(2, true) }}{{ 'a b c'|truncate(3) }}"
    "{{ range(5)|batch(2, 'x')|list }}{{ range(7)|slice(3)|list }}{{ '<b>x'|striptags }}",
    "{{ dict(a=1).a }}{{ dict(a=1)|dictsort }}{{ {'a': 1}.get('b', 5) }}{{ cycler(1, 2).next() }}",
    "{{ messages[0].thinking }}{{ messages[1].reasoning_content }}",
    "{% if messages[0]['content'] is string and not messages[-1].x %}"
    "{{ 'a'.join(['b', 'c']) }}{% endif %}"
    "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
]


@pytest.mark.parametrize("template", PLAIN)
@pytest.mark.parity
def test_a_template_of_good_will_gives_what_transformers_gives(template):
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [
        {"role": "user", "content": " who? ", "reasoning": "hm"},
        {"role": "assistant", "content": "é", "thinking": "so"},
    ]
    theirs, _ = utilities.render_jinja_template([messages], chat_template=template, bos_token="<s>")
    assert render(compile_template(template), messages, bos_token="<s>") == theirs[0]


def test_long_messages_are_no_growth():
    """What a template may make grows with what it is given."""
    long = [{"role": "user", "content": "who? é " * 300_000}] * 3
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content|trim ~ '\n' }}{% endfor %}"
    wanted = "<user>" + long[0]["content"].strip() + "\n"
    assert text_of(template, long) == wanted * 3


def test_each_thread_and_each_text_has_its_own_meter(monkeypatch):
    monkeypatch.setattr(template_limits, "SECONDS", 0.4)
    compiled = compile_template("{% for i in range(20000) %}{% endfor %}{{ messages[0].content }}")
    found = []

    def work():
        for _ in range(4):
            found.append(render(compiled, MESSAGES))

    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == ["who?"] * 12
    gc.collect()


@pytest.mark.parametrize("size", [199, 200, 201, 900])
def test_a_templates_own_words_are_cut_at_two_hundred(size):
    said = template._short(ValueError("x" * size))
    assert said == "x" * size if size <= 200 else said == "x" * 199 + "…"
