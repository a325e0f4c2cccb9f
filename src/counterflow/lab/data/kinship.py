"""Family relations: questions about two isomorphic family trees.

Reference: G. E. Hinton, "Learning distributed representations of concepts", Proceedings of the Eighth
Annual Conference of the Cognitive Science Society, 1986 (figure 1: the two trees).

The facts are derived from who married whom and which children they have; none is listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from counterflow.exceptions import InputError
from counterflow.lab.data.catalog import dataset
from counterflow.lab.data.checksums import verify_arrays

__all__ = ["ENGLISH", "ITALIAN", "RELATIONS", "FamilyRelations", "Marriage", "Tree", "family_relations"]


@dataclass(frozen=True)
class Marriage:
    """A couple and its children."""

    husband: str
    wife: str
    sons: tuple[str, ...] = ()
    daughters: tuple[str, ...] = ()

    @property
    def children(self) -> tuple[str, ...]:
        """Sons, then daughters."""
        return self.sons + self.daughters


@dataclass(frozen=True)
class Tree:
    """A family tree: its marriages, each generation before the next.

    The methods are the relations' rules: each maps a person to the set of those who are that to them.
    """

    marriages: tuple[Marriage, ...]

    @property
    def people(self) -> tuple[str, ...]:
        """Everybody: the couples, then those who did not marry."""
        couples = [person for m in self.marriages for person in (m.husband, m.wife)]
        children = [person for m in self.marriages for person in m.children]
        return tuple(dict.fromkeys(couples + children))

    def men(self) -> set[str]:
        """All who are a husband or a son."""
        return {person for m in self.marriages for person in (m.husband, *m.sons)}

    def women(self) -> set[str]:
        """All who are a wife or a daughter."""
        return {person for m in self.marriages for person in (m.wife, *m.daughters)}

    def parents(self, person: str) -> set[str]:
        """Father and mother."""
        return {p for m in self.marriages if person in m.children for p in (m.husband, m.wife)}

    def children(self, person: str) -> set[str]:
        """Sons and daughters."""
        return {child for m in self.marriages if person in (m.husband, m.wife) for child in m.children}

    def spouses(self, person: str) -> set[str]:
        """The one whom the person married."""
        couples = ({m.husband, m.wife} for m in self.marriages)
        return {spouse for couple in couples if person in couple for spouse in couple - {person}}

    def siblings(self, person: str) -> set[str]:
        """The other children of the same couple."""
        return {child for m in self.marriages if person in m.children for child in m.children} - {person}

    def parents_siblings(self, person: str) -> set[str]:
        """Uncles and aunts, those by marriage included, as in Hinton's set."""
        blood = {s for parent in self.parents(person) for s in self.siblings(parent)}
        return blood | {spouse for s in blood for spouse in self.spouses(s)}

    def siblings_children(self, person: str) -> set[str]:
        """Nephews and nieces, the spouse's included: the converse of uncles and aunts."""
        siblings = {s for one in {person} | self.spouses(person) for s in self.siblings(one)}
        return {child for s in siblings for child in self.children(s)}


ENGLISH = Tree(
    (
        Marriage("Christopher", "Penelope", sons=("Arthur",), daughters=("Victoria",)),
        Marriage("Andrew", "Christine", sons=("James",), daughters=("Jennifer",)),
        Marriage("Arthur", "Margaret"),
        Marriage("James", "Victoria", sons=("Colin",), daughters=("Charlotte",)),
        Marriage("Charles", "Jennifer"),
    )
)
ITALIAN = Tree(
    (
        Marriage("Roberto", "Maria", sons=("Emilio",), daughters=("Lucia",)),
        Marriage("Pierro", "Francesca", sons=("Marco",), daughters=("Angela",)),
        Marriage("Emilio", "Gina"),
        Marriage("Marco", "Lucia", sons=("Alfonso",), daughters=("Sophia",)),
        Marriage("Tomaso", "Angela"),
    )
)

_Rule = Callable[[Tree, str], set[str]]


def _male(kin: _Rule) -> _Rule:
    return lambda tree, person: kin(tree, person) & tree.men()


def _female(kin: _Rule) -> _Rule:
    return lambda tree, person: kin(tree, person) & tree.women()


