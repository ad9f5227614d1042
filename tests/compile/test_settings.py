"""`--set`, sizes, and the nearest name."""

from __future__ import annotations

import pytest

from ttac import methods, settings
from ttac.errors import UsageError
from ttac.sizes import format_size, parse_size
from ttac.spec import Method, Option, Statistics
from ttac.suggest import did_you_mean

METHOD = Method(
    name="toy",
    title="",
    paper="",
    needs="",
    options=(
        Option("lr", 1e-3, "", low=0.0),
        Option("steps", 1, "", low=1, high=8),
        Option("nesterov", False, ""),
        Option("optimizer", "adam", "", choices=("adam", "sgd")),
    ),
)


def refusal(**given: object) -> str:
    with pytest.raises(UsageError) as caught:
        settings.resolve(METHOD, given)
    return str(caught.value)


def test_texts_become_the_defaults_types() -> None:
    given = settings.split_assignments(["lr=2e-4", "steps=3", "nesterov=on", "optimizer = sgd"])
    found = settings.resolve(METHOD, given)
    assert found == {"lr": 2e-4, "steps": 3, "nesterov": True, "optimizer": "sgd"}
    assert [type(value) for value in found.values()] == [float, int, bool, str]


def test_python_values_pass_and_defaults_fill_in() -> None:
    assert settings.resolve(METHOD, {"lr": 1}) == {"lr": 1.0, "steps": 1, "nesterov": False, "optimizer": "adam"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "fast"),
        ("lr", "-1"),
        ("lr", "nan"),
        ("lr", True),
        ("steps", "1.5"),
        ("steps", 0),
        ("steps", 9),
        ("nesterov", "maybe"),
        ("optimizer", 3),
    ],
)
def test_values_that_do_not_fit(name: str, value: object) -> None:
    assert refusal(**{name: value}).startswith(f"`{value}` does not fit option `{name}`\n  at `--set {name}={value}`")


def test_unknown_names_and_choices_get_the_nearest() -> None:
    assert refusal(learning=1) == (
        "method `toy` has no option `learning`\n  at `--set`\n\n"
        "hint: choose from `lr`, `steps`, `nesterov`, `optimizer` (`ttac methods toy` lists them)"
    )
    assert "did you mean `steps`?" in refusal(step=1)
    assert "did you mean `adam`?" in refusal(optimizer="adamw")


@pytest.mark.parametrize("texts", [["lr"], ["=3"], ["lr=1", "lr=2"]])
def test_assignments_that_are_none(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        settings.split_assignments(texts)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_valid_defaults_and_says_what_it_is(name: str) -> None:
    method = methods.find(name)
    assert method.name == name and method.title and method.needs
    assert settings.resolve(method) == {option.name: option.default for option in method.options}
    assert all(option.help and settings.describe(option) for option in method.options)
    assert isinstance(method.statistics(settings.resolve(method)), Statistics)
    assert method.program[-1] in ({"return": "logits"}, {"return": "answer"})


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 * 2**20), ("48MB", 48 * 10**6), ("2 GiB", 2**31), ("1.5kib", 1536), ("1048576", 2**20), ("7 b", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "64 mibs", "-3MB", "0", "0.2 B", "1e3"])
def test_texts_that_are_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10 * 1024, "10.0 KiB"),
        (1023.9 * 1024, "1.00 MiB"),
        (64 * 2**20, "64.0 MiB"),
        (100 * 2**30, "100 GiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_sizes_print_with_three_digits(size: float, text: str) -> None:
    assert format_size(size) == text


def test_did_you_mean() -> None:
    assert did_you_mean("tnet", ["bn", "tent"]) == "did you mean `tent`?"
    assert did_you_mean("zzz", ["bn", "tent"]) == "choose from `bn`, `tent`"
