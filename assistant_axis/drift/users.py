"""Who plays the user in a simulated conversation: a script, a local chat model, or an API."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from assistant_axis.errors import FetchError, MissingExtraError, SettingError
from assistant_axis.personas.library import data_lines

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

DOMAINS = ("coding", "writing", "therapy", "philosophy")
MAX_TURNS = 15

_PLAY = (
    "{description}\n\nYou are the person who is talking to an AI assistant. {topic}\n"
    "Write only what this person types next: one message of one to four sentences, in the person's own voice. "
    "React to what the assistant just said. Never answer as an assistant, never describe what you do."
)
_OPEN = "(The chat is open. Type your first message.)"


@dataclass(frozen=True)
class Scenario:
    """One conversation to be held: who talks about what.

    Attributes:
        id: name of the conversation, unique within a run.
        domain: coding, writing, therapy or philosophy (or one of your own).
        persona: name of the user persona.
        description: who that is, for a simulator that plays it.
        topic: what the conversation is about.
        turns: the user's turns, for `Scripted`.
        system: system prompt of the target in this conversation; default: that of the run.
    """

    id: str
    domain: str
    persona: str
    description: str
    topic: str
    turns: tuple[str, ...] = ()
    system: str = ""


@runtime_checkable
class User(Protocol):
    """Plays the user. `describe` names everything its messages depend on; a resumed run checks it."""

    def describe(self) -> str: ...
    def speak(
        self, scenarios: Sequence[Scenario], conversations: Sequence[Sequence[dict[str, str]]], *, turn: int, seed: int
    ) -> list[str | None]:
        """The next message of each conversation, or `None` where the user has nothing left to say."""
        ...


def scripted_scenarios(domains: Sequence[str] | None = None, per_domain: int | None = None) -> list[Scenario]:
    """The bundled conversations, 25 a domain with six or more written user turns each; the domains take turns.

    Raises:
        SettingError: a domain that there is not, or more conversations than there are.
    """
    described = {p["id"]: p["description"] for p in data_lines("drift_personas.jsonl")}
    found = [
        Scenario(c["id"], c["domain"], c["persona"], described[c["persona"]], c["topic"], tuple(c["turns"]))
        for c in data_lines("conversations.jsonl")
    ]
    return _choose(found, domains, per_domain)


def played_scenarios(
    domains: Sequence[str] | None = None, per_domain: int | None = None, seed: int = 0
) -> list[Scenario]:
    """Every bundled user persona with every topic of its domain, shuffled by the seed within domains.

    Five personas and twenty or more topics a domain: at least 100 conversations a domain, as Lu et al. 2026 held.
    """
    import random

    topics = data_lines("drift_topics.jsonl")
    found = [
        Scenario(f"{p['id']}-{k:02d}", p["domain"], p["id"], p["description"], t["topic"])
        for p in data_lines("drift_personas.jsonl")
        for k, t in enumerate(topics)
        if t["domain"] == p["domain"]
    ]
    random.Random(seed).shuffle(found)
    return _choose(found, domains, per_domain)


@dataclass(frozen=True)
class Scripted:
    """Says each scenario's written turns, whatever is answered: needs no second model."""

    def describe(self) -> str:
        return "scripted"

    def speak(
        self, scenarios: Sequence[Scenario], conversations: Sequence[Sequence[dict[str, str]]], *, turn: int, seed: int
    ) -> list[str | None]:
        return [s.turns[turn] if turn < len(s.turns) else None for s in scenarios]


@dataclass(frozen=True)
class ModelUser:
    """A local chat model plays the user: it sees the conversation with the parts exchanged.

    Args:
        model: any `HookedChatModel` (the target itself is possible).
        max_new_tokens: upper bound of a message.
        temperature: of the sampling.
        top_p: nucleus mass.
    """

    model: "HookedChatModel"
    max_new_tokens: int = 96
    temperature: float | int = 0.8
    top_p: float = 0.95

    def describe(self) -> str:
        m = self.model
        return f"model {m.name} {m.fingerprint} ≤{self.max_new_tokens} T{self.temperature} p{self.top_p}"

    def speak(
        self, scenarios: Sequence[Scenario], conversations: Sequence[Sequence[dict[str, str]]], *, turn: int, seed: int
    ) -> list[str | None]:
        answers = self.model.generate(
            [exchanged(s, c) for s, c in zip(scenarios, conversations, strict=True)],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=seed,
            batch_size=max(1, len(scenarios)),
        )
        return [a.text.strip() or None for a in answers]


