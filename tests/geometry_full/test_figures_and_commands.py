import re
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import rotated, vectors

from assistant_axis.cli import geometry as commands
from assistant_axis.errors import MissingExtraError, SettingError
from assistant_axis.geometry.compare import compare, compare_all
from assistant_axis.geometry.layers import recommend_layer
from assistant_axis.geometry.stability import stability, stability_curve
from assistant_axis.geometry.traits import TraitVectors
from assistant_axis.plots import geometry_extra as plots
from assistant_axis.plots.style import save_figure

NAMES = tuple(f"{n}{k}{p}" for n in ("calm", "bold") for k in range(10) for p in (":positive", ":negative"))


@pytest.fixture(scope="module")
def run():
    return vectors(NAMES)


def test_every_figure_is_drawn(run, tmp_path):
    other = rotated(run, 40, -2.0)
    c = compare(run, other, resamples=20)
    curves = [stability_curve(run, 1, over=o, draws=3) for o in ("roles", "rollouts")]
    figures = {
        "scatter": plots.comparison_scatter(c),
        "heat": plots.layer_heatmap(c),
        "components": plots.component_matrix(c),
        "map": plots.role_map_3d(run.space(1)),
        "matrix": plots.correlation_matrix(compare_all([run, other, run], resamples=20)),
        "traits": plots.trait_histogram(TraitVectors.from_poles(run), run.axis(), 1),
        "stability": plots.stability_layers(stability(run, splits=3, resamples=3), chosen=1),
        "curves": plots.stability_curves(*curves),
        "choice": plots.layer_choice(recommend_layer(run, splits=3)),
    }
    for name, figure in figures.items():
        assert save_figure(figure, tmp_path / f"{name}.png").stat().st_size > 5000
    labels = [t.get_text() for t in figures["scatter"].axes[0].texts]
    assert any("calm" in t or "bold" in t for t in labels)
    assert [t.get_text() for t in figures["map"].axes[0].texts].count("DEFAULT") == 1
    frames = [p for p in figures["components"].axes[0].patches if not p.get_fill()]
    assert {(round(f.get_y() + 1.46), round(f.get_x() + 1.46)) for f in frames} == {(i, j) for i, j, _ in c.matched}
    with pytest.raises(SettingError, match="PC9"):
        plots.comparison_scatter(c, pc=9)
    with pytest.raises(SettingError, match="three different"):
        plots.role_map_3d(run.space(1), (1, 2, 2))
    with pytest.raises(SettingError):
        plots.stability_curves()


@pytest.fixture(scope="module")
def app():
    made = typer.Typer()
    for f in (commands.compare, commands.stability, commands.traits):
        made.command()(f)
    return made


