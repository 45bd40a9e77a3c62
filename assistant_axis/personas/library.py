"""Roles, traits and questions: the bundled sets, files of one's own, and the published file format."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from assistant_axis.errors import PersonaFileError, SettingError, UnknownNameError

DEFAULT = "default"
"""Name of the model's own persona: what it is with no role asked of it."""

ROLE_PHRASINGS = (
    "You are {title}. {description}",
    "{description} You are {title}, and you answer everything as {title}.",
    "From now on, speak only as {title}. {description}",
    "Stay in character as {title} through the whole conversation. {description}",
    "Whoever asks, and whatever they ask, it is {title} who replies. {description}",
)
"""Five system prompts around one description; a role may bring its own five instead."""

TRAIT_PHRASINGS = (
    "{description}",
    "This is how you answer, always. {description}",
    "{description} Keep to this manner in every reply, whatever the subject.",
    "Let one rule of style govern you. {description}",
    "Whoever asks, and whatever they ask: {description}",
)

DEFAULT_PROMPTS = (
    "",
    "You are an AI assistant.",
    "You are a large language model.",
    "You are {model_name}.",
    "Respond as yourself.",
)
"""The five default conditions (Lu et al. 2026, section 2): no system prompt, and four that name nobody else."""


@dataclass(frozen=True)
class Role:
    """A character archetype: its name and the system prompts that ask a model to be it."""

    name: str
    prompts: tuple[str, ...]
    description: str = ""


@dataclass(frozen=True)
class Trait:
    """A way of answering and its opposite: contrastive pairs of system prompts, `positive[i]` against `negative[i]`."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A request that every role is asked."""

    id: int
    text: str
    category: str = ""


@dataclass(frozen=True)
class PersonaLibrary:
    """What a model is asked: roles, the default conditions, questions, and (where the source has them) traits.

    Attributes:
        source: `"bundled"` or the folder it was read from.
    """

    roles: tuple[Role, ...]
    default: Role
    questions: tuple[Question, ...]
    traits: tuple[Trait, ...] = ()
    source: str = "bundled"

    @property
    def role_names(self) -> tuple[str, ...]:
        return tuple(r.name for r in self.roles)

    @property
    def hash(self) -> str:
        """Short SHA-256 of every prompt and question; kept in artefacts, compared between runs."""
        said = [[r.name, r.prompts] for r in (*self.roles, self.default)]
        said += [[t.name, t.positive, t.negative] for t in self.traits]
        said += [[q.id, q.text] for q in self.questions]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def role(self, name: str) -> Role:
        """A role by its name (`"default"` for the default conditions).

        Raises:
            UnknownNameError: with close matches.
        """
        for role in (*self.roles, self.default):
            if role.name == name:
                return role
        raise UnknownNameError("role", name, self.role_names)

    def trait(self, name: str) -> Trait:
        """A trait by its name.

        Raises:
            UnknownNameError: with close matches.
        """
        for trait in self.traits:
            if trait.name == name:
                return trait
        raise UnknownNameError("trait", name, [t.name for t in self.traits])

    def select(self, names: Iterable[str]) -> "PersonaLibrary":
        """The same library with some roles only, in the order given.

        Raises:
            UnknownNameError: with close matches.
        """
        roles = tuple(self.role(n) for n in dict.fromkeys(names) if n != DEFAULT)
        return PersonaLibrary(roles, self.default, self.questions, self.traits, self.source)


