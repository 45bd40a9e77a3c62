"""`ChatSession`: a conversation with a model under watch; what `assistant-axis chat` puts on a terminal.

The session knows nothing of terminals: lines go in, `Reply` objects come out, pieces of an answer go to a callback.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis.activations.store import atomic
from assistant_axis.drift.monitor import DriftMonitor, MonitoredTurn, TokenReading
from assistant_axis.drift.trajectory import is_calibrated, shown
from assistant_axis.errors import AssistantAxisError, SettingError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.models.generation import decode

if TYPE_CHECKING:
    from assistant_axis.drift.embed import Embedder
    from assistant_axis.drift.predict import DriftPredictor
    from assistant_axis.models.hooked import HookedChatModel

HELP = """/cap [PERCENTILE | off]   keep the projection above a percentile of the calibration (75 by default)
/steer [DOSE | off]       add the axis, as a fraction of the residual norm (-0.25: less of an assistant)
/system [TEXT | off]      another system prompt; the conversation starts again
/save FILE                the conversation with its projections, as JSON
/plot [FILE]              the trace of the conversation so far
/reset                    start again
/quit                     leave"""


@dataclass(frozen=True)
class Reply:
    """What came of a line: `text` to show; `read` with an answer's projections; `quit` to leave."""

    text: str
    read: MonitoredTurn | None = None
    quit: bool = False


