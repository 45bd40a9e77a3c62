"""Every figure says what it shows, raw or centred, and where it was measured; none leaves state behind."""

from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from assistant_axis import plots
from assistant_axis.errors import GeometryError, SettingError, UnknownNameError
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.plots.style import INK, inline_svg


def said(figure: Figure) -> str:
    figure.draw_without_rendering()
    texts = [t.get_text() for t in figure.findobj(match=mpl.text.Text)]  # type: ignore[attr-defined]
    return "\n".join(texts)


def all_figures(vectors: PersonaVectors) -> dict[str, Figure]:
    space = vectors.space(2)
    scores = dict(zip(space.roles, space.scores().tolist(), strict=True))
    return {
        "scree": plots.scree(space),
        "cosines": plots.axis_cosines(vectors),
        "cosines given": plots.axis_cosines([0.2, 0.5], [3, 7], marked=7),
        "ranking space": plots.role_ranking(space, kind="cosine"),
        "ranking axis": plots.role_ranking(vectors, layer=1, centered=False),
        "map": plots.role_map(space),
        "published": plots.against_published(scores, {r: -v for r, v in scores.items()}, conditions=space.conditions),
        "drift": plots.drift_trace({"plain": [1.0, -2.0], "capped": [1.0, 0.0]}, band=(0, 2), floor=0.0),
        "bars": plots.steering_bars([-0.2, 0.2], {"axis": [1, 2], "random": [1, 1]}, effect="adherence", baseline=1),
    }


def test_axes_are_labelled_and_state_is_left_alone(vectors: PersonaVectors) -> None:
    before = dict(mpl.rcParams)
    for name, figure in all_figures(vectors).items():
        assert isinstance(figure, Figure), name
        assert figure.axes[-1].get_xlabel(), name
        assert all(ax.get_ylabel() for ax in figure.axes), name
        assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert dict(mpl.rcParams) == before
    import matplotlib._pylab_helpers as pylab

    assert not pylab.Gcf.figs, "a figure was registered with pyplot"


def test_figures_name_their_conditions(vectors: PersonaVectors) -> None:
    figures = all_figures(vectors)
    for name in ("scree", "cosines", "ranking space", "ranking axis", "map", "published"):
        text = said(figures[name])
        assert "tiny<model>" in text, name
        assert "header span" in text, name
        assert "n = 40" in text, name
    assert "raw projection" in said(figures["ranking axis"])
    assert "centred projection" in said(figures["map"])
    assert "raw projection" in said(figures["drift"])
    assert "DEFAULT" in said(figures["map"])
    assert "DEFAULT" in said(figures["ranking axis"])
    assert "r = -1.00" in said(figures["published"])
    for share in ("70%", "80%", "90%"):
        assert share in said(figures["scree"])


def test_twelve_names_at_each_end(vectors: PersonaVectors) -> None:
    figure = plots.role_ranking(vectors, layer=1)
    names = [t.get_text() for t in figure.axes[1].get_yticklabels()]
    assert len(names) == 12 + 12 + 2
    assert names[0] == "DEFAULT"
    assert names[13] == "… 16 more roles …"


@pytest.mark.parametrize("name", ["figure.png", "figure.svg", "figure.pdf"])
def test_save_figure(vectors: PersonaVectors, tmp_path: Path, name: str) -> None:
    first = plots.save_figure(plots.scree(vectors.space(1)), tmp_path / "deep" / name)
    again = plots.save_figure(plots.scree(vectors.space(1)), tmp_path / name)
    assert first.stat().st_size > 1000
    assert first.read_bytes() == again.read_bytes()
    assert [p.name for p in first.parent.iterdir()] == [name]


def test_mistakes_are_named(vectors: PersonaVectors, tmp_path: Path) -> None:
    figure = plots.scree(vectors.space(1))
    with pytest.raises(SettingError, match=r"png, svg, pdf; 'x\.bmp'"):
        plots.save_figure(figure, tmp_path / "x.bmp")
    with pytest.raises(SettingError, match="2 cosines for 3 layers"):
        plots.axis_cosines([0.1, 0.2], [0, 1, 2])
    with pytest.raises(SettingError, match="no assistant turn"):
        plots.drift_trace([])
    with pytest.raises(SettingError, match="1 values for 2 doses"):
        plots.steering_bars([0.1, 0.2], {"axis": [1]}, effect="x")
    with pytest.raises(GeometryError, match="Only 1 roles"):
        plots.against_published({"a": 1.0, "b": 2.0}, {"a": 1.0}, "x")
    with pytest.raises(UnknownNameError, match="role_1"):
        plots.role_map(vectors.space(1), labels=["rol_1"])


def test_inline_svg_follows_the_page(vectors: PersonaVectors) -> None:
    svg = inline_svg(plots.role_map(vectors.space(1), labels=["<b>&co"]), "p1", 'a "map" & more')
    assert "var(--ink)" in svg
    assert INK not in svg
    assert "<style" not in svg
    assert "&lt;b&gt;&amp;co" in svg
    assert 'aria-label="a &quot;map&quot; &amp; more"' in svg
    assert 'id="figure' not in svg
