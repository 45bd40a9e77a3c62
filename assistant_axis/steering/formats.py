"""Interventions as files: our own, the released capping configs, axis `.pt` files, and GGUF control vectors.

**Sign.** The released configs store v = role − default and cap it from above, `h ← h − v̂·max(⟨h, v̂⟩ − cap, 0)`. That is a floor at
−cap along −v̂, which is how they are held here: Assistant-positive, with `floor = −cap`. Their "p0.25" is percentile 75 here.

**Layers of a GGUF control vector.** `direction.{i}` is added to the output of the zero-based block `i`, in llama.cpp (after the
block's last residual addition, at every position) and in repeng (whose keys are HF block indices): it is `ResidPost(i)`, without
a shift. llama.cpp refuses `direction.0`, so the first block cannot be steered there. `controlvector.layer_count` is the number of
directions, as both write it; llama.cpp's loader reads only the tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from assistant_axis.activations.store import (
    Conditions,
    atomic,
    load_artefact,
    load_pickled_tensors,
    save_artefact,
)
from assistant_axis.errors import IntegrityError, LayerError, SettingError, UnknownNameError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.steering.direction import Direction
from assistant_axis.steering.interventions import Ablate, Add, Cap, Chain, Change
from assistant_axis.steering.placement import say_layers

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

KIND = "intervention"
_GGUF = "controlvector"


# -- released capping configs ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CappingConfig:
    """A capping config in the released format, as it is stored: roles-positive vectors, upper caps.

    Attributes:
        vectors: name → (block index, vector `[d_model]`).
        experiments: experiment id → pairs (vector name, cap).
    """

    vectors: Mapping[str, tuple[int, Tensor]]
    experiments: Mapping[str, tuple[tuple[str, float], ...]]

    def cap(self, experiment: str) -> "Cap | Chain":
        """An experiment as a cap of ours, Assistant-positive, doing to activations what the published code does.

        Experiments with several vectors on one layer become a `Chain`, in the order of the file.

        Raises:
            UnknownNameError: no such experiment, with close matches.
        """
        if experiment not in self.experiments:
            raise UnknownNameError("capping experiment", experiment, self.experiments)
        rounds: list[dict[int, tuple[Tensor, float]]] = []
        for name, cap in self.experiments[experiment]:
            layer, vector = self.vectors[name]
            free = next((r for r in rounds if layer not in r), None)
            if free is None:
                rounds.append(free := {})
            free[layer] = (-vector.float(), -cap)
        caps = []
        for entries in rounds:
            layers = tuple(sorted(entries))
            vectors = torch.stack([entries[x][0] for x in layers])
            direction = Direction.from_vectors(layers, vectors, name=f"released axis of {experiment}")
            caps.append(Cap(direction, floor={x: entries[x][1] for x in layers}, layers=layers))
        return caps[0] if len(caps) == 1 else Chain(*caps)


def load_capping_config(path: str | Path) -> CappingConfig:
    """Read a released capping config (`.pt`, `weights_only=True`).

    Raises:
        UnsafeFileError: the pickle holds more than tensors.
        IntegrityError: not a capping config, or one that names vectors it does not hold.
        GeometryError: vectors that are zero or not finite (when an experiment is made).
    """
    loaded = load_pickled_tensors(path)
    if not isinstance(loaded, dict) or not {"vectors", "experiments"} <= set(loaded):
        raise IntegrityError(f"{path} is not a capping config: expected a dict with 'vectors' and 'experiments'.")
    try:
        vectors = {
            str(k): (int(v["layer"]), torch.as_tensor(v["vector"]).float().reshape(-1))
            for k, v in loaded["vectors"].items()
        }
        experiments: dict[str, tuple[tuple[str, float], ...]] = {}
        for entry in loaded["experiments"]:
            caps = tuple((str(i["vector"]), float(i["cap"])) for i in entry["interventions"] if "cap" in i)
            if caps:  # the format allows additive experiments too; they are no caps
                experiments[str(entry["id"])] = caps
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise IntegrityError(f"{path} is not a capping config as released ({type(e).__name__}: {e}).") from e
    absent = sorted({name for caps in experiments.values() for name, _ in caps} - set(vectors))
    if absent:
        raise IntegrityError(f"{path} names vectors that it does not hold: {', '.join(absent[:5])}.")
    return CappingConfig(vectors, experiments)


def save_capping_config(path: str | Path, caps: Mapping[str, Cap]) -> Path:
    """Write caps in the released format: vectors role − default, upper caps.

    A ceiling of ours is an upper cap on the Assistant-positive vector itself.

    Args:
        path: the `.pt` file.
        caps: experiment id (`"layers_46:54-p0.25"`) → a cap with explicit layers and `positions="all"`.

    Raises:
        SettingError: a cap that the format cannot express.
    """
    vectors: dict[str, Any] = {}
    experiments = []
    for name, cap in caps.items():
        if cap.positions != "all":
            raise SettingError(
                f'{name}: the released format caps every token; positions="{cap.positions}" cannot be kept.'
            )
        interventions = []
        for layer in _explicit(cap, name):
            k = cap.direction.index(layer)
            low, high = cap.thresholds(layer)
            along = cap.direction.unit[k] * cap.direction.norms[k]
            for key, vector, bound in ((f"layer_{layer}", -along, -low), (f"layer_{layer}-ceiling", along, high)):
                if bound != float("inf"):
                    key = f"{name}/{key}"
                    vectors[key] = {"layer": layer, "vector": vector.clone()}
                    interventions.append({"vector": key, "cap": float(bound)})
        experiments.append({"id": name, "interventions": interventions})
    with atomic(path) as scratch:
        torch.save({"vectors": vectors, "experiments": experiments}, scratch)
    return Path(path)


def save_axis_pt(
    axis: AssistantAxis, path: str | Path, *, stored_as: Literal["default-minus-roles", "roles-minus-default"]
) -> Path:
    """Write an axis as one tensor `[layer, d_model]`, in the sign that the reader expects.

    Raises:
        SettingError: an axis that does not hold every layer (the format numbers rows from block 0).
    """
    if axis.layers != tuple(range(axis.conditions.n_layers)):
        raise SettingError(
            f"The .pt format has one row a block, but the axis holds the layers {say_layers(axis.layers)}."
        )
    if stored_as not in ("default-minus-roles", "roles-minus-default"):
        raise SettingError(f"stored_as={stored_as!r} is not known.")
    with atomic(path) as scratch:
        torch.save(axis.vectors * (1 if stored_as == "default-minus-roles" else -1), scratch)
    return Path(path)


# -- GGUF control vectors ----------------------------------------------------------------------------------------------


def save_control_vector(path: str | Path, add: Add, model: "HookedChatModel | None" = None, *, hint: str = "") -> Path:
    """Write additive steering as a GGUF control vector: at strength 1, llama.cpp and repeng add what `add` adds.

    Args:
        path: the `.gguf` file.
        add: the dose and its direction.
        model: tells the layers, if `add` leaves them to the model, and the hint.
        hint: `controlvector.model_hint`, the architecture's name (`"llama"`, `"qwen3"`); default: of `model`.

    Raises:
        LayerError: block 0, which llama.cpp cannot steer.
        SettingError: positions other than `"all"`, or nothing to add.
    """
    from gguf import GGUFWriter

    if add.positions != "all":
        raise SettingError(f'A control vector acts on every token; positions="{add.positions}" cannot be kept.')
    layers = add.resolved(model) if model is not None else _explicit(add, "the intervention")
    if 0 in layers:
        raise LayerError("llama.cpp cannot steer the output of block 0 (it refuses direction.0); leave layer 0 out.")
    if not layers or add.coef == 0:
        raise SettingError("There is nothing to write: no layers, or a dose of zero.")
    if model is not None and not hint:
        hint = str(getattr(getattr(model.lens.module, "config", None), "model_type", ""))
    with atomic(path) as scratch:
        writer = GGUFWriter(str(scratch), _GGUF)
        writer.add_string(f"{_GGUF}.model_hint", hint)
        writer.add_uint32(f"{_GGUF}.layer_count", len(layers))
        for layer in layers:
            vector = add.size(layer) * add.direction.unit[add.direction.index(layer)]
            writer.add_tensor(f"direction.{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def load_control_vector(path: str | Path, coef: float = 1.0) -> Add:
    """Read a GGUF control vector (llama.cpp's or repeng's) as an `Add` of strength `coef`.

    The file does not say what its positive side is: `coef=1` adds the vectors as they are.

    Raises:
        IntegrityError: not a control vector, or directions that do not belong together.
    """
    from gguf import GGUFReader

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist.")
    try:
        reader = GGUFReader(source)
        field = reader.get_field("general.architecture")
        architecture = bytes(field.parts[field.data[0]]).decode() if field is not None else ""
        found = {t.name: torch.tensor(t.data.copy()) for t in reader.tensors}
    except (ValueError, OSError, IndexError, KeyError) as e:
        raise IntegrityError(f"{source} is not a readable GGUF file ({e}).") from e
    if architecture != _GGUF:
        raise IntegrityError(f"{source} holds a {architecture or 'nameless'} model, not a control vector.")
    vectors: dict[int, Tensor] = {}
    for name, tensor in found.items():
        kind, _, number = name.partition(".")
        if kind != "direction" or not number.isdigit() or not tensor.is_floating_point():
            raise IntegrityError(f"{source} holds the tensor {name!r}; expected float tensors named direction.<layer>.")
        if tensor.any():  # some writers fill the layers they leave alone with zeros
            vectors[int(number)] = tensor.float()
    if not vectors:
        raise IntegrityError(f"{source} holds no direction that is not zero.")
    return Add(vectors, coef, unit="axis", layers=tuple(sorted(vectors)))


# -- our own -----------------------------------------------------------------------------------------------------------


def save_intervention(path: str | Path, intervention: "Change | Chain") -> Path:
    """Write any intervention as safetensors, with the conditions its directions were measured under."""
    tensors: dict[str, Tensor] = {}
    parts = []
    for k, part in enumerate(_flat(intervention)):
        d = part.direction
        tensors |= {f"{k}.unit": d.unit, f"{k}.norms": d.norms}
        tensors |= {f"{k}.landmark.{name}": value for name, value in d.landmarks.items()}
        for name in ("resid_norms", "quantiles"):
            if getattr(d, name) is not None:
                tensors[f"{k}.{name}"] = getattr(d, name)
        said: dict[str, Any] = {
            "type": type(part).__name__,
            "positions": part.positions,
            "layers": list(part.layers) if isinstance(part.layers, tuple) else part.layers,
            "direction": {"layers": list(d.layers), "name": d.name},
            "conditions": None if d.conditions is None else d.conditions.as_dict(),
        }
        if isinstance(part, Add):
            said |= {"coef": part.coef, "unit": part.unit}
        elif isinstance(part, Cap):
            said |= {"floor": part.floor, "ceiling": part.ceiling}
        elif isinstance(part, Ablate):
            said |= {"to": part.to}
        parts.append(said)
    own = {
        key: value.clone() for key, value in tensors.items()
    }  # parts may share a direction; files may not share memory
    return save_artefact(path, KIND, own, {"parts": parts})


def load_intervention(path: str | Path, model: "HookedChatModel | None" = None) -> "Change | Chain":
    """Read what `save_intervention` wrote; with `model`, refuse one that does not fit it.

    Raises:
        IntegrityError: truncated, tampered with, or foreign.
        ArtefactMismatchError: an artefact of another kind or another model.
    """
    tensors, header = load_artefact(path, KIND)
    parts = [_part(said, k, tensors) for k, said in enumerate(header["parts"])]
    made = parts[0] if len(parts) == 1 else Chain(*parts)
    if model is not None:
        for part in parts:
            part.check(model)
    return made


def _part(said: dict[str, Any], k: int, tensors: dict[str, Tensor]) -> Change:
    own = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{k}.")}
    kept = said["conditions"]
    direction = Direction(
        tuple(said["direction"]["layers"]),
        own["unit"],
        own["norms"],
        own.get("resid_norms"),
        own.get("quantiles"),
        {name.partition(".")[2]: v for name, v in own.items() if name.startswith("landmark.")},
        None if kept is None else Conditions.from_dict(kept),
        said["direction"]["name"],
    )
    layers = said["layers"]
    common = {"layers": tuple(layers) if isinstance(layers, list) else layers, "positions": said["positions"]}
    if said["type"] == "Add":
        return Add(direction, said["coef"], unit=said["unit"], **common)
    if said["type"] == "Ablate":
        return Ablate(direction, said["to"], **common)
    bounds = [
        said[n] if not isinstance(said[n], dict) else {int(x): v for x, v in said[n].items()}
        for n in ("floor", "ceiling")
    ]
    return Cap(direction, bounds[0], bounds[1], **common)


def _flat(intervention: "Change | Chain") -> list[Change]:
    if isinstance(intervention, Change):
        return [intervention]
    return [x for part in intervention.parts for x in _flat(part)]


def _explicit(change: Change, name: str) -> tuple[int, ...]:
    """Block indices that an intervention names itself."""
    if change.layers is None:
        raise SettingError(f"{name}: a file needs explicit layers; give layers=… instead of leaving them to the model.")
    layers = change.layers if isinstance(change.layers, tuple) else (change.layers,)
    n_layers = change.direction.conditions.n_layers if change.direction.conditions is not None else None
    if n_layers is None and any(isinstance(x, float) or int(x) < 0 for x in layers):  # type: ignore[arg-type]
        raise SettingError(f"{name}: a file needs block indices; got {layers}.")
    return tuple(change.direction.layers[change.direction.index(x)] for x in layers)  # type: ignore[arg-type]
