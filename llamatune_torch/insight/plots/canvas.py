"""The paper that figures are drawn on: colours, axes with few ticks, and SVG that follows the theme of its page.

matplotlib writes colours into its SVG. Those of ``PAGE`` are stand-ins, which become CSS variables of the page.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llamatune_torch.insight.plots.scales import Ruler, Scale
from llamatune_torch.text import printable

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes as Axes
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure as Figure
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("figures need matplotlib: pip install 'llamatune-torch[report]'") from missing


class Palette(NamedTuple):
    """Colours by what they are for."""

    ink: str
    muted: str
    line: str
    accent: str
    warn: str
    paper: str


class Style(NamedTuple):
    """The look of a line."""

    colour: str
    width: float
    alpha: float


#: For notebooks and papers.
PAPER = Palette("#20242b", "#667080", "#d5d9e0", "#3155c6", "#c2571a", "#ffffff")
#: For the page.
PAGE = Palette("#010203", "#010204", "#010205", "#010206", "#010207", "#010208")
_VARIABLES = dict(zip(PAGE, ("currentColor", *(f"var(--{name})" for name in PAGE._fields[1:])), strict=True))

#: The width of a character of a tick's label, in points.
LETTER = 5.4
#: Whatever the user has set besides stays out of the page. (The type of the keys is a list of all names there are.)
_SETTINGS: dict[Any, Any] = {
    "font.size": 10.0,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",
    "svg.hashsalt": "llamatune",
    "text.usetex": False,
    "text.parse_math": True,  # which turns \$ into a dollar
    "axes.xmargin": 0.0,
    "axes.ymargin": 0.0,
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
}


@dataclass
class Canvas:
    """Axes, and how things are drawn on them.

    ``tags`` says, for each group of marks, the number of the trial and the text of each mark, in order.
    """

    ax: Axes
    palette: Palette = PAPER
    tags: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def frame(self) -> None:
        """Leaves the lower and the left edge of the frame."""
        for side, spine in self.ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(self.palette.line)
        self.ax.tick_params(length=0, pad=4, colors=self.palette.muted, labelsize=9)

    def x(
        self, scale: Scale | Ruler, name: str = "", length: int = 10, ends: tuple[float, float] | None = None
    ) -> None:
        """Sets the horizontal axis; of a parameter's, ``ends`` are where it begins and ends."""
        figure = self.ax.get_figure(root=True)
        letter = LETTER * (figure.dpi / 72 if figure is not None else 1.0) / max(self.ax.bbox.width, 1.0)
        places, labels, usual = _ticks(scale, length, letter)
        ends = usual if ends is None else ends
        self.ax.set_xticks(places, labels)
        self.ax.set_xlim(*ends)  # after the ticks, which widen it
        self.ax.set_xlabel(name, color=self.palette.muted, fontsize=9)

    def y(
        self, scale: Scale | Ruler, name: str = "", length: int = 16, ends: tuple[float, float] | None = None
    ) -> None:
        """Sets the vertical axis, with lines across."""
        places, labels, usual = _ticks(scale, length)
        ends = usual if ends is None else ends
        self.ax.set_yticks(places, labels)
        self.ax.set_ylim(*ends)
        if isinstance(scale, Scale):
            self.ax.hlines(places, *self.ax.get_xlim(), color=self.palette.line, linewidth=0.6, zorder=0)
        self.ax.set_ylabel(name, color=self.palette.muted, fontsize=9)

    def divide(self, ruler: Ruler, vertical: bool = True) -> None:
        """Draws the line between special values and the range."""
        if ruler.divide is not None:
            line = self.ax.axvline if vertical else self.ax.axhline
            line(ruler.divide, color=self.palette.line, linewidth=0.8, linestyle=":")

    def points(
        self, x: Sequence[float], y: Sequence[float], told: Sequence[tuple[int, str]], colour: str, **style: Any
    ) -> None:
        """Draws a mark for each trial; ``told`` are their numbers and what shows beside the pointer."""
        gid = self._tag(told)
        marks = {"marker": "o", "markersize": 4, "markeredgewidth": 0, "alpha": 0.75, **style}
        self.ax.plot(x, y, linestyle="none", color=colour, gid=gid, clip_on=False, **marks)

    def lines(
        self, lines: Sequence[Sequence[tuple[float, float]]], told: Sequence[tuple[int, str]], styles: Sequence[Style]
    ) -> None:
        """Draws a line for each trial, as one object: hundreds of them take their time."""
        colours = [to_rgba(style.colour, style.alpha) for style in styles]
        widths = [style.width for style in styles]
        drawn = LineCollection(lines, colors=colours, linewidths=widths, gid=self._tag(told), zorder=2)
        self.ax.add_collection(drawn, autolim=False)

    def shades(self, boxes: Sequence[tuple[float, float, float, float]], alphas: Sequence[float]) -> None:
        """Fills boxes (left, right, low, high) with the accent, the more of it the larger ``alphas``."""
        corners = [[(a, c), (b, c), (b, d), (a, d)] for a, b, c, d in boxes]
        colours = [to_rgba(self.palette.accent, alpha) for alpha in alphas]
        self.ax.add_collection(
            PolyCollection(corners, facecolors=colours, linewidths=0, antialiaseds=False), autolim=False
        )

    def legend(self, **where: Any) -> None:
        """Names what is drawn, without a frame."""
        self.ax.legend(frameon=False, fontsize=9, labelcolor=self.palette.muted, handlelength=1.4, **where)

    def say(self, text: str) -> None:
        """Writes why there is nothing to see."""
        self.ax.set_axis_off()
        middle: dict[str, Any] = {"ha": "center", "va": "center", "wrap": True}
        shown = printable(text).replace("$", r"\$")
        self.ax.text(0.5, 0.5, shown, color=self.palette.muted, transform=self.ax.transAxes, **middle)

    def _tag(self, told: Sequence[tuple[int, str]]) -> str:
        gid = f"tag{len(self.tags)}"
        self.tags[gid] = list(told)
        return gid


