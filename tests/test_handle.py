"""Patterns against a matcher that tries everything, tables, and handles."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import counterflow as cf
from counterflow.exceptions import InputError, PatternError
from counterflow.handle import Handle, Row, Table, select

NAMES = st.sampled_from(["a", "b", "ab", "aab", "0", "10", "a.*", "(a"])
PATTERNS = st.lists(
    st.sampled_from(["*", "**", "a", "b", "ab", "a*", "*a", "*b*", "a*b", "0", "1*", "[", "(a"]), max_size=5
)


def matches(pattern: list[str], name: list[str]) -> bool:
    """Whether a pattern means a name, by trying every split."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(matches(pattern[1:], name[taken:]) for taken in range(len(name) + 1))
    return bool(name) and component(pattern[0], name[0]) and matches(pattern[1:], name[1:])


def component(pattern: str, name: str) -> bool:
    if pattern == "*":
        return name != ""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(component_rest(pattern[1:], name[taken:]) for taken in range(len(name) + 1))
    return name[:1] == pattern[0] and component_rest(pattern[1:], name[1:])


def component_rest(pattern: str, name: str) -> bool:
    """As `component`, where a star may stand for nothing too."""
    if pattern[:1] == "*":
        return any(component_rest(pattern[1:], name[taken:]) for taken in range(len(name) + 1))
    return not name if not pattern else name[:1] == pattern[0] and component_rest(pattern[1:], name[1:])


def tree(names: list[list[str]]) -> nn.Module:
    root = nn.Module()
    for name in names:
        at = root
        for part in name:
            part = part.replace(".", "")
            if part not in at._modules:
                at.add_module(part, nn.Module())
            child = at._modules[part]
            assert child is not None
            at = child
    return root


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.lists(NAMES, max_size=4), max_size=5), PATTERNS)
def test_patterns_mean_what_a_matcher_that_tries_everything_finds(names: list[list[str]], parts: list[str]) -> None:
    model = tree(names)
    wanted = [name for name, _ in model.named_modules() if matches(parts, name.split(".") if name else [])]
    if wanted:
        assert [name for name, _ in select(model, ".".join(parts))] == wanted
    else:
        with pytest.raises(PatternError):
            select(model, ".".join(parts))


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("", [""]),
        ("*", ["blocks", "head"]),
        ("**", ["", "blocks", "blocks.0", "blocks.0.mlp", "blocks.1", "blocks.1.mlp", "head"]),
        ("**.**", ["", "blocks", "blocks.0", "blocks.0.mlp", "blocks.1", "blocks.1.mlp", "head"]),
        ("blocks.*.mlp", ["blocks.0.mlp", "blocks.1.mlp"]),
        ("blocks.**", ["blocks", "blocks.0", "blocks.0.mlp", "blocks.1", "blocks.1.mlp"]),
        ("blocks.**.**.mlp", ["blocks.0.mlp", "blocks.1.mlp"]),
        ("**.mlp", ["blocks.0.mlp", "blocks.1.mlp"]),
        ("blocks*.*", ["blocks.0", "blocks.1"]),
    ],
)
def test_patterns(pattern: str, wanted: list[str]) -> None:
    model = tree([["blocks", "0", "mlp"], ["blocks", "1", "mlp"], ["head"]])
    assert [name for name, _ in select(model, pattern)] == wanted


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("hed", "pattern 'hed' matches no module of Module; did you mean 'head'?"),
        ("block.0", "did you mean 'blocks.0' or "),
        ("zzz", "its children are 'blocks', 'head'"),
        ("blocks..0", "pattern 'blocks..0' has an empty component; write names joined by single dots"),
        (".head", "has an empty component"),
        ("Head", "did you mean 'head'?"),
    ],
)
def test_a_wrong_pattern_says_what_is_near(pattern: str, message: str) -> None:
    model = tree([["blocks", "0", "mlp"], ["blocks", "1", "mlp"], ["head"]])
    with pytest.raises(PatternError, match=re.escape(message)) as error:
        select(model, pattern)
    assert "\n" not in str(error.value)


def test_a_model_without_children() -> None:
    with pytest.raises(PatternError, match="its children are none: use '' for the model itself"):
        select(nn.Linear(1, 1), "weight")


def test_a_pattern_must_be_a_string() -> None:
    with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module, got function"):
        select(lambda x: x, "a")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pattern must be a string such as 'blocks"):
        select(nn.Linear(1, 1), 3)  # type: ignore[arg-type]


def table() -> Table:
    return Table(
        "What was done",
        [
            Row("stem", "Conv2d", "scale(0.5)", values={"rate": 0.123456, "fan-in": 27, "by": None}),
            Row("", "Net", "left alone", "it has <no> error", {"rate": float("inf")}),
        ],
        note="Rates are local & rounded.",
    )


def test_a_table_as_text() -> None:
    assert str(table()).splitlines() == [
        "What was done",
        "layer  kind    rate   fan-in  by  done        why",
        "stem   Conv2d  0.123  27          scale(0.5)",
        "       Net     inf                left alone  it has <no> error",
        "Rates are local & rounded.",
    ]
    assert repr(table()) == str(table())


def test_a_table_as_a_dictionary_keeps_numbers() -> None:
    data = table().to_dict()
    assert data["columns"] == ["layer", "kind", "rate", "fan-in", "by", "done", "why"]
    assert data["rows"][0]["rate"] == 0.123456
    assert data["rows"][0]["fan-in"] == 27
    assert data["rows"][1]["fan-in"] is None


def test_a_table_as_html_is_escaped() -> None:
    page = table()._repr_html_()
    assert "it has &lt;no&gt; error" in page
    assert "local &amp; rounded" in page
    assert page.count("<tr>") == 3


def test_rows_are_found_by_layer() -> None:
    assert len(table()) == 2
    assert [row.layer for row in table()] == ["stem", ""]
    assert table()["stem"].kind == "Conv2d"
    with pytest.raises(InputError, match="the table has no layer 'head'; it has 'stem', ''"):
        table()["head"]


def test_an_empty_table() -> None:
    assert str(Table("Nothing", [])) == "Nothing\nlayer  kind  done"


def test_undo_runs_in_reverse_and_once() -> None:
    done: list[str] = []
    handle = Handle(nn.Identity(), table(), [lambda: done.append("first"), lambda: done.append("second")])
    assert handle.attached
    handle.undo()
    handle.undo()
    assert done == ["second", "first"]
    assert not handle.attached


def test_a_with_block_undoes_even_when_it_fails() -> None:
    done: list[str] = []
    handle = Handle(nn.Identity(), table(), [lambda: done.append("undone")])
    with pytest.raises(KeyError), handle:
        raise KeyError
    with handle as entered:
        assert entered is handle
    assert done == ["undone"]


def test_a_table_may_change_as_the_model_is_used() -> None:
    rows: list[Any] = []
    handle = Handle(nn.Identity(), lambda: Table("Seen", rows))
    assert len(handle.table()) == 0
    rows.append(Row("head", "Linear", "seen"))
    assert str(handle) == str(handle.table())
    assert "head" in handle._repr_html_()


def test_nothing_asks_dynamo_whether_it_exports() -> None:
    """Before PyTorch 2.13 it says so under `torch.compile` as well, and every hook would be left out in silence."""
    sources = Path(cf.__file__).parent.rglob("*.py")
    asks = {path.name for path in sources if ast_calls(path.read_text("utf-8"), "is_exporting")}
    assert asks == set()


def ast_calls(source: str, name: str) -> bool:
    """Whether a function of this name is called somewhere."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return any(isinstance(call, ast.Attribute) and call.attr == name for call in calls)
