"""Persona geometry, measured: the targets that need no generation, and with runs at hand the ones that do.

    python benchmarks/geometry.py                              # the large PCA and axis
    python benchmarks/geometry.py --run RUN [--base BASE]      # and a run, and the same transcripts read by a base model

RUN and BASE are `vectors.safetensors` files, or folders that hold one (`extract_persona_vectors(out=…)`, `read_with`).
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA

from assistant_axis.activations.store import Conditions
from assistant_axis.geometry.compare import compare
from assistant_axis.geometry.layers import recommend_layer
from assistant_axis.geometry.published import compare_published
from assistant_axis.geometry.stability import stability_curve
from assistant_axis.geometry.vectors import PersonaVectors


def large() -> None:
    """275 roles × 80 layers × 8192, the size of Llama 3.3 70B: axis at all layers, PCA at one."""
    g = torch.Generator().manual_seed(0)
    n, layers, width = 275, 80, 8192
    conditions = Conditions(
        model="synthetic-70b", fingerprint="", n_layers=layers, d_model=width, hook_point="resid_post",
        span="response", template_hash="", system_rule="template", dtype="float32", personas="synthetic",
        personas_hash="", design="synthetic", seed=0,
    )  # fmt: skip
    x = torch.empty(n, layers, width).normal_(generator=g)
    default = torch.randn(layers, width, generator=g)
    vectors = PersonaVectors(
        roles=tuple(f"role{k}" for k in range(n)), layers=tuple(range(layers)), vectors=x, default=default,
        default_conditions=default[None], counts=torch.ones(n, dtype=torch.long), default_count=1,
        resid_norms=torch.ones(layers), conditions=conditions,
    )  # fmt: skip
    start = time.perf_counter()
    axis = vectors.axis()
    middle = time.perf_counter()
    space = vectors.space(40)
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"275 x 80 x 8192 float32: axis at all layers {middle - start:.1f} s, PCA at one {end - middle:.1f} s, "
        f"together {end - start:.1f} s; peak memory of the process {peak:.2f} GiB (the vectors are 0.67)"
    )
    by_hand = PCA(svd_solver="full").fit(x[:, 40].double().numpy())
    theirs = torch.from_numpy(np.asarray(by_hand.components_)[: n - 1]).float()
    theirs = theirs * torch.sign(theirs @ space.default)[:, None]
    share = torch.from_numpy(np.asarray(by_hand.explained_variance_ratio_)[: n - 1]).float()
    print(
        f"against scikit-learn by hand, all {n - 1} components: they differ by at most "
        f"{float((space.components - theirs).abs().max()):.1e}, their variances by {float((space.variance - share).abs().max()):.1e}"
    )
    assert torch.equal(axis.vectors, default - x.mean(0))


def run(path: Path, base: Path | None) -> None:
    vectors = _load(path)
    print(vectors)
    choice = recommend_layer(vectors)
    print(choice)
    for over in ("roles", "rollouts"):
        curve = stability_curve(vectors, choice.layer, over=over)
        points = ", ".join(f"{s}: {c:.3f}" for s, c in zip(curve.sizes, curve.cosine, strict=True))
        print(f"cosine of axes from disjoint {curve.over}: {points}")
    for layer in dict.fromkeys((choice.layer, vectors.monitoring_layer)):
        print(compare_published(vectors, "qwen3-32b", layer))
    if base is not None:
        other = _load(base)
        for layers in ("monitoring", (choice.layer, recommend_layer(other).layer), "best"):
            print(compare(vectors, other, layers))


def _load(path: Path) -> PersonaVectors:
    return PersonaVectors.load(path / "vectors.safetensors" if path.is_dir() else path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--base", type=Path)
    asked = parser.parse_args()
    if asked.run is None:
        large()
    else:
        run(asked.run, asked.base)
