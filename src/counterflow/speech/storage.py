"""The parts of a recognizer as JSON and tensors, and back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from counterflow import persist
from counterflow.exceptions import InputError
from counterflow.speech.acoustics import Model, built
from counterflow.speech.combined import CombinedStates
from counterflow.speech.grammar import Grammar
from counterflow.speech.lexicon import Lexicon

__all__ = ["KIND", "damaged", "grammar_from", "grammar_to", "lexicon_to", "model_from"]

KIND = "speech recognizer"


def lexicon_to(lexicon: Lexicon) -> dict[str, list[list[str]]]:
    """A lexicon as JSON; `Lexicon` itself takes it back."""
    return {word: [list(each) for each in some] for word, some in lexicon.pronunciations.items()}


def grammar_to(grammar: Grammar) -> dict[str, Any]:
    """A grammar as JSON."""
    return {
        "arcs": [list(arc) for arc in grammar.arcs], "silent": [list(arc) for arc in grammar.silent],
        "start": grammar.start, "finals": [[node, cost] for node, cost in grammar.finals.items()],
    }  # fmt: skip


def grammar_from(kept: Mapping[str, Any]) -> Grammar:
    """The grammar that `grammar_to` wrote."""
    return Grammar(
        [(int(a), int(b), str(word), float(cost)) for a, b, word, cost in kept["arcs"]],
        start=int(kept["start"]),
        finals={int(node): float(cost) for node, cost in kept["finals"]},
        silent=[(int(a), int(b), float(cost)) for a, b, cost in kept["silent"]],
    )


def model_from(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Model:
    """The model of the sizes that a configuration has, filled with its tensors."""
    sizes: dict[str, Any] = dict(config["model"])
    state = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    found: Model = persist.fill(lambda: built(sizes), state)
    if isinstance(found, CombinedStates):
        found.check()
    return found


@contextlib.contextmanager
def damaged(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Say of whatever does not fit together that the model in a folder is damaged."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the model in {folder} is damaged: {reason}; train it again") from error