@dataclass(frozen=True)
class Ask:
    """One rollout to be made: a role under one of its prompts, asked one question."""

    role: str
    prompt: int
    system: str
    question: Question
    sample: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation to be answered; an empty system prompt is left out."""
        user = {"role": "user", "content": self.question.text}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]


def load_personas(folder: str | Path | None = None) -> PersonaLibrary:
    """The bundled personas, or those of a folder.

    A folder holds either our own files (`roles.jsonl`, and if wanted `questions.jsonl`, `traits.jsonl`; missing ones
    are taken from the bundled set) or the published layout (`roles/instructions/*.json`, `extraction_questions.jsonl`,
    `traits/instructions/*.json`), so that exactly the published prompts can be run.

    Raises:
        PersonaFileError: naming file and line.
    """
    if folder is None:
        return _bundled()
    root = Path(folder).expanduser()
    if (root / "roles" / "instructions").is_dir():
        return _published(root)
    if (root / "roles.jsonl").is_file():
        bundled = _bundled()
        default, roles = _split_default(_roles(root / "roles.jsonl"), bundled.default)
        questions = _questions(root / "questions.jsonl") if (root / "questions.jsonl").is_file() else bundled.questions
        traits = _traits(root / "traits.jsonl") if (root / "traits.jsonl").is_file() else bundled.traits
        return PersonaLibrary(roles, default, questions, traits, str(root))
    raise PersonaFileError(
        f"{root} holds no personas: expected roles.jsonl (one role a line), or the published layout with "
        "roles/instructions/*.json and extraction_questions.jsonl."
    )


GOLDEN = (5**0.5 - 1) / 2


def plan(
    library: PersonaLibrary,
    *,
    prompts_per_role: int = 2,
    questions_per_prompt: int = 4,
    samples: int = 1,
    default_questions: int | None = None,
    spread: bool = False,
    model_name: str = "a language model",
    seed: int = 0,
) -> list[Ask]:
    """What to ask: every role and the default, by the same balanced design.

    All roles get the same questions under the same prompt numbers, so that their differences are theirs. Prompt `i`
    asks questions `i·n … i·n + n − 1` of an order that the seed shuffles within categories and that takes the
    categories in turn, so that few questions cover them all. The default always gets all its conditions.

    With `spread`, each role starts at its own place of that order, so that the roles together ask every question: the
    mean over roles, and with it the axis, then hangs on no small choice of questions. What a question adds to every
    answer is taken out afterwards by `PersonaVectors.adjust_questions`.

    Args:
        library: roles and questions.
        prompts_per_role: how many of each role's system prompts (the paper: 5).
        questions_per_prompt: questions under each prompt (the paper: 240).
        samples: sampled answers for each pair of prompt and question.
        default_questions: questions under each of the default's conditions; `None`: as many as a role's prompt.
        spread: roles start at places of their own in the order of questions.
        model_name: fills `{model_name}` in default conditions.
        seed: of the question order.

    Raises:
        SettingError: more prompts or questions than there are.
    """
    available = min(len(r.prompts) for r in (*library.roles, library.default)) if library.roles else 0
    if not 1 <= prompts_per_role <= available:
        raise SettingError(
            f"prompts_per_role={prompts_per_role} is out of range: the library has 1 to {available} prompts a role."
        )
    if not 1 <= questions_per_prompt <= len(library.questions) or samples < 1:
        raise SettingError(
            f"questions_per_prompt={questions_per_prompt}, samples={samples}: the library has {len(library.questions)} "
            "questions, and at least one sample is needed."
        )
    if default_questions is not None and not 1 <= default_questions <= len(library.questions):
        raise SettingError(
            f"default_questions={default_questions} is out of range: the library has {len(library.questions)} questions."
        )
    ordered = _balanced_order(library.questions, seed)
    asks: list[Ask] = []
    for number, role in enumerate((library.default, *library.roles)):
        count, each, start = prompts_per_role, questions_per_prompt, 0
        if role is library.default:
            count, each = len(role.prompts), default_questions or questions_per_prompt
        elif spread:  # golden-section steps cover the order evenly for any number of roles; whole pairs of questions
            start = 2 * int(number * GOLDEN % 1 * len(ordered) / 2)
        for p, k, s in ((p, k, s) for p in range(count) for k in range(each) for s in range(samples)):
            question = ordered[(start + p * each + k) % len(ordered)]
            system = role.prompts[p].replace("{model_name}", model_name)
            asks.append(Ask(role.name, p, system, question, s))
    return asks


def display_name(name: str) -> str:
    """What a model would call itself: `smollm2-135m-instruct` → `Smollm2`, `Qwen/Qwen3-32B` → `Qwen3`."""
    short = name.rstrip("/").rsplit("/", 1)[-1].split("-")[0]
    return short[:1].upper() + short[1:]


def data_lines(name: str) -> list[dict[str, Any]]:
    """The lines of a bundled data file (`conversations.jsonl`, …)."""
    with resources.as_file(resources.files("assistant_axis.personas") / "data" / name) as path:
        return [entry for _, entry in _lines(path)]


# -- reading -----------------------------------------------------------------------------------------------------------


@cache
def _bundled() -> PersonaLibrary:
    with resources.as_file(resources.files("assistant_axis.personas") / "data") as root:
        roles, questions = _roles(root / "roles.jsonl"), _questions(root / "questions.jsonl")
        traits = _traits(root / "traits.jsonl")
    return PersonaLibrary(roles, Role(DEFAULT, DEFAULT_PROMPTS), questions, traits)


def _published(root: Path) -> PersonaLibrary:
    """The file format of safety-research/assistant-axis: one JSON file a role, five `pos` prompts each."""
    roles = tuple(
        Role(f.stem, tuple(str(p["pos"]) for p in _instructions(f, ("pos",))))
        for f in sorted((root / "roles" / "instructions").glob("*.json"))
    )
    default, roles = _split_default(roles, Role(DEFAULT, DEFAULT_PROMPTS))
    path = root / "extraction_questions.jsonl"
    if not path.is_file():
        raise PersonaFileError(f"{path} is missing; the published layout has its questions there.")
    traits = []
    for f in sorted((root / "traits" / "instructions").glob("*.json")):
        pairs = _instructions(f, ("pos", "neg"))
        traits.append(Trait(f.stem, tuple(str(p["pos"]) for p in pairs), tuple(str(p["neg"]) for p in pairs)))
    return PersonaLibrary(roles, default, _questions(path), tuple(traits), str(root))


def _split_default(roles: Sequence[Role], fallback: Role) -> tuple[Role, tuple[Role, ...]]:
    default = next((r for r in roles if r.name == DEFAULT), fallback)
    return default, tuple(r for r in roles if r.name != DEFAULT)


def _roles(path: Path) -> tuple[Role, ...]:
    roles: dict[str, Role] = {}
    for where, entry in _lines(path):
        name = _text(entry, "name", where)
        if name in roles:
            raise PersonaFileError(f"{where}: the role {name!r} is given twice.")
        if "prompts" in entry:
            prompts = _texts(entry, "prompts", where, empty=name == DEFAULT)  # no system prompt is a default condition
            roles[name] = Role(name, prompts, str(entry.get("description", "")))
            continue
        title, description = _text(entry, "title", where), _text(entry, "description", where)
        prompts = tuple(p.format(title=title, description=description) for p in ROLE_PHRASINGS)
        roles[name] = Role(name, prompts, description)
    if not roles:
        raise PersonaFileError(f"{path} holds no role; write one JSON line a role with name, title and description.")
    return tuple(roles.values())


def _traits(path: Path) -> tuple[Trait, ...]:
    traits: dict[str, Trait] = {}
    for where, entry in _lines(path):
        name = _text(entry, "name", where)
        if name in traits:
            raise PersonaFileError(f"{where}: the trait {name!r} is given twice.")
        sides = []
        for side in ("positive", "negative"):
            if isinstance(entry.get(side), list):
                sides.append(_texts(entry, side, where))
            else:
                said = _text(entry, side, where)
                sides.append(tuple(p.format(description=said) for p in TRAIT_PHRASINGS))
        if len(sides[0]) != len(sides[1]):
            raise PersonaFileError(
                f"{where}: {name!r} has {len(sides[0])} positive and {len(sides[1])} negative prompts."
            )
        traits[name] = Trait(name, sides[0], sides[1])
    return tuple(traits.values())


def _questions(path: Path) -> tuple[Question, ...]:
    questions: dict[int, Question] = {}
    for where, entry in _lines(path):
        number = entry.get("id")
        if not isinstance(number, int):
            raise PersonaFileError(f"{where}: the field 'id' must be a number; got {number!r}.")
        if number in questions:
            raise PersonaFileError(f"{where}: the id {number} is given twice.")
        questions[number] = Question(number, _text(entry, "question", where), str(entry.get("category", "")))
    if not questions:
        raise PersonaFileError(f"{path} holds no question; write one JSON line a question with id and question.")
    return tuple(questions.values())


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of every non-empty line."""
    with path.open("rb") as f:
        for number, line in enumerate(f, start=1):
            where = f"{path.name}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # some editors open a file with a mark
                if not text.strip():
                    continue
                entry = json.loads(text)
            except ValueError as e:
                raise PersonaFileError(f"{where}: not a JSON object on one line ({e}).") from e
            if not isinstance(entry, dict):
                raise PersonaFileError(f"{where}: expected a JSON object, got {type(entry).__name__}.")
            yield where, entry


