"""One function a figure; each takes domain objects and returns a matplotlib figure. Nothing heavy until used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assistant_axis.plots.drift import drift_trace as drift_trace
    from assistant_axis.plots.drift import steering_bars as steering_bars
    from assistant_axis.plots.geometry_extra import comparison_scatter as comparison_scatter
    from assistant_axis.plots.geometry_extra import completion_shares as completion_shares
    from assistant_axis.plots.geometry_extra import component_matrix as component_matrix
    from assistant_axis.plots.geometry_extra import correlation_matrix as correlation_matrix
    from assistant_axis.plots.geometry_extra import layer_choice as layer_choice
    from assistant_axis.plots.geometry_extra import layer_heatmap as layer_heatmap
    from assistant_axis.plots.geometry_extra import role_map_3d as role_map_3d
    from assistant_axis.plots.geometry_extra import stability_curves as stability_curves
    from assistant_axis.plots.geometry_extra import stability_layers as stability_layers
    from assistant_axis.plots.geometry_extra import trait_histogram as trait_histogram
    from assistant_axis.plots.interactive import persona_map as persona_map
    from assistant_axis.plots.persona import against_published as against_published
    from assistant_axis.plots.persona import axis_cosines as axis_cosines
    from assistant_axis.plots.persona import role_map as role_map
    from assistant_axis.plots.persona import role_ranking as role_ranking
    from assistant_axis.plots.persona import scree as scree
    from assistant_axis.plots.style import save_figure as save_figure
    from assistant_axis.plots.tokens import TokenView as TokenView
    from assistant_axis.plots.tokens import circuitsvis_view as circuitsvis_view
    from assistant_axis.plots.tokens import spans_view as spans_view
    from assistant_axis.plots.tokens import values_view as values_view

_WHERE = {
    "scree": "persona",
    "axis_cosines": "persona",
    "role_ranking": "persona",
    "role_map": "persona",
    "against_published": "persona",
    "comparison_scatter": "geometry_extra",
    "component_matrix": "geometry_extra",
    "completion_shares": "geometry_extra",
    "correlation_matrix": "geometry_extra",
    "layer_choice": "geometry_extra",
    "layer_heatmap": "geometry_extra",
    "role_map_3d": "geometry_extra",
    "stability_curves": "geometry_extra",
    "stability_layers": "geometry_extra",
    "trait_histogram": "geometry_extra",
    "persona_map": "interactive",
    "drift_trace": "drift",
    "steering_bars": "drift",
    "save_figure": "style",
    "TokenView": "tokens",
    "spans_view": "tokens",
    "values_view": "tokens",
    "circuitsvis_view": "tokens",
}

__all__ = list(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
