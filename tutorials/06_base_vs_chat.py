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
# # 6 · Base and chat
#
# [![Open in Colab](colab.svg)](https://colab.research.google.com/#upload=true "Opens the upload dialog of Colab: give it 06_base_vs_chat.ipynb")
#
# **You will learn**
#
# - how to ask whether a model that was never trained as an assistant already holds the axis;
# - teacher forcing: one model's answers, read by another;
# - how to steer a base model, which has no persona to lose, and what it says then;
# - why every steering effect needs a control and a look at the text itself.
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

from assistant_axis import load_model, load_precomputed
from assistant_axis.geometry.controls import control_axis
from assistant_axis.pipeline.base import complete_prefills, is_broken

plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The question
#
# A chat model was trained to be an assistant. Does the direction that we call the Assistant Axis come from that training, or
# was it there before, as a direction along which *characters in texts* differ? The paper finds the second: base models
# have it too. A base model cannot be asked to play a role and answer as it. But it can **read**: give it the answers that a
# chat model gave in each role, and average its activations over the words.

# %%
chat, base = load_precomputed("smollm2-135m-instruct"), load_precomputed("gemma-3-270m")
print(base.conditions.design)

# %% [markdown]
# `read_with(gemma, "runs/smollm2")` makes this from a run of your own. Here is the same on a small scale: four roles, their answers
# written by hand.

# %%
gemma = load_model("gemma-3-270m")
print(gemma, gemma.chat.plain)
print(
    gemma.chat.encode(
        [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi, how can I help?"}]
    ).text
)

# %% [markdown]
# A base model has no chat template; the plain one writes a dialogue. Only the words of the answer are averaged.

# %%
lines = {
    "accountant": "You should keep every receipt for six years and file the return before the end of January.",
    "teacher": "Let us go through it step by step: first we add the numbers, then we divide by how many there are.",
    "oracle": "I see smoke where your road divides, and a bird that will not land; ask me not which way.",
    "ghost": "I walk the cold stairs when the house is asleep, and nobody hears me but the dog.",
}
talks = [[{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": t}] for t in lines.values()]
read = gemma.activations(talks, span="response", layers=[16])[:, 0]
axis = base.axis("pc1")
for name, x in zip(lines, read, strict=True):
    print(f"{name:>10}: {float(axis.project(x, 16, centered=True)):+8.1f} (centred, activation units)")

# %% [markdown]
# ## Two spaces of roles
#
# Role scores are comparable whatever the widths: tutorial 5. Here we look at where the *default* sits.

# %%
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for vectors, layer, colour in ((chat, 27, "tab:blue"), (base, 16, "tab:orange")):
    space = vectors.space(layer)
    scores = space.scores(1, "cosine")
    ax.hist(scores.tolist(), bins=30, alpha=0.55, color=colour, label=f"{vectors.conditions.model}, layer {layer}")
    print(
        f"{vectors.conditions.model}: default at {space.default_position(1):.2f} of the roles' range on PC1 (0 = the Assistant's end), "
        f"|cos(axis, PC1)| {space.axis_cosine():.2f}"
    )
ax.set(xlabel="cosine of the centred role with PC1", ylabel="roles")
ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
plt.show()

# %% [markdown]
# ## Steering what has no persona
#
# A base model goes on with a text. "My job is to" can be continued by anybody; which kind of anybody changes as it is
# pushed along the direction.

# %%
doses = (-0.25, 0.0, 0.25)
pushed = complete_prefills(gemma, axis, doses=doses, layer=12, samples=8, max_new_tokens=20, progress=False)
for dose in doses:
    print(f"\ndose {dose:+.2f} residual norms")
    for c in [c for c in pushed if c.dose == dose][:24:4]:
        print("  ·", c.prefill, c.text.strip()[:90].replace("\n", " "))

# %% [markdown]
# ## The control
#
# Anything pushed hard enough changes a text. What does a direction do that means nothing? Two kinds: isotropic noise of the
# same norm, and a random mixture of the roles' own vectors.

# %%
for kind in ("random", "in_span"):
    other = complete_prefills(
        gemma, control_axis(base, kind), doses=doses, layer=12, samples=8, max_new_tokens=20, progress=False
    )
    print(
        f"\n{kind}: broken texts "
        + ", ".join(
            f"{d:+.2f}: {sum(is_broken(c.text) for c in other if c.dose == d)} of {sum(c.dose == d for c in other)}"
            for d in doses
        )
    )
    for dose in (-0.25, 0.25):
        c = next(c for c in other if c.dose == dose)
        print(f"  {dose:+.2f} ·", c.prefill, c.text.strip()[:90].replace("\n", " "))
print(
    "\nthe axis: broken texts "
    + ", ".join(
        f"{d:+.2f}: {sum(is_broken(c.text) for c in pushed if c.dose == d)} of {sum(c.dose == d for c in pushed)}"
        for d in doses
    )
)

# %% [markdown]
# In Gemma a few coordinates of the residual stream are thousands of times larger than the rest. Isotropic noise of a quarter of
# the *norm* is enormous for all the other coordinates and breaks the text at once, which makes it an easy control to
# beat. The mixture of roles is the fair one.

# %%
x = base.default[base.layer_index(12)].abs().sort(descending=True).values
share = float((x[:3] ** 2).sum() / (x**2).sum())
print(f"share of the squared norm in the three largest of {len(x)} coordinates at layer 12: {share:.1%}")

# %% [markdown]
# ## Exercises
#
# 1. Write a prefill of your own ("The best thing about me is"), and look at three doses.
# 2. Steer with the contrast axis, `base.axis()`, instead of PC1. Is it as clear?
# 3. Where does the correlation between the two models' PC1 begin, going up the layers of the base model?
#
# <details><summary>Solution 1</summary>
#
# ```python
# for c in complete_prefills(gemma, axis, doses=doses, layer=12, prefills=("The best thing about me is",), samples=4):
#     print(c.dose, c.text)
# ```
#
# </details>
#
# <details><summary>Solution 2</summary>
#
# ```python
# for c in complete_prefills(gemma, base.axis(), doses=doses, layer=12, samples=4):
#     print(c.dose, c.prefill, c.text)
# ```
#
# The base model has no default of its own: "default" here is how SmolLM2 spoke without a role.
#
# </details>
#
# <details><summary>Solution 3</summary>
#
# ```python
# from assistant_axis.geometry.compare import compare
# for layer in base.layers:
#     print(layer, compare(chat, base, layers=(27, layer), resamples=100).pcs[0])
# ```
#
# </details>
#
# ## On your own model
#
# For a real pair, `Qwen/Qwen3-0.6B` and `Qwen/Qwen3-0.6B-Base` say: extract with the chat model (`span="response"`, `out="runs/qwen"`), read with
# the base model (`assistant-axis read runs/qwen --model Qwen/Qwen3-0.6B-Base`), compare. Widths agree there, so that the chat
# model's axis can be used on the base model as it is: `Add(axis, 0.2, force=True)`.