@dataclass(frozen=True)
class APIUser:
    """A model behind an OpenAI-compatible endpoint plays the user; requests of a batch run side by side.

    Needs the extra `api`. Such services are not reproducible to the letter, even with a seed.

    Args:
        model: the service's name of the model.
        base_url: the endpoint; default: that of OpenAI.
        key_variable: environment variable that holds the key.
        max_tokens: upper bound of a message.
        temperature: of the sampling.
        parallel: requests at a time.
        retries: attempts for each request.
        client: a ready client, for tests and for other kinds of service.
    """

    model: str
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    max_tokens: int = 200
    temperature: float | int = 0.8
    parallel: int = 8
    retries: int = 5
    client: Any = field(default=None, compare=False, repr=False)

    def describe(self) -> str:
        return f"api {self.model} at {self.base_url or 'api.openai.com'} ≤{self.max_tokens} T{self.temperature}"

    def speak(
        self, scenarios: Sequence[Scenario], conversations: Sequence[Sequence[dict[str, str]]], *, turn: int, seed: int
    ) -> list[str | None]:
        from concurrent.futures import ThreadPoolExecutor

        client = self.client or self._client()
        asked = [exchanged(s, c) for s, c in zip(scenarios, conversations, strict=True)]
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(lambda k: self._ask(client, asked[k], seed + k), range(len(asked))))

    def _ask(self, client: Any, messages: list[dict[str, str]], seed: int) -> str | None:
        try:
            done = client.chat.completions.create(
                model=self.model, messages=messages, max_tokens=self.max_tokens, temperature=self.temperature, seed=seed
            )
        except Exception as e:  # every service has its own errors; the run can be resumed
            raise FetchError(
                f"The endpoint {self.base_url or 'api.openai.com'} did not answer for the user {self.model}: "
                f"{type(e).__name__}: {e}. Finished turns are kept; run the same command again to go on."
            ) from e
        said = done.choices[0].message.content
        return said.strip() or None if isinstance(said, str) else None

    def _client(self) -> Any:
        try:
            from openai import OpenAI  # pyright: ignore[reportMissingImports]
        except ImportError as e:
            raise MissingExtraError("openai", "api", "A user behind an API") from e
        key = os.environ.get(self.key_variable)
        if not key and self.base_url is None:
            raise SettingError(
                f"The environment variable {self.key_variable} is not set; it must hold the key of the service."
            )
        return OpenAI(base_url=self.base_url, api_key=key or "none", max_retries=self.retries)


def exchanged(scenario: Scenario, conversation: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation as its user sees it: the user's own turns are the simulator's answers."""
    system = _PLAY.format(description=scenario.description, topic=scenario.topic)
    other = {"user": "assistant", "assistant": "user"}
    turns = [{"role": other[m["role"]], "content": m["content"]} for m in conversation if m["role"] in other]
    return [{"role": "system", "content": system}, {"role": "user", "content": _OPEN}, *turns]


def _choose(found: list[Scenario], domains: Sequence[str] | None, per_domain: int | None) -> list[Scenario]:
    by_domain: dict[str, list[Scenario]] = {}
    for s in found:
        by_domain.setdefault(s.domain, []).append(s)
    wanted = tuple(domains) if domains is not None else tuple(d for d in DOMAINS if d in by_domain)
    unknown = [d for d in wanted if d not in by_domain]
    if unknown:
        raise SettingError(f"Unknown domain {unknown[0]!r}; there are {', '.join(by_domain)}.")
    count = per_domain if per_domain is not None else max(len(by_domain[d]) for d in wanted)
    short = [d for d in wanted if per_domain is not None and len(by_domain[d]) < per_domain]
    if short or count < 1:
        raise SettingError(
            f"per_domain={per_domain}: {(short or wanted)[0]} has 1 to {len(by_domain[(short or wanted)[0]])}."
        )
    return [by_domain[d][k] for k in range(count) for d in wanted if k < len(by_domain[d])]
