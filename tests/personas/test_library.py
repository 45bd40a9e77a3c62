import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assistant_axis.errors import PersonaFileError, SettingError, UnknownNameError
from assistant_axis.personas.library import (
    DEFAULT_PROMPTS,
    PersonaLibrary,
    Question,
    Role,
    data_lines,
    load_personas,
    plan,
)


@pytest.fixture(scope="module")
def bundled():
    return load_personas()


def test_bundled_counts(bundled):
    assert len(bundled.roles) == len(set(bundled.role_names)) == 275
    assert len(bundled.traits) == len({t.name for t in bundled.traits}) == 240
    assert len(bundled.questions) == len({q.id for q in bundled.questions}) == 240
    assert len({q.text for q in bundled.questions}) == 240
    assert bundled.default.prompts == DEFAULT_PROMPTS
    assert len(DEFAULT_PROMPTS) == 5
    assert "default" not in bundled.role_names


def test_bundled_prompts_are_five_and_unique(bundled):
    prompts = [p for r in bundled.roles for p in r.prompts]
    assert all(len(r.prompts) == 5 for r in bundled.roles)
    assert len(set(prompts)) == len(prompts) == 275 * 5
    assert all(p.strip() == p and "{" not in p for p in prompts)
    assert len({r.description for r in bundled.roles}) == 275
    for t in bundled.traits:
        assert len(t.positive) == len(t.negative) == 5
        assert len({*t.positive, *t.negative}) == 10
        assert "{" not in "".join((*t.positive, *t.negative))


def test_questions_cover_five_kinds_evenly(bundled):
    kinds = Counter(q.category for q in bundled.questions)
    assert set(kinds) == {"everyday", "moral", "technical", "personal", "task"}
    assert max(kinds.values()) - min(kinds.values()) <= 1


def test_bundled_roles_are_the_published_names_in_our_own_words(bundled, reference):
    official = load_personas(reference / "official" / "data")
    assert set(official.role_names) == set(bundled.role_names)
    assert {t.name for t in official.traits} == {t.name for t in bundled.traits}
    theirs = {p for r in official.roles for p in r.prompts} | {q.text for q in official.questions}
    theirs |= {p for t in official.traits for p in (*t.positive, *t.negative)}
    ours = {p for r in bundled.roles for p in (*r.prompts, r.description)}
    ours |= {p for t in bundled.traits for p in (*t.positive, *t.negative)}
    assert not ours & theirs
    assert len({q.text for q in bundled.questions} & theirs) <= 5


def test_published_files(reference):
    root = reference / "official" / "data"
    official = load_personas(root)
    assert (len(official.roles), len(official.traits), len(official.questions)) == (275, 240, 240)
    assert all(len(r.prompts) == 5 for r in (*official.roles, official.default))
    said = json.loads((root / "roles" / "instructions" / "pirate.json").read_text())["instruction"]
    assert official.role("pirate").prompts == tuple(p["pos"] for p in said)
    said = json.loads((root / "roles" / "instructions" / "default.json").read_text())["instruction"]
    assert official.default.prompts == tuple(p["pos"] for p in said)
    assert official.hash != load_personas().hash
    asks = plan(official, model_name="Tiny")
    assert len(asks) == 275 * 8 + 5 * 4
    assert not any("{model_name}" in a.system for a in asks)


def test_names_come_with_close_matches(bundled):
    assert bundled.role("pirate").name == "pirate"
    assert bundled.role("default") is bundled.default
    with pytest.raises(UnknownNameError, match="Did you mean 'pirate'"):
        bundled.role("pirat")
    with pytest.raises(UnknownNameError, match="sarcastic"):
        bundled.trait("sarcastik")
    with pytest.raises(UnknownNameError):
        bundled.select(["ghost", "no such role"])


def test_select_keeps_order_and_drops_repetitions(bundled):
    few = bundled.select(["pirate", "default", "ghost", "pirate"])
    assert few.role_names == ("pirate", "ghost")
    assert few.default is bundled.default
    assert few.hash != bundled.hash == load_personas().hash


