import subprocess
import sys
from importlib import resources

import pytest

import assistant_axis


def test_import_is_light():
    heavy = ("torch", "numpy", "transformers", "transformer_lens", "sklearn", "matplotlib", "rich", "typer", "pyarrow")
    code = f"import sys, assistant_axis; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", assistant_axis.__all__)
def test_every_public_name_is_there(name):
    value = getattr(assistant_axis, name)
    assert name in dir(assistant_axis)
    if name != "__version__":
        assert value.__doc__ or name == "Span"


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="no_such_name"):
        assistant_axis.no_such_name  # noqa: B018


def test_public_names_are_typed_for_checkers():
    """Every lazy name is imported under TYPE_CHECKING, or type checkers would not see it."""
    source = resources.files("assistant_axis").joinpath("__init__.py").read_text()
    for name in assistant_axis.__all__:
        if name != "__version__":
            assert f"import {name} as {name}" in source, name


def test_the_package_is_typed():
    assert resources.files("assistant_axis").joinpath("py.typed").is_file()


def test_every_error_is_of_the_family():
    from assistant_axis import errors

    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert len(kinds) > 10
    assert all(issubclass(k, errors.AssistantAxisError) for k in kinds)
    assert str(errors.UnknownNameError("role", "x", ["y"])).startswith("Unknown role 'x'.")
    assert "pip install 'assistant-axis[judge]'" in str(errors.MissingExtraError("openai", "judge", "Judging"))
