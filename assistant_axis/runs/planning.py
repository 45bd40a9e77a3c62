"""What a run will ask, in shards; known in full before any model is loaded. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from assistant_axis.personas.library import DEFAULT, Ask, PersonaLibrary, display_name, load_personas, plan
from assistant_axis.runs.config import RunConfig


@dataclass(frozen=True)
class RunPlan:
    """Every ask of a run, in the order in which shards take them.

    Attributes:
        asks: the rollouts to be made, those of the default first.
        size: rollouts a shard.
        personas: where roles and questions are from.
        personas_hash: of every prompt and question.
    """

    asks: Sequence[Ask]
    size: int
    personas: str
    personas_hash: str

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-len(self.asks) // self.size)

    def rows(self, shard: int) -> range:
        """Which asks a shard holds, by their number in the plan."""
        return range(shard * self.size, min((shard + 1) * self.size, len(self.asks)))

    def of(self, shard: int) -> Sequence[Ask]:
        """The asks of one shard."""
        rows = self.rows(shard)
        return self.asks[rows.start : rows.stop]


def plan_run(config: RunConfig, library: PersonaLibrary | None = None) -> RunPlan:
    """The plan of a configuration.

    Raises:
        UnknownNameError: a role that the library does not have.
        SettingError: more prompts or questions than there are.
        PersonaFileError: the folder of personas cannot be read.
    """
    library = library or load_personas(config.personas)
    if config.roles is not None:
        library = library.select(config.roles)
    asks = plan(
        library,
        prompts_per_role=config.prompts_per_role,
        questions_per_prompt=config.questions_per_prompt,
        samples=config.samples_per_question if config.generates else 1,
        default_questions=config.default_questions,
        spread=config.spread,
        model_name=display_name(config.model),
        seed=config.seed,
    )
    source = library.source if library.source == "bundled" else library.source.rstrip("/").rsplit("/", 1)[-1]
    return RunPlan(asks, config.shard, source, library.hash)


def bucket(ask: Ask) -> str:
    """Whose mean an ask counts for: its role, or one of the default's conditions (`default/0`, `default/1`, …)."""
    return f"{DEFAULT}/{ask.prompt}" if ask.role == DEFAULT else ask.role