# -- files of one's own ------------------------------------------------------------------------------------------------

GOOD = {"name": "gardener", "title": "a gardener", "description": "You grow things."}


def _write(folder, *lines, name="roles.jsonl"):
    (folder / name).write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return folder


def test_a_role_is_one_line(tmp_path, bundled):
    own = {"name": "cook", "prompts": ["You cook.", "Cook!"]}
    library = load_personas(_write(tmp_path, GOOD, "", own))
    assert library.role_names == ("gardener", "cook")
    assert len(library.role("gardener").prompts) == 5
    assert all("a gardener" in p and "You grow things." in p for p in library.role("gardener").prompts)
    assert library.role("cook").prompts == ("You cook.", "Cook!")
    assert library.questions == bundled.questions


def test_braces_and_unicode_in_descriptions_are_text(tmp_path):
    odd = GOOD | {"description": "You write {title} and {0} and ünïcode τ."}
    library = load_personas(_write(tmp_path, odd))
    assert all("{title} and {0} and ünïcode τ." in p for p in library.role("gardener").prompts)


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "roles.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert load_personas(tmp_path).role_names == ("gardener",)


def test_own_default_questions_and_traits(tmp_path):
    _write(tmp_path, GOOD, {"name": "default", "prompts": ["", "You are {model_name}."]})
    _write(tmp_path, {"id": 7, "question": "Why?"}, name="questions.jsonl")
    _write(tmp_path, {"name": "blunt", "positive": ["Be blunt."], "negative": ["Be soft."]}, name="traits.jsonl")
    library = load_personas(tmp_path)
    assert library.default.prompts == ("", "You are {model_name}.")
    assert library.questions == (Question(7, "Why?"),)
    assert library.trait("blunt").positive == ("Be blunt.",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"title": "a b", "description": "c"}, "'name' is missing"),
        ({"name": "x", "title": "a b"}, "'description' is missing"),
        ({"name": "x", "description": "c"}, "'title' is missing"),
        (GOOD | {"name": " "}, "'name' is missing or empty"),
        ({"name": "x", "title": 3, "description": "c"}, "'title'.*Got 3"),
        (GOOD, "'gardener' is given twice"),
        ({"name": "x", "prompts": []}, "'prompts' must be a list"),
        ({"name": "x", "prompts": "one"}, "'prompts' must be a list"),
        ({"name": "x", "prompts": ["a", ""]}, "'prompts' must be a list"),
        ("{", "not a JSON object"),
        ("[1]", "got list"),
        ("null", "got NoneType"),
    ],
)
def test_bad_role_lines_are_named_by_file_and_line(tmp_path, line, said):
    _write(tmp_path, GOOD, "", line)
    with pytest.raises(PersonaFileError, match=rf"roles\.jsonl:3: .*{said}"):
        load_personas(tmp_path)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    (tmp_path / "roles.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"name": "\xff\xfe"}\n')
    with pytest.raises(PersonaFileError, match=r"roles\.jsonl:2"):
        load_personas(tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("questions.jsonl", {"question": "Why?"}, r"questions\.jsonl:1: .*'id'"),
        ("questions.jsonl", {"id": 0}, r"questions\.jsonl:1: .*'question'"),
        ("questions.jsonl", "", "holds no question"),
        ("traits.jsonl", {"name": "x", "positive": "a"}, r"traits\.jsonl:1: .*'negative'"),
        (
            "traits.jsonl",
            {"name": "x", "positive": ["a"], "negative": ["b", "c"]},
            r"traits\.jsonl:1: .*1 positive and 2",
        ),
    ],
)
def test_bad_questions_and_traits(tmp_path, name, line, said):
    _write(_write(tmp_path, GOOD), line, name=name)
    with pytest.raises(PersonaFileError, match=said):
        load_personas(tmp_path)