class ChatSession:
    """A conversation, its projections, and what is in force.

    Args:
        model: the model.
        axis: an axis of it.
        layer: where to read; default: the layer this model is watched at.
        system: system prompt.
        max_new_tokens: upper bound of an answer.
        temperature: of the sampling.
        top_p: nucleus mass.
        seed: of the sampling; the n-th answer uses seed + n.
        threshold: raw projection under which the moving mean is reported (see `DriftMonitor`).
        predictor: scores every message before it is answered (see `foresee`).
        embedder: embeds messages for it; default: the one it was fitted on.
    """

    def __init__(
        self,
        model: "HookedChatModel",
        axis: AssistantAxis,
        layer: int | float | None = None,
        *,
        system: str = "",
        max_new_tokens: int = 256,
        temperature: float | int = 0.7,
        top_p: float | int = 0.9,
        seed: int = 0,
        threshold: float | int | None = None,
        predictor: "DriftPredictor | None" = None,
        embedder: "Embedder | None" = None,
    ) -> None:
        self.model, self.axis, self.system = model, axis, system
        self.monitor = DriftMonitor(model, axis, layer, threshold=threshold)
        self.sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        self.seed = seed
        self.predictor, self.embedder = predictor, embedder
        self.cap: Any = None
        self.steer: Any = None
        self.messages: list[dict[str, str]] = []
        self.projections: list[float] = []
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; what is in force stays."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.projections = []
        self.monitor.turns.clear()

    @property
    def in_force(self) -> list[Any]:
        """The interventions, in the order they act."""
        return [i for i in (self.steer, self.cap) if i is not None]

    def handle(self, line: str, on_piece: Callable[[str, TokenReading], Any] | None = None) -> Reply:
        """A command or a message; a mistake becomes a reply, never an exception.

        Args:
            line: what was typed.
            on_piece: gets every new piece of text of the answer with its token's reading, while it is generated.
        """
        line = line.strip()
        if not line:
            return Reply("")
        try:
            return self._command(line) if line.startswith("/") else self.say(line, on_piece)
        except AssistantAxisError as e:
            return Reply(f"Error: {e}")
        except OSError as e:
            return Reply(f"Error: {e}")

    def say(self, text: str, on_piece: Callable[[str, TokenReading], Any] | None = None) -> Reply:
        """Answer a message; the conversation is left as it was if that fails or is interrupted."""
        said: list[int] = []
        shown = ""

        def token(reading: TokenReading) -> None:
            nonlocal shown
            said.append(reading.token_id)
            whole = decode(self.model, said)
            if on_piece is not None and not whole.endswith("\ufffd"):  # half a character waits for its other half
                on_piece(whole[len(shown) :], reading)
                shown = whole

        asked = [*self.messages, {"role": "user", "content": text}]
        self.monitor.on_token = token
        try:
            with self.model.steered(*self.in_force):
                answer = self.monitor.generate(asked, seed=self.seed + len(self.projections), **self.sampling)
        finally:
            self.monitor.on_token = None
        read = self.monitor.turns[-1]
        if not answer.text.strip():
            return Reply("(The model answered nothing; say it in another way.)", read)
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        self.projections.append(read.mean)
        return Reply(answer.text, read)

    def foresee(self, text: str) -> str:
        """What the predictor says of a message before it is answered; empty without a predictor."""
        if self.predictor is None:
            return ""
        if self.embedder is None:
            from assistant_axis.drift.embed import Embedder

            self.embedder = Embedder(self.predictor.embedder)
        return self.predictor.score([text], self.embedder)[0].said

    def meter(self, projection: float, width: int = 24) -> str:
        """A bar for a raw projection.

        It runs over the calibration's percentiles. Where there are none that apply, it runs one length of the axis
        (the distance of the default from the mean role) to each side of the conversation's first answer.
        """
        centred = f"{projection - self.monitor.center:+.1f} centred"
        rank = self.monitor.percentile(projection)
        if rank == rank:
            return f"{_bar(rank / 100, width)} {centred} · percentile {rank:.0f}"
        if not self.projections:
            return centred
        moved = projection - self.projections[0]
        length = float(self.axis.norms[self.axis.layer_index(self.monitor.layer)])
        return f"{_bar(0.5 + moved / (2 * length), width)} {centred} · {moved:+.1f} from the first answer"

    # -- commands ------------------------------------------------------------------------------------------------------

    def _command(self, line: str) -> Reply:
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        commands: dict[str, Callable[[str], Reply]] = {
            "cap": self._cap,
            "steer": self._steer,
            "system": self._system,
            "save": self._save,
            "plot": self._plot,
            "reset": self._reset,
            "quit": lambda _: Reply("", quit=True),
            "exit": lambda _: Reply("", quit=True),
            "help": lambda _: Reply(HELP),
        }
        if name not in commands:
            return Reply(f"There is no command /{name}.\n{HELP}")
        return commands[name](rest)

    def _cap(self, rest: str) -> Reply:
        from assistant_axis.steering.interventions import Cap

        if rest == "off":
            self.cap = None
            return Reply("No cap.")
        percentile = _number(rest or "75", "/cap takes a percentile (0 to 100), or off")
        cap = Cap.calibrated(self.axis, percentile)
        said = cap.describe(self.model)
        self.cap = cap
        return Reply(said)

    def _steer(self, rest: str) -> Reply:
        from assistant_axis.steering.interventions import Add

        if rest in ("off", ""):
            self.steer = None
            return Reply("No steering.")
        dose = _number(rest, "/steer takes a dose such as -0.25, or off")
        add = Add(self.axis, dose, layers=self.monitor.layer)
        said = add.describe(self.model)
        self.steer = add
        return Reply(said)

    def _system(self, rest: str) -> Reply:
        self.system = "" if rest == "off" else rest
        self.reset()
        return Reply(f"System prompt: {self.system or 'none'}. The conversation starts again.")

    def _reset(self, _rest: str) -> Reply:
        self.reset()
        return Reply("The conversation starts again.")

    def _save(self, rest: str) -> Reply:
        if not rest:
            raise SettingError("/save needs a file name.")
        path = Path(_path(rest)).expanduser()
        said = {
            "model": self.model.name,
            "layer": self.monitor.layer,
            "projections": self.projections,
            "center": self.monitor.center,
            "in_force": [i.describe(self.model) for i in self.in_force],
            "conversation": self.messages,
        }
        with atomic(path) as scratch:
            scratch.write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")
        return Reply(f"Written to {path}.")

    def _plot(self, rest: str) -> Reply:
        from assistant_axis.plots.drift import drift_trace
        from assistant_axis.plots.style import save_figure

        if not self.projections:
            raise SettingError("There is no answer to plot yet.")
        layer, center = self.monitor.layer, self.monitor.center
        band = None
        if is_calibrated(self.axis, "response"):
            low, high = (float(self.axis.default_percentile(q, layer)) for q in (5.0, 95.0))
            band = (low, high)
        floor = None
        if self.cap is not None and layer in self.cap.resolved(self.model):
            floor = self.cap.thresholds(layer)[0]
        said = f"{self.model.name} · layer {layer} · response span · as they were generated"
        path = Path(_path(rest) if rest else "drift.png").expanduser()
        save_figure(drift_trace(self.projections, band=band, floor=floor, conditions=said), path)
        lines = [
            f"answer {n}: {raw:+.2f} raw, {raw - center:+.2f} centred, percentile {shown(self.monitor.percentile(raw))}"
            for n, raw in enumerate(self.projections, start=1)
        ]
        return Reply("\n".join([*lines, f"Written to {path}."]))


def _bar(share: float, width: int) -> str:
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "█" * filled + "░" * (width - filled)


def _path(text: str) -> str:
    try:
        parts = shlex.split(text)
    except ValueError:
        return text
    return parts[0] if len(parts) == 1 else text


def _number(text: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"{expected}; got {text!r}.") from None
