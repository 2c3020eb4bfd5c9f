"""Writes docs/slider.svg, the moving picture of the README: `python -m tools.moving_picture`.

How it works: the slider is lesson 03's, "does it fit?". Each of its positions is drawn by the
lesson's own code, and the drawings are laid on top of each other. CSS in the file shows one at a
time and moves the handle. There is no script in it. The colours follow `prefers-color-scheme`;
where motion is not wanted (`prefers-reduced-motion`), the last position stands still.
"""

from __future__ import annotations

import html
import re
import textwrap

from minilora.course.explore import fits

from .project import ROOT

PICTURE = ROOT / "docs" / "slider.svg"
MODEL, METHOD, CARD, COUNT = "llama-2-13b", "LoRA", "RTX 4090", 1
SECONDS, STAYS = 2.0, 0.78  # of each position, and the share of them in which the handle rests
LEFT, RIGHT, RAIL = 140, 575, 54  # the slider's ends and its height on the page
WIDTH, ABOVE, MARGIN = 672, 134, 16
STYLE = """
svg{color:#1f2328;font:13px system-ui,-apple-system,"Segoe UI",sans-serif}
.page{fill:#fff;stroke:#d1d9e0}.rail{stroke:#818b98}.knob{fill:#0969da;stroke:#fff}
.ink{fill:currentColor}.title{font-size:16px;font-weight:600}
@media (prefers-color-scheme:dark){svg{color:#f0f6fc}.page{fill:#0d1117;stroke:#3d444d}
.rail{stroke:#9198a1}.knob{fill:#4493f8;stroke:#0d1117}
[fill="#e8e8e8"]{fill:#30363d}[fill="#333"]{fill:#f0f6fc}}
"""


def _drawn(bits: str) -> tuple[str, str, int]:
    """The sentence, the picture's inside and its height, as lesson 03 draws them."""
    sentence, picture = fits.render(fits.compute(MODEL, bits, METHOD, CARD, COUNT))
    found = re.fullmatch(r'<svg[^>]*viewBox="0 0 \d+ (\d+)"[^>]*>(.*)</svg>', picture, re.S)
    return sentence, found[2], int(found[1])


def _frame(number: int, bits: str) -> tuple[str, int]:
    """One position: what the slider reads, the sentence, the picture. And the height."""
    sentence, picture, height = _drawn(bits)
    parts = [f'<text class="ink" x="{RIGHT + 20}" y="{RAIL + 5}" font-weight="bold">{bits}</text>']
    for row, line in enumerate(textwrap.wrap(sentence, 88)):
        y = ABOVE - 36 + 18 * row
        parts.append(f'<text x="{MARGIN}" y="{y}" class="ink">{html.escape(line)}</text>')
    parts.append(f'<g transform="translate({MARGIN},{ABOVE})">{picture}</g>')
    return f'<g class="at at{number}">{"".join(parts)}</g>', ABOVE + height + MARGIN


def _places() -> list[float]:
    """Where the handle stands, for each position."""
    steps = len(fits.BITS) - 1
    return [LEFT + (RIGHT - LEFT) * number / steps for number in range(steps + 1)]


def _motion() -> str:
    """The rules that show one position at a time and move the handle from each to the next."""
    many = len(fits.BITS)
    each = 100 / many
    rules = [f".at{{opacity:0;animation:{SECONDS * many:g}s step-end infinite}}"]
    for number in range(many):
        begin, end = number * each, (number + 1) * each
        before = "0%{opacity:0}" if number else ""
        after = f"{end:g}%{{opacity:0}}" if number < many - 1 else ""
        rules.append(f"@keyframes at{number}{{{before}{begin:g}%{{opacity:1}}{after}}}")
        rules.append(f".at{number}{{animation-name:at{number}}}")
    stops = []
    for number, place in enumerate(_places()):
        rests = (number + STAYS) * each if number < many - 1 else (number + 0.95) * each
        stops.append(f"{number * each:g}%,{rests:g}%{{transform:translateX({place - LEFT:g}px)}}")
    stops.append("100%{transform:translateX(0)}")
    rules.append(f"@keyframes slide{{{''.join(stops)}}}")
    rules.append(f".handle{{animation:slide {SECONDS * many:g}s ease-in-out infinite}}")
    still = f".at,.handle{{animation:none}}.at{many - 1}{{opacity:1}}"
    still += f".handle{{transform:translateX({RIGHT - LEFT}px)}}"
    rules.append(f"@media (prefers-reduced-motion:reduce){{{still}}}")
    return "\n".join(rules)


def alt() -> str:
    """What the picture shows, in a sentence, with the numbers of its first and last position."""
    first, last = (
        fits.need(MODEL, bits, METHOD, CARD, COUNT) / 1e9 for bits in (fits.BITS[0], fits.BITS[-1])
    )
    return (
        f"A slider of lesson 03 moves from {fits.BITS[0]} to {fits.BITS[-1]} bits a weight: LoRA "
        f"on {MODEL} then needs {last:.1f} GB instead of {first:.1f} GB, and fits on one {CARD}."
    )


def drawn() -> str:
    """The whole file."""
    frames = [_frame(number, bits) for number, bits in enumerate(fits.BITS)]
    height = max(tall for _, tall in frames)
    title = f"Does {METHOD} on {MODEL} fit on one {CARD}?"
    ticks = "".join(
        f'<path class="rail" d="M{place:g} {RAIL - 5}v10" stroke-width="2"/>'
        f'<text x="{place:g}" y="{RAIL + 24}" text-anchor="middle" class="ink">{bits}</text>'
        for place, bits in zip(_places(), fits.BITS, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-label="{html.escape(alt())}">\n'
        f"<style>{STYLE}{_motion()}\n</style>\n"
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>\n'
        f'<text class="title ink" x="{MARGIN}" y="26">{title}</text>\n'
        f'<text x="{MARGIN}" y="{RAIL + 5}" class="ink">bits of a weight</text>\n'
        f'<path class="rail" d="M{LEFT} {RAIL}H{RIGHT}" stroke-width="4" '
        f'stroke-linecap="round"/>{ticks}\n<g class="handle">'
        f'<circle class="knob" cx="{LEFT}" cy="{RAIL}" r="10" stroke-width="2"/></g>\n'
        + "\n".join(frame for frame, _ in frames)
        + "\n</svg>\n"
    )


def write() -> None:
    """Draw the file anew."""
    PICTURE.write_text(drawn(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write()
