"""The picture of the README and the home page: 275 roles in the persona space of the embedded model.

python benchmarks/readme_figure.py [--out docs/assets/figures/persona-space.png]

It is drawn from the persona vectors that ship with the package, so that no model is needed and anybody can draw it again.
"""

import argparse
from pathlib import Path

from assistant_axis import load_precomputed
from assistant_axis.plots import role_map, save_figure

DEFAULT = Path(__file__).resolve().parents[1] / "docs" / "assets" / "figures" / "persona-space.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT)
    out = parser.parse_args().out
    save_figure(role_map(load_precomputed().space()), out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
