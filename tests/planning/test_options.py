"""From text to validated fields, and the messages for text that is not valid."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field, field_validator

from benchbd import UsageError
from benchbd.base.errors import UnknownNameError
from benchbd.contract.axes import AXIS
from benchbd.contract.method import Method, build
from benchbd.planning.options import parse_options
from benchbd.registry import load_registry


class Knob(Method):
    name = "knob"
    axis = "defense"
    version = "1"

    lr: float = Field(0.1, gt=0, description="rate")
    steps: int | None = Field(None, ge=0, description="steps")
    mode: Literal["fast", "slow"] = Field("fast", description="mode")
    how: str = Field("", description="text")
    flag: bool = Field(True, description="flag")
    widths: tuple[int, ...] = Field((4, 2), description="widths")

    @field_validator("widths")
    @classmethod
    def _falling(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if list(widths) != sorted(widths, reverse=True):
            raise ValueError("Widths must fall")
        return widths


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e-3", 1e-3),
        ("1e3", 1000),
        ("[2.0, 2.5]", [2, 2.5]),
        ("1e999", float("inf")),
        ("true", True),
        ("[4, 2]", [4, 2]),
        ("null", None),
        ("none", None),
        ("None", None),
        ("fast", "fast"),
        ('"5"', "5"),
        ("/a/b=c.npz", "/a/b=c.npz"),
        ("", ""),
    ],
)
def test_a_value_is_json_or_text(text: str, value: Any) -> None:
    parsed = parse_options([f"knob.x={text}"])["knob"]["x"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_names_fields_and_axes() -> None:
    assert parse_options(["a.x=1", "defense:a.x=2", "a.y=3", "a.x=4"]) == {"a": {"x": 4, "y": 3}, "defense:a": {"x": 2}}
    assert parse_options(["a.b.x=1"]) == {"a.b": {"x": 1}}
    assert parse_options([]) == {}


@pytest.mark.parametrize("text", ["", "a", "a.x", "a=1", ".x=1", "a.=1", "=1", "=a.x"])
def test_malformed(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options([text])
    assert str(caught.value) == f"option {text!r} is not of the form NAME.FIELD=VALUE, such as ft.lr=0.001"


def test_build() -> None:
    knob = build(Knob, {"lr": "0.5", "widths": [9, 3]}, "knob")
    assert (knob.lr, knob.widths, knob.mode, knob.steps) == (0.5, (9, 3), "fast", None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0}, "knob.lr: input should be greater than 0 (got 0)"),
        ({"lr": "x"}, "knob.lr: input should be a valid number, unable to parse string as a number (got 'x')"),
        ({"lr": float("inf")}, "knob.lr: input should be a finite number (got inf)"),
        ({"lr": float("nan")}, "knob.lr: input should be a finite number (got nan)"),
        ({"steps": 1.5}, "knob.steps: input should be a valid integer, got a number with a fractional part (got 1.5)"),
        ({"steps": -1}, "knob.steps: input should be greater than or equal to 0 (got -1)"),
        ({"steps": 2.0}, "knob.steps: must be a whole number, not 2.0"),
        ({"steps": True}, "knob.steps: must be a whole number, not true"),
        ({"lr": True}, "knob.lr: must be a number, not true"),
        ({"flag": 1}, "knob.flag: must be true or false, not 1"),
        ({"widths": [4.0, 2]}, "knob.widths.0: must be a whole number, not 4.0"),
        ({"how": 1}, 'knob.how: input should be a valid string (got 1); as text it is in quotes, as in knob.how="1"'),
        ({"how": True}, "knob.how: input should be a valid string (got True); as text it is in quotes, as in "),
        (
            {"how": None},
            'knob.how: input should be a valid string (got None); as text it is in quotes, as in knob.how="none"',
        ),
        ({"mode": 1}, """knob.mode: input should be 'fast' or 'slow' (got 1); as text it is in quotes"""),
        ({"mode": "fats"}, "knob.mode: input should be 'fast' or 'slow' (got 'fats')"),
        ({"widths": [2, 4]}, "knob.widths: widths must fall (got [2, 4])"),
        ({"widths": [2, "x"]}, "knob.widths.1: input should be a valid integer, unable to parse string as an integer"),
    ],
)
def test_what_is_wrong_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(Knob, values, "knob")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_text_that_reads_as_another_value_is_in_quotes() -> None:
    for text in ("1", "none", "true", "1e3"):
        table = parse_options([f'knob.how="{text}"'])["knob"]
        assert build(Knob, table, "knob").how == text


def test_a_whole_number_is_a_number() -> None:
    knob = build(Knob, {"lr": 2}, "knob")
    assert (knob.lr, type(knob.lr)) == (2.0, float)


def test_the_nearest_option_is_offered() -> None:
    with pytest.raises(UnknownNameError, match="unknown option of knob 'widhts': did you mean 'widths'"):
        build(Knob, {"widhts": [1]}, "knob")


def test_no_number_of_ours_is_without_an_upper_bound() -> None:
    registry = load_registry()
    without = []
    for axis in AXIS:
        for name in registry.names(axis):
            cls = registry.get(axis, name)
            for field, info in cls.model_fields.items():
                default = info.get_default(call_default_factory=True)
                several = isinstance(default, tuple)
                if "int" not in str(info.annotation) and "float" not in str(info.annotation):
                    continue
                try:
                    build(cls, {field: [10**30] * len(default) if several else 10**30}, name)
                    without.append(f"{axis}:{name}.{field}")
                except UsageError:
                    pass
    assert without == []