def test_folders_without_personas(tmp_path):
    with pytest.raises(PersonaFileError, match="holds no personas"):
        load_personas(tmp_path)
    (tmp_path / "roles.jsonl").write_text("\n")
    with pytest.raises(PersonaFileError, match="holds no role"):
        load_personas(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "instruction"),
        ("[]", "instruction"),
        ('{"instruction": []}', "must be a list of prompts"),
        ('{"instruction": 3}', "must be a list of prompts"),
        ('{"instruction": [{"pos": "a"}, {"neg": "b"}]}', "instruction 2 lacks pos"),
    ],
)
def test_bad_published_files(tmp_path, content, said):
    folder = tmp_path / "roles" / "instructions"
    folder.mkdir(parents=True)
    (tmp_path / "extraction_questions.jsonl").write_text('{"id": 0, "question": "Why?"}\n')
    (folder / "pirate.json").write_text(content)
    with pytest.raises(PersonaFileError, match=rf"pirate\.json: .*{said}"):
        load_personas(tmp_path)


def test_published_layout_without_questions(tmp_path):
    folder = tmp_path / "roles" / "instructions"
    folder.mkdir(parents=True)
    (folder / "pirate.json").write_text('{"instruction": [{"pos": "a"}]}')
    with pytest.raises(PersonaFileError, match="extraction_questions"):
        load_personas(tmp_path)


def test_every_bundled_data_file_is_lines_of_json():
    for name in ("roles", "traits", "questions", "conversations", "neutral"):
        assert data_lines(f"{name}.jsonl")


# -- the plan ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(1, 2),
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.integers(1, 40),
)
def test_the_plan_is_balanced(prompts, per_prompt, samples, seed, n_roles, n_questions):
    questions = tuple(Question(i, f"q{i}", "abc"[i % 3]) for i in range(max(n_questions, per_prompt)))
    roles = tuple(Role(f"r{k}", tuple(f"r{k} p{i}" for i in range(5))) for k in range(n_roles))
    library = PersonaLibrary(roles, Role("default", DEFAULT_PROMPTS), questions)
    options = {"prompts_per_role": prompts, "questions_per_prompt": per_prompt, "samples": samples, "seed": seed}
    asks = plan(library, **options)
    assert asks == plan(library, **options)
    each = Counter(a.role for a in asks)
    assert each["default"] == 5 * per_prompt * samples
    assert all(each[r.name] == prompts * per_prompt * samples for r in roles)
    assert len({(a.role, a.prompt, a.question.id, a.sample) for a in asks}) == len(asks)
    shared = {r.name: [(a.prompt, a.question.id, a.sample) for a in asks if a.role == r.name] for r in roles}
    assert all(v == shared["r0"] for v in shared.values())  # differences between roles are the roles'
    default = [(a.prompt, a.question.id, a.sample) for a in asks if a.role == "default"]
    assert set(shared["r0"]) <= set(default)


def test_few_questions_cover_all_categories(bundled):
    asks = plan(bundled.select(["pirate"]), prompts_per_role=1, questions_per_prompt=5)
    assert len({a.question.category for a in asks if a.role == "pirate"}) == 5


def test_seeds_choose_other_questions(bundled):
    few = bundled.select(["pirate"])
    assert [a.question.id for a in plan(few, seed=0)] != [a.question.id for a in plan(few, seed=1)]


def test_default_conditions_in_the_plan(bundled):
    asks = [a for a in plan(bundled, model_name="Tiny") if a.role == "default"]
    assert {a.system for a in asks} == {
        "",
        "You are an AI assistant.",
        "You are a large language model.",
        "You are Tiny.",
        "Respond as yourself.",
    }
    assert {len(a.messages) for a in asks if not a.system} == {1}
    assert asks[-1].messages[0] == {"role": "system", "content": "Respond as yourself."}


@pytest.mark.parametrize(
    "bad",
    [
        {"prompts_per_role": 0},
        {"prompts_per_role": 6},
        {"questions_per_prompt": 0},
        {"questions_per_prompt": 241},
        {"samples": 0},
    ],
)
def test_impossible_plans(bundled, bad):
    with pytest.raises(SettingError, match=next(iter(bad))):
        plan(bundled, **bad)