def _instructions(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["instruction"]
    except (ValueError, KeyError, TypeError) as e:
        raise PersonaFileError(f"{path.name}: expected an object with a list 'instruction' ({e}).") from e
    if not isinstance(entries, list) or not entries:
        raise PersonaFileError(f"{path.name}: 'instruction' must be a list of prompts; got {entries!r:.60}.")
    for k, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or not isinstance(entry.get(key), str)]
        if missing:
            raise PersonaFileError(f"{path.name}: instruction {k + 1} lacks {', '.join(missing)}.")
    return entries


def _text(entry: dict[str, Any], field: str, where: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str) or not value.strip():
        raise PersonaFileError(f"{where}: the field {field!r} is missing or empty; it must be a text. Got {value!r}.")
    return value


def _texts(entry: dict[str, Any], field: str, where: str, *, empty: bool = False) -> tuple[str, ...]:
    value = entry[field]
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and (empty or v.strip()) for v in value):
        raise PersonaFileError(f"{where}: the field {field!r} must be a list of texts. Got {value!r}.")
    return tuple(value)


def _balanced_order(questions: Sequence[Question], seed: int) -> list[Question]:
    """Shuffled within categories, categories in turn."""
    by_category: dict[str, list[Question]] = {}
    for q in questions:
        by_category.setdefault(q.category, []).append(q)
    rng = random.Random(seed)
    for group in by_category.values():
        rng.shuffle(group)
    rounds = max((len(g) for g in by_category.values()), default=0)
    return [g[k] for k in range(rounds) for g in by_category.values() if k < len(g)]