def _ticks(
    scale: Scale | Ruler, length: int, letter: float = 0.0
) -> tuple[list[float], list[str], tuple[float, float]]:
    if isinstance(scale, Scale):
        return list(scale.ticks), scale.labels, (scale.low, scale.high)
    return *scale.ticks(length, letter), (-0.03, 1.03)


#: Draws something on a canvas.
Draw = Callable[[Canvas], None]


def new_axes(width: float = 5.6, height: float = 3.4) -> Axes:
    """New axes on a figure of their own, which notebooks show and ``savefig`` writes; sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained").subplots()


def new_grid(count: int, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side, ``count`` of which are used."""
    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(2.8 * columns, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


@contextmanager
def house_style() -> Iterator[None]:
    """Draws with this module's settings, and without warnings of letters that only browsers have."""
    with rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing", UserWarning)
        warnings.filterwarnings("ignore", r"Matplotlib currently does not support", UserWarning)
        yield


def svg(draw: Draw, size: tuple[int, int], margins: tuple[int, int, int, int], name: str, alt: str) -> str:
    """Draws a figure for the page.

    Args:
        draw: what is drawn.
        size: width and height in pixels.
        margins: left, right, bottom and top, in pixels.
        name: that of the figure, of letters and digits; ids in it begin so.
        alt: what it shows, for those who do not see it.
    """
    (width, height), (left, right, bottom, top) = size, margins
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    box = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    canvas = Canvas(figure.add_axes(box), PAGE)
    canvas.ax.patch.set_visible(False)
    draw(canvas)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return themed(buffer.getvalue(), canvas.tags, size, name, alt)


def themed(text: str, tags: dict[str, list[tuple[int, str]]], size: tuple[int, int], name: str, alt: str) -> str:
    """Makes matplotlib's SVG a part of the page: its colours, no ids twice, marks that say their trial."""
    body = text[text.index("<svg") : text.rindex("</svg>")]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    for gid, told in tags.items():
        body = _with_titles(body, gid, told)
    used = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([\w.-]+)', body))
    ids = {old: f"{name}-{i}" for i, old in enumerate(used)}
    body = re.sub(r"<[^>]*>", lambda found: _tidy(found[0], ids), body)
    body = re.sub(r">\s+<", "><", re.sub(r"<g>\s*</g>|<defs>\s*</defs>", "", body)).strip()
    label = html.escape(printable(alt), quote=True)
    return f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{label}">{body}</svg>'


def _with_titles(body: str, gid: str, told: Sequence[tuple[int, str]]) -> str:
    """Puts the number of a trial and a title into each mark of a group; none, if their numbers differ."""
    start = body.find(f'<g id="{gid}">')
    if start < 0:
        return body
    end, depth = start, 0
    for found in re.finditer(r"<(/?)g\b[^>]*>", body[start:]):
        depth += -1 if found[1] else 1
        if depth == 0:
            end = start + found.end()
            break
    group = body[start:end]
    marks = list(re.finditer(r"<use\b[^>]*/>", group)) or list(re.finditer(r"<path\b[^>]*/>", group))
    if len(marks) != len(told):
        return body
    styles = {style for mark in marks for style in re.findall(r' style="[^"]*"', mark[0])}
    style = styles.pop() if len(styles) == 1 else ""  # once for all marks, which inherit it
    parts, last = [], 0
    for mark, (number, title) in zip(marks, told, strict=True):
        kind = mark[0][1 : mark[0].index(" ")]
        shown = html.escape(printable(title), quote=False)
        inner = f"<title>{shown}</title>" if shown else ""
        begin = mark[0][:-2].replace(style, "") if style else mark[0][:-2]
        parts += [group[last : mark.start()], f'{begin} data-t="{number}">{inner}</{kind}>']
        last = mark.end()
    marked = "".join(parts) + group[last:]
    return f"{body[:start]}<g{style}>{marked}</g>{body[end:]}"


_COLOURS = re.compile("|".join(_VARIABLES))
_NUMBERS = re.compile(r"(\.\d)\d+")


def _tidy(tag: str, ids: dict[str, str]) -> str:
    """One tag with the page's colours, numbers as fine as a screen, and ids of its own."""
    if tag.startswith(("<title", "</")):
        return tag
    tag = re.sub(r"\s+", " ", tag).replace("xlink:href", "href")
    tag = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{ids[found[1]]}"' if found[1] in ids else "", tag)
    tag = re.sub(r'(href="#|url\(#)([\w.-]+)', lambda found: found[1] + ids[found[2]], tag)
    tag = re.sub(r" font-family: [^;\"]*;| transform=\"rotate\(-?0 [^\"]*\"", "", tag)  # the page has its own font
    tag = _COLOURS.sub(lambda found: _VARIABLES[found[0]], tag)
    tag = re.sub(r' (d|x|y|transform)="([^"]*)"', lambda found: f' {found[1]}="{_coarse(*found.groups())}"', tag)
    return tag.replace(": ", ":").replace("; ", ";")


def _coarse(attribute: str, numbers: str) -> str:
    """Coordinates to a tenth of a pixel; a path of lines needs no letter for each."""
    numbers = _NUMBERS.sub(r"\1", numbers).strip()
    if attribute != "d":
        return numbers
    if not re.search("[CQ]", numbers):
        numbers = numbers.replace(" L ", " ")
    return re.sub(r" ?([A-Za-z]) ?", r"\1", numbers)
