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
# # 7 · Steering
#
# [![Open in Colab](colab.svg)](https://colab.research.google.com/#upload=true "Opens the upload dialog of Colab: give it 07_steering.ipynb")
#
# **You will learn**
#
# - what adding a multiple of the axis does to a model's answers, dose by dose;
# - units: why "a dose of 1" means nothing until somebody says one of what;
# - controls: a random direction and a random mixture of roles, at the same doses;
# - measures that need no judge: adherence, coherence, and the perplexity of plain text.
#
# Eight minutes of reading, two to three minutes of computing on two CPU cores.

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

from assistant_axis import Add, load_model, load_precomputed
from assistant_axis.geometry.controls import control_axis
from assistant_axis.steering.adherence import neutral_perplexity, persona_cases
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.doses import dose_response

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})
model = load_model("smollm2-135m-instruct")
vectors = load_precomputed("smollm2-135m-instruct")
axis = vectors.axis("pc1")

# %% [markdown]
# ## One question, five models
#
# Steering adds the same vector to the residual stream of every token, at one layer, in every forward pass. Positive is
# Assistant-like: a negative dose leads away from the assistant.

# %%
talk = [{"role": "user", "content": "What lies beyond the hills?"}]
for dose in (-0.2, -0.1, 0.0, 0.1, 0.2):
    with model.steered(Add(axis, dose)):
        print(f"{dose:+.2f}  {model.generate(talk, max_new_tokens=40).text.strip()}\n")

# %% [markdown]
# Nothing of the model was trained or edited: when the `with` block ends, the hooks are gone. A dose of 0 installs no hook at
# all, so that the middle answer is the model's own, bit for bit. Too large a dose breaks the language, and a broken answer is no
# persona: look at the text before believing a number.
#
# ## One of what?
#
# The residual stream grows with depth: the same vector is large at layer 5 and small at layer 25. A dose therefore carries a
# unit. Here are three ways to say the same push at the monitoring layer.

# %%
layer = model.profile.layer
direction = Direction.of(axis)
k = direction.index(layer)
norm, length = float(direction.resid_norms[k]), float(direction.norms[k])
print(f"layer {layer}: mean residual norm {norm:.0f}, length of the axis {length:.1f}")
print(f"0.3 residual norms = {0.3 * norm:.0f} activation units = {0.3 * norm / length:.2f} axes")
Add(axis, 0.3).explain(model)

# %% [markdown]
# `unit="resid_norm"` (the default) compares across layers and models. `unit="axis"` says "as far as the mean role is from the
# default". `unit="raw"` is what most code on the web means, and does not carry over to anything else.
#
# ## Dose and response
#
# Six questions under three theatrical personas. *Adherence* is how much better the role prompt explains the answer than
# the default does (nats per token, by the unsteered model): above zero the answer is in role. Beside the axis runs a
# direction of the same length at random, and a random mixture of the roles' own vectors.

# %%
cases = persona_cases(roles=["pirate", "ghost", "bard"], questions=2, seed=5)
controls = [direction.random(0), Direction.of(control_axis(vectors, "in_span"))]
found = dose_response(
    model, axis, (-0.15, 0.0, 0.15), controls=controls, cases=cases, max_new_tokens=24, neutral=5, progress=False
)
for row in found.rows():
    print("  ".join(f"{name} {value}" for name, value in row.items()))

# %%
_, axes = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained", height_ratios=[3, 1.3])
found.plot(axes)
plt.show()

# %% [markdown]
# Six answers a dose are a sketch. The docs (*Cap a model*) show 24 answers at five doses along the axis of the header span:
# .45, .44, .34, .05, −.08 from −0.3 to +0.3 residual norms, and .31 to .34 along a random direction.
#
# ## What it costs
#
# Pushing every token has a price even where there is nothing to correct. The perplexity of plain answers to plain
# questions says how high it is.

# %%
for dose in (-0.3, -0.15, 0.15, 0.3):
    print(f"{dose:+.2f}: perplexity of neutral text {neutral_perplexity(model, Add(axis, dose), count=8):.2f}")
print(f" none: {neutral_perplexity(model, count=8):.2f}")

# %% [markdown]
# That is why the paper goes on from steering to *capping*, which leaves a token alone unless it has drifted: tutorial 8.
#
# ## Which tokens?
#
# `positions` says where the vector is added. `"all"` is the paper's choice; `"response"` touches only what the model says
# itself, `"prompt"` only what it reads.

# %%
pirate = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Who are you?"}]
for positions in ("all", "prompt", "response"):
    with model.steered(Add(axis, 0.3, positions=positions)):
        print(f"{positions:>8}: {model.generate(pirate, max_new_tokens=24).text.strip()}")

# %% [markdown]
# ## Exercises
#
# 1. At which dose does the answer to "What lies beyond the hills?" stop being language?
# 2. Spread the dose 0.3 over four layers of 0.075. Is it the same?
# 3. Make a vector of your own from two prompts and steer with it.
#
# <details><summary>Solution 1</summary>
#
# ```python
# for dose in (-0.4, -0.6, -0.8, -1.0):
#     with model.steered(Add(axis, dose)):
#         print(dose, model.generate(talk, max_new_tokens=30).text)
# ```
#
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# with model.steered(Add(axis, 0.075, layers=range(layer - 3, layer + 1))):
#     print(model.generate(talk, max_new_tokens=40).text)
# ```
#
# Each layer reads what the ones below have already moved, so that the effects do not simply add up.
#
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# warm = [{"role": "system", "content": "You are warm and kind."}, *talk]
# cold = [{"role": "system", "content": "You are cold and curt."}, *talk]
# a, b = model.activations([warm, cold], span="header", layers=[layer])[:, 0]
# with model.steered(Add({layer: a - b}, 1.0, unit="axis", layers=layer)):
#     print(model.generate(talk, max_new_tokens=40).text)
# ```
#
# </details>
#
# ## On your own model
#
# `axis = extract_persona_vectors(load_model("Qwen/Qwen3-0.6B"), span="header").axis()` takes minutes, and `dose_response(model, axis)` with
# its default 24 cases says at which doses that model still speaks. An axis refuses a model that it was not made for.
