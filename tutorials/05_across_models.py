# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · Across models
#
# [![Open in Colab](colab.svg)](https://colab.research.google.com/#upload=true "Opens the upload dialog of Colab: give it 05_across_models.ipynb")
#
# **You will learn**
#
# - how two models can be compared that share neither width nor depth;
# - what a correlation over 275 roles can and cannot say, with intervals and a null;
# - why a correlation on shared transcripts flatters itself, and what to put beside it;
# - how to set a model of yours against published rankings.
#
# Eight minutes of reading, half a minute of computing on two CPU cores.

# %%
# Where the package is missing (on Colab, say), this installs it: from a clone of the repository in or above this folder,
# from a wheel in it, else by its name.
import importlib
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

if importlib.util.find_spec("assistant_axis") is None:
    near = (Path.cwd(), *Path.cwd().parents, *sorted(Path.cwd().iterdir()))
    found = (p for p in near if (p / "assistant_axis" / "__init__.py").is_file() or p.match("assistant_axis-*.whl"))
    source = next(found, "assistant-axis")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", str(source)], check=True)
    importlib.invalidate_caches()
if importlib.util.find_spec("ipywidgets") is None:
    warnings.filterwarnings("ignore", message="IProgress")

# %%
import matplotlib.pyplot as plt
import numpy as np

from assistant_axis import load_precomputed
from assistant_axis.geometry.compare import compare
from assistant_axis.plots import comparison_scatter, layer_heatmap

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

chat = load_precomputed("smollm2-135m-instruct")
base = load_precomputed("gemma-3-270m")
print(chat, base, sep="\n")

# %% [markdown]
# Two models of different makers: SmolLM2 135M Instruct, 30 layers of width 576, and Gemma 3 270M, a *base* model, 18 layers of
# width 640. The second was never trained to be anybody. It has read what the first one said in each role, and its
# activations were averaged over the same words.
#
# ## What can be compared
#
# A direction of one model means nothing in the other. But each model gives every *role* a number: the cosine of the
# centred role vector with PC1. Two lists of 275 numbers can be correlated.

# %%
found = compare(chat, base, layers=(27, 16))
print(found)

# %%
comparison_scatter(found)

# %% [markdown]
# Pearson's r comes with a bootstrap interval over roles, and with a permutation p-value: the same correlation after the
# roles' names were dealt out at random. The **sign** of a component is arbitrary; it is fixed by the default, so that r
# cannot be made positive by turning one of them over.
#
# ## Which layers?
#
# Every layer against every layer:

# %%
layer_heatmap(found)

# %% [markdown]
# The correlation is high over a broad block of later layers and absent before it. Had we picked the best cell of this map,
# its value would flatter us. `compare(chat, base, layers="best")` therefore repeats the search on one half of the
# roles and reports the other half:

# %%
best = compare(chat, base, layers="best", resamples=200)
print(best.layers, best.pcs[0])
print("on roles that had no say in the choice:", best.held_out)

# %% [markdown]
# ## A correlation that flatters itself
#
# Both models read the same words. If the sixteen answers of the pirate came out tame, the pirate is tame in both, and that
# raises the correlation although neither model knows anything about pirates. The remedy is to let one model read one half of
# each role's answers and the other model the other half. That needs single rollouts, which do not ship; `compare` prints it
# for your own runs, and the page "Compare models" of the documentation has the table for this pair.
#
# Here is the effect itself, in numbers made up for the purpose: two models that know roles with a correlation of .6, each
# read with noise that is partly the transcripts' own.

# %%
rng = np.random.default_rng(0)


def measured(shared_noise: float, own_noise: float = 0.3, true_r: float = 0.6, roles: int = 275) -> float:
    """Correlation of two readings of roles whose true scores correlate with true_r."""
    common = rng.standard_normal(roles)
    a = np.sqrt(true_r) * common + np.sqrt(1 - true_r) * rng.standard_normal(roles)
    b = np.sqrt(true_r) * common + np.sqrt(1 - true_r) * rng.standard_normal(roles)
    words = shared_noise * rng.standard_normal(roles)
    return float(
        np.corrcoef(
            a + words + own_noise * rng.standard_normal(roles), b + words + own_noise * rng.standard_normal(roles)
        )[0, 1]
    )


for size in (0.0, 0.5, 1.0, 2.0):
    print(f"noise of the shared words {size:.1f}: r = {np.mean([measured(size) for _ in range(200)]):.2f} (true: 0.60)")

# %% [markdown]
# ## More than one component
#
# In the paper PC1 agrees between models (r above .92), PC2 less, PC3 hardly. Components of two models need not come in the
# same order; the Hungarian method pairs them so that the sum of |r| is largest.

# %%
for i, j, r in found.matched:
    print(f"PC{i} of {found.models[0]} with PC{j} of {found.models[1]}: r = {r:+.2f}")
print("RSA:", found.rsa)
print("CKA:", found.cka)

# %% [markdown]
# RSA correlates the two tables of role-by-role cosines, CKA the two spaces as wholes: neither needs components at all.
#
# ## Against a published ranking
#
# The projections of 275 roles that were published for Qwen 3 32B come with the package, as figures.

# %%
for layer in (15, 21, 27):
    print(chat.compare_published("qwen3-32b", layer), "\n")

# %% [markdown]
# A model of 135 million parameters orders 275 characters much as one of 32 billion does. The base model does too, reading the small one's
# answers:

# %%
print(base.compare_published("qwen3-32b", 16))

# %% [markdown]
# ## Exercises
#
# 1. Which roles do the two models disagree about most? Is there a pattern in `found.outliers()`?
# 2. Compare with 60 roles instead of 275. What happens to r, and to its interval?
# 3. Correlate the two models on PC2 at ten pairs of layers. Would you publish the largest?
#
# <details><summary>Solution 1</summary>
#
# ```python
# print(found.outliers(20))
# ```
#
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# some = chat.roles[::5]
# print(compare(chat.select(some), base.select(some), layers=(27, 16)).pcs[0])
# ```
#
# r hardly moves; the interval widens about as √(275/55). Fewer than 20 shared roles are refused.
#
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# for a in (19, 21, 23, 25, 27):
#     for b in (12, 16):
#         print(a, b, compare(chat, base, layers=(a, b), resamples=100).pcs[1].pearson)
# ```
#
# The largest of ten is not one of one.
#
# </details>
#
# ## On your own model
#
# Extract with `span="response"` and `out=`, then `assistant-axis compare runs/mine qwen3-32b` or
# `assistant-axis compare runs/mine smollm2-135m-instruct`. Runs of other spans or persona sets are refused unless forced.
