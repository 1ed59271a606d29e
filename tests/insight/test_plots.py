"""Every figure of every study, and how axes are made."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from insights import insight_of, plain_study, studies
from strategies import parameters

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llamatune_torch import Categorical, Integer, Real, Study
from llamatune_torch.errors import SettingsError
from llamatune_torch.insight.plots.canvas import PAGE, Canvas, house_style, new_axes, svg
from llamatune_torch.insight.plots.model import draw_importance
from llamatune_torch.insight.plots.plot import KINDS, plot
from llamatune_torch.insight.plots.scales import HUGE, Ruler, Scale, label, nice
from llamatune_torch.insight.plots.trials import thinned
from llamatune_torch.insight.records import Importance, Interval


@settings(max_examples=15)
@given(study=studies())
def test_every_figure_of_every_study_is_drawn_without_a_warning(study: Study) -> None:
    insight = insight_of(study)
    for kind in KINDS:
        drawn = plot(study, kind, insight=insight)
        figure = drawn if isinstance(drawn, Figure) else drawn.figure
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for silent in (r"Glyph .* missing", "Matplotlib currently does not support"):
                warnings.filterwarnings("ignore", silent, UserWarning)  # a matter of fonts
            FigureCanvasAgg(figure).draw()


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_of_nothing_says_so(kind: str) -> None:
    study = plain_study(0)
    drawn = study.plot(kind)
    axes = drawn.axes[0] if isinstance(drawn, Figure) else drawn
    assert axes.texts[0].get_text()


def test_figures_are_drawn_on_axes_that_are_given() -> None:
    study, ax = plain_study(), new_axes()
    assert study.plot("parallel", ax) is ax
    assert study.plot("history", ax=new_axes(), insight=insight_of(study)).get_ylabel() == "accuracy"
    assert isinstance(study.plot("effects", insight=insight_of(study)), Figure)
    assert isinstance(study.plot("calibration", insight=insight_of(study)), Axes)


def test_near_the_best_is_another_figure() -> None:
    study = plain_study()
    insight = insight_of(study)
    first = Importance("x", *[Interval(0.9, 0.8, 1.0)] * 2)
    bars = [
        plot(study, "importance", insight=known, near=near).patches[0].get_width()
        for known, near in ((insight, False), (insight, True))
    ]
    assert bars[0] == bars[1]  # the same by hand
    ax = new_axes()
    draw_importance(Canvas(ax), [first])
    assert ax.patches[0].get_width() == 0.9


def test_mistakes_say_what_there_is() -> None:
    study = plain_study()
    with pytest.raises(SettingsError, match=r"must be one of \['history', .*'pareto'.*but got 'histogram'"):
        study.plot("histogram")
    with pytest.raises(SettingsError, match="'effects' is a figure with axes of its own"):
        plot(study, "effects", new_axes(), insight=insight_of(study))


def test_nothing_global_is_changed_and_no_state_of_pyplot_is_made() -> None:
    before = dict(rcParams)
    with house_style():
        svg(lambda canvas: canvas.say("nothing"), (100, 100), (1, 1, 1, 1), "a", "nothing")
    assert dict(rcParams) == before
    code = (
        "from strategies import make_study; import sys; s = make_study({'x': (0.0, 1.0)}, [({'x': 0.5}, 1.0)]);"
        "s.plot('parallel'); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("llamatune_torch.insight.plots")]:
        monkeypatch.delitem(sys.modules, module)
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"need matplotlib: pip install 'llamatune-torch\[report\]'"):
        plain_study().plot("history")


# --- SVG -------------------------------------------------------------------------------------------------------------


def drawn_svg(draw: Callable[[Canvas], None], name: str = "fig") -> str:
    with house_style():
        return svg(draw, (200, 100), (10, 10, 10, 10), name, "alt <text>")


def test_marks_say_which_trial_they_are() -> None:
    def draw(canvas: Canvas) -> None:
        canvas.x(Scale(0, 3))
        canvas.points([1, 2], [0.5, 0.5], [(7, "trial 7: <b>"), (8, "trial 8")], PAGE.accent)
        canvas.lines([[(0, 0), (1, math.nan), (2, 1)]], [(9, "")], [])

    text = drawn_svg(draw)
    assert 'data-t="7"><title>trial 7: &lt;b&gt;</title></use>' in text
    assert 'data-t="8"' in text
    assert 'data-t="9"></path>' in text


def test_colours_follow_the_page_and_ids_are_of_one_figure() -> None:
    def draw(canvas: Canvas) -> None:
        canvas.frame()
        canvas.x(Scale(0, 3, (1.0, 2.0)), label("$x$ & <b>"))
        canvas.points([1.0], [0.5], [(0, "")], PAGE.warn)

    one, two = drawn_svg(draw, "one"), drawn_svg(draw, "two")
    assert "var(--warn)" in one
    assert "var(--muted)" in one
    assert not [colour for colour in PAGE if colour in one]
    assert ">$x$ &amp; &lt;b&gt;</text>" in one
    assert 'id="one-' in one
    assert 'id="one-' not in two
    assert one.startswith('<svg viewBox="0 0 200 100" role="img" aria-label="alt &lt;text&gt;">')
    assert one.replace("one-", "two-") == two
    for foreign in ("http", "xmlns", "<style", "<!--", "<metadata", "\n"):
        assert foreign not in one


# --- Axes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
        (0.83, 0.881, (0.84, 0.86, 0.88)),
        (-3.0, 12.0, (0.0, 5.0, 10.0)),
        (1.0, 1.0, (1.0,)),
        (-1.7e308, 1.7e308, (-1.7e308, 1.7e308)),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert nice(low, high) == pytest.approx(expected)


@given(low=st.floats(allow_nan=False, allow_infinity=False), width=st.floats(0, 1e308))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    ticks = nice(low, low + width)
    assert 0 <= len(ticks) <= 5
    rounding = 1e-8 * max(abs(low), width)
    assert all(low - rounding <= tick <= low + width + rounding for tick in ticks)


def test_labels_have_as_many_decimals_as_tell_them_apart() -> None:
    assert Scale(0, 1, (0.0, 0.25, 0.5)).labels == ["0.00", "0.25", "0.50"]
    assert Scale(0, 200, (50.0, 100.0, 150.0)).labels == ["50", "100", "150"]
    assert Scale(0, 1e9, (5e8, 1e9)).labels == ["5e+08", "1e+09"]


def test_a_diverged_run_does_not_hide_the_others() -> None:
    values = [0.5, 0.52, 0.55, 0.6, 0.7, 1e12]
    scale = Scale.around(values, "minimize")
    assert scale.high < 10
    assert not scale.holds(1e12)
    assert scale.place(1e12) == scale.high
    assert all(scale.holds(value) for value in values[:4])
    assert Scale.around(values).high >= 1e12


@given(st.lists(st.floats(), max_size=8), st.sampled_from(["maximize", "minimize", None]))
def test_any_values_make_an_axis(values: list[float], direction: str | None) -> None:
    scale = Scale.around(values, direction)  # type: ignore[arg-type]
    assert -2 * HUGE < scale.low < scale.high < 2 * HUGE
    assert all(scale.low <= scale.place(value) <= scale.high for value in values if not math.isnan(value))


@given(parameters())
def test_the_ticks_of_any_parameter_lie_apart_on_the_unit_interval(parameter: Real | Integer | Categorical) -> None:
    places, labels = Ruler(parameter).ticks()
    assert 1 <= len(places) == len(labels)
    assert all(0 <= place <= 1 for place in places)
    assert len(set(places)) == len(places)


def test_the_ticks_of_a_parameter_are_round_and_special_values_come_first() -> None:
    assert Ruler(Real(1e-6, 1e-2, prior="log-uniform")).ticks()[1] == ["1e-06", "1e-05", "0.0001", "0.001", "0.01"]
    assert Ruler(Real(1e-4, 1e-1, prior="log-uniform", special=[0.0])).ticks()[1][0] == "0"
    assert Ruler(Integer(1, 5)).ticks()[1] == ["1", "2", "3", "4", "5"]
    assert Ruler(Categorical(["adamw", "lion"])).ticks() == ([0.25, 0.75], ["adamw", "lion"])


def test_a_range_of_many_decades_begins_and_ends_with_values_of_its_own() -> None:
    parameter = Integer(9, 2**37, special=[9, 2718166, 2**37])  # 0 is a round number near 9, but not in the range
    assert all(0 <= place <= 1 for place in Ruler(parameter).ticks()[0])


def test_labels_are_short_plain_and_no_formulas() -> None:
    assert label("a" * 50) == "a" * 17 + "…"
    assert label("$x$") == r"\$x\$"
    assert label("a\nb\x1b") == r"a b\x1b"
    assert label(0.000012345) == "1.234e-05"


def test_of_many_trials_the_best_are_kept() -> None:
    study = plain_study(200)
    kept = thinned(study.trials, study, 20)
    assert len(kept) <= 20
    assert {trial.number for trial in study.by_value()[:10]} <= {trial.number for trial in kept}
    assert [trial.number for trial in kept] == sorted(trial.number for trial in kept)