RELATIONS: Mapping[str, _Rule] = {
    "father": _male(Tree.parents),
    "mother": _female(Tree.parents),
    "husband": _male(Tree.spouses),
    "wife": _female(Tree.spouses),
    "son": _male(Tree.children),
    "daughter": _female(Tree.children),
    "uncle": _male(Tree.parents_siblings),
    "aunt": _female(Tree.parents_siblings),
    "brother": _male(Tree.siblings),
    "sister": _female(Tree.siblings),
    "nephew": _male(Tree.siblings_children),
    "niece": _female(Tree.siblings_children),
}
"""The twelve relations; ``RELATIONS["aunt"](tree, person)`` is the set of the person's aunts."""


@dataclass(frozen=True, eq=False)
class FamilyRelations:
    """All questions (person, relation) that have an answer, and their answers.

    Args:
        people: The 24 names; the English family, then the Italian one, in the same order.
        relations: The 12 relations' names.
        person: Shape (104,), int64. Of whom each question asks, an index into ``people``.
        relation: Shape (104,), int64. What it asks, an index into ``relations``.
        targets: Shape (104, 24), float64. 1 for each person who answers the question, else 0; one or two
            a question.
    """

    people: tuple[str, ...]
    relations: tuple[str, ...]
    person: NDArray[np.int64]
    relation: NDArray[np.int64]
    targets: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.person)

    @property
    def person_one_hot(self) -> NDArray[np.float64]:
        """Shape (104, 24): the persons in a local code."""
        return np.eye(len(self.people))[self.person]

    @property
    def relation_one_hot(self) -> NDArray[np.float64]:
        """Shape (104, 12): the relations in a local code."""
        return np.eye(len(self.relations))[self.relation]

    @property
    def triples(self) -> NDArray[np.int64]:
        """Shape (112, 3): the facts as (person, relation, person who answers)."""
        question, answer = np.nonzero(self.targets)
        return np.stack([self.person[question], self.relation[question], answer], axis=1).astype(np.int64)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the checksum is taken of."""
        return {"person": self.person, "relation": self.relation, "targets": self.targets}

    def split(
        self, seed: int | np.integer[Any] | np.random.Generator, train: int = 100
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw which questions are for training; the others are for testing.

        Args:
            seed: A whole number from 0, or a generator, which is advanced.
            train: How many are for training, 1 to 104.

        Returns:
            The indices for training and those for testing, int64, each in rising order.

        Raises:
            InputError: ``seed`` or ``train`` cannot be used.

        Example:
            >>> training, testing = family_relations().split(0)
            >>> len(training), len(testing)
            (100, 4)
        """
        if not 1 <= train <= len(self):
            raise InputError(f"train is {train}: it must be between 1 and {len(self)}, the number of questions")
        if not isinstance(seed, np.random.Generator) and (not isinstance(seed, int | np.integer) or seed < 0):
            raise InputError(f"seed is {seed!r}: it must be a whole number from 0, or a numpy Generator")
        order = np.random.default_rng(seed).permutation(len(self))
        return np.sort(order[:train]), np.sort(order[train:])


def family_relations() -> FamilyRelations:
    """The family relations of Hinton (1986): 24 people, 12 relations, 104 questions, 112 answers.

    Returns:
        The questions, ordered by person and then by relation. The arrays are read-only.

    Raises:
        ChecksumError: The rules no longer give the facts that the catalog states.

    References:
        G. E. Hinton, Learning distributed representations of concepts, Proc. 8th Annual Conference of the
        Cognitive Science Society, 1986.

    Example:
        >>> facts = family_relations()
        >>> who, what = facts.people.index("Colin"), facts.relations.index("aunt")
        >>> answers = facts.targets[(facts.person == who) & (facts.relation == what)][0]
        >>> [facts.people[i] for i in answers.nonzero()[0]]
        ['Margaret', 'Jennifer']
    """
    people = ENGLISH.people + ITALIAN.people
    questions = []
    for tree in (ENGLISH, ITALIAN):
        for person in tree.people:
            for relation, rule in enumerate(RELATIONS.values()):
                answers = rule(tree, person)
                if answers:
                    questions.append((people.index(person), relation, [people.index(a) for a in answers]))
    person_index, relation_index, answer_indices = zip(*questions, strict=True)
    targets = np.zeros((len(questions), len(people)))
    for row, indices in zip(targets, answer_indices, strict=True):
        row[indices] = 1.0
    facts = FamilyRelations(
        people=people,
        relations=tuple(RELATIONS),
        person=np.array(person_index, dtype=np.int64),
        relation=np.array(relation_index, dtype=np.int64),
        targets=targets,
    )
    for array in facts.arrays().values():
        array.flags.writeable = False
    verify_arrays("family_relations", facts.arrays(), dataset("family_relations").forms[0].sha256)
    return facts
