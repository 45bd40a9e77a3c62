import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import rotated, vectors

from assistant_axis.cli import geometry as commands
from assistant_axis.errors import SettingError
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
    with pytest.raises(SettingError, match="PC9"):
        plots.comparison_scatter(c, pc=9)
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
    assert "toy (2)" in three.output
    assert (tmp_path / "three.svg").is_file()
    stable = call("stability", folder, "-f", tmp_path / "s.png", "--splits", 3, "--resamples", 3)
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