def test_commands_print_tables_and_write_figures(run, app, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    a, b = run.save(tmp_path / "a"), rotated(run, 40, -2.0).save(tmp_path / "b")
    folder = tmp_path / "run"
    folder.mkdir()
    run.save(folder / "vectors.safetensors")
    call = lambda *args: CliRunner().invoke(app, [str(x) for x in args], catch_exceptions=False)  # noqa: E731
    two = call("compare", a, b, "-f", tmp_path / "two.png", "--layers", "1,1")
    assert two.exit_code == 0
    assert "PC1" in two.output
    assert "CKA" in two.output
    assert (tmp_path / "two-layers.png").is_file()
    three = call("compare", a, b, folder, "-f", tmp_path / "three.svg")
    assert "run" in three.output
    assert "linear CKA" in three.output
    assert (tmp_path / "three.svg").is_file()
    assert (tmp_path / "two-components.png").is_file()
    assert "Matched components" in two.output
    itself = call("compare", a, folder, "--layers", "1,1", "-f", tmp_path / "x.png")
    assert "PC1, disjoint halves" in itself.output
    assert "PC1, corrected" in itself.output
    stable = call("stability", folder, "-f", tmp_path / "s.png", "--splits", 3, "--resamples", 3, "--second", a)
    assert "in span" in stable.output
    assert "1.000 at layer" in stable.output
    assert "Recommended layer" in stable.output
    assert (tmp_path / "s-curves.png").is_file()
    TraitVectors.from_poles(run).save(tmp_path / "traits")
    traits = call("traits", a, "--traits", tmp_path / "traits.safetensors", "-f", tmp_path / "t.png")
    assert "Assistant-like" in traits.output
    assert (tmp_path / "t.png").is_file()
    with pytest.raises(SettingError, match="two runs"):
        call("compare", a)
    with pytest.raises(SettingError, match="27,16"):
        call("compare", a, b, "--layers", "middle")
    with pytest.raises(SettingError, match="one run at a time"):
        call("compare", a, b, "qwen3-32b")


def test_a_run_against_a_published_ranking(app, tmp_path, monkeypatch):
    from assistant_axis.geometry.published import published

    monkeypatch.setenv("COLUMNS", "100")
    run = vectors(published("qwen3-32b").roles[:60]).save(tmp_path / "a")
    call = lambda *args: CliRunner().invoke(app, [str(x) for x in args], catch_exceptions=False)  # noqa: E731
    done = call("compare", run, "qwen3-32b", "--layers", "1", "-f", tmp_path / "p.png")
    assert "60 shared roles" in done.output
    assert "lacks 215 of the published roles" in done.output
    assert (tmp_path / "p.png").is_file()
    for layers, said in (("best", "flatters"), ("1,1", "one layer")):
        with pytest.raises(SettingError, match=said):
            call("compare", run, "qwen3-32b", "--layers", layers)


def test_the_interactive_map_is_whole_and_reaches_out_to_nobody(run, tmp_path):
    pytest.importorskip("plotly", reason="the map needs: pip install 'assistant-axis[plots]'")
    from assistant_axis.plots.interactive import persona_map, save_plotlyjs

    made = persona_map(run.space(1), names=5)
    roles, line, default = made.figure.data
    assert len(roles.x) == len(NAMES)
    assert sum(bool(t) for t in roles.text) <= 5
    assert default.x[0] == pytest.approx(run.space(1).default_score(1), rel=1e-5)
    assert np.allclose(np.array([line.x[1], line.y[1], line.z[1]]) @ _axis_in(run), np.linalg.norm(_axis_in(run)) ** 2 * _reach(run), rtol=1e-3)  # fmt: skip
    alone, part = made.html(full_page=True), made.html(include_plotlyjs=False)
    assert len(alone) > 1_000_000
    assert len(part) < 100_000
    for page in (alone, part):
        assert not re.search(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?(?:https?:)?//""", page)
    assert 'src="assets/plotly.min.js"' in made.html(include_plotlyjs="assets/plotly.min.js")
    assert save_plotlyjs(tmp_path / "plotly.min.js").stat().st_size > 1_000_000
    assert "color-scheme" in made.save(tmp_path / "map.html").read_text(encoding="utf-8")
    for wrong in ("cdn", "https://x.org/plotly.js"):
        with pytest.raises(SettingError, match="other hosts"):
            made.html(include_plotlyjs=wrong)
    with pytest.raises(SettingError, match="html"):
        made.save(tmp_path / "map.png")
    with pytest.raises(SettingError, match="three different"):
        persona_map(run.space(1), (1, 1, 2))


def test_a_missing_plotly_names_the_extra(run, monkeypatch):
    from assistant_axis.plots.interactive import persona_map

    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingExtraError, match=r"assistant-axis\[plots\]"):
        persona_map(run.space(1))


def _axis_in(run):
    space = run.space(1)
    return (space.components[:3] @ space.axis).numpy()


def _reach(run):
    """How far the line goes: to where the default lies along the axis, within the three components."""
    space, axis = run.space(1), _axis_in(run)
    return float((space.components[:3] @ space.default).numpy() @ axis) / float(axis @ axis)
