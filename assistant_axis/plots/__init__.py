"""One function a figure; each takes domain objects and returns a matplotlib figure. Nothing heavy until used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assistant_axis.plots.drift import drift_trace as drift_trace
    from assistant_axis.plots.drift import steering_bars as steering_bars
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
