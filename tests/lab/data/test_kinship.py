from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from counterflow.exceptions import ChecksumError, InputError
from counterflow.lab import data
from counterflow.lab.data import kinship
from counterflow.lab.data.kinship import ENGLISH, ITALIAN, RELATIONS

facts = data.family_relations()
TRIPLES = {(facts.people[a], facts.relations[r], facts.people[b]) for a, r, b in facts.triples.tolist()}


def test_counts() -> None:
    assert (len(facts.people), len(facts.relations)) == (24, 12)
    assert len(facts) == 104
    assert len(facts.triples) == len(TRIPLES) == 112
    assert facts.targets.shape == (104, 24)
    assert facts.targets.sum() == 112
    assert set(facts.targets.sum(axis=1)) == {1.0, 2.0}
    assert len(set(zip(facts.person.tolist(), facts.relation.tolist(), strict=True))) == 104


def test_counts_of_each_relation() -> None:
    counts = Counter(relation for _, relation, _ in TRIPLES)
    couples, children, siblings, uncles = 10, 12, 6, 8
    assert counts == {
        **dict.fromkeys(("husband", "wife"), couples),
        **dict.fromkeys(("father", "mother", "son", "daughter"), children),
        **dict.fromkeys(("brother", "sister"), siblings),
        **dict.fromkeys(("uncle", "aunt", "nephew", "niece"), uncles),
    }


@pytest.mark.parametrize(
    "fact",
    [
        ("Colin", "father", "James"),
        ("Colin", "mother", "Victoria"),
        ("James", "wife", "Victoria"),
        ("Charlotte", "brother", "Colin"),
        ("Victoria", "brother", "Arthur"),
        ("Charlotte", "uncle", "Arthur"),
        ("Charlotte", "uncle", "Charles"),  # by marriage
        ("Colin", "aunt", "Jennifer"),
        ("Colin", "aunt", "Margaret"),  # by marriage
        ("Margaret", "nephew", "Colin"),  # by marriage
        ("Alfonso", "mother", "Lucia"),
        ("Sophia", "aunt", "Gina"),
        ("Tomaso", "niece", "Sophia"),
        ("Penelope", "son", "Arthur"),
    ],
)
def test_facts_of_hinton(fact: tuple[str, str, str]) -> None:
    assert fact in TRIPLES


def test_trees_are_isomorphic() -> None:
    italian = dict(zip(ENGLISH.people, ITALIAN.people, strict=True))
    # Hinton's figure: these stand at the same places.
    hinton = {
        "Christopher": "Roberto",
        "Penelope": "Maria",
        "Andrew": "Pierro",
        "Christine": "Francesca",
        "Margaret": "Gina",
        "Arthur": "Emilio",
        "Victoria": "Lucia",
        "James": "Marco",
        "Jennifer": "Angela",
        "Charles": "Tomaso",
        "Colin": "Alfonso",
        "Charlotte": "Sophia",
    }
    assert italian == hinton
    english = {triple for triple in TRIPLES if triple[0] in italian}
    assert len(english) == 56
    assert {(italian[a], relation, italian[b]) for a, relation, b in english} == TRIPLES - english


def test_men_and_women_divide_each_family() -> None:
    for tree in (ENGLISH, ITALIAN):
        assert len(tree.men()) == len(tree.women()) == 6
        assert tree.men() | tree.women() == set(tree.people)


CONVERSES = [
    (("husband",), ("wife",)),
    (("father", "mother"), ("son", "daughter")),
    (("brother", "sister"), ("brother", "sister")),
    (("uncle", "aunt"), ("nephew", "niece")),
]


@pytest.mark.parametrize(("kin", "converse"), CONVERSES)
def test_converse_relations(kin: tuple[str, ...], converse: tuple[str, ...]) -> None:
    forward = {(a, b) for a, relation, b in TRIPLES if relation in kin}
    backward = {(b, a) for a, relation, b in TRIPLES if relation in converse}
    assert forward
    assert forward == backward


def test_sex_decides_the_relation() -> None:
    men = ENGLISH.men() | ITALIAN.men()
    for _, relation, answer in TRIPLES:
        assert (answer in men) == (relation in {"father", "husband", "son", "uncle", "brother", "nephew"})


def test_nobody_is_their_own_kin() -> None:
    assert all(person != answer for person, _, answer in TRIPLES)


def test_one_hot_codes() -> None:
    assert facts.person_one_hot.shape == (104, 24)
    assert facts.relation_one_hot.shape == (104, 12)
    np.testing.assert_array_equal(facts.person_one_hot.argmax(axis=1), facts.person)
    np.testing.assert_array_equal(facts.relation_one_hot.argmax(axis=1), facts.relation)
    assert set(facts.person_one_hot.sum(axis=1)) == set(facts.relation_one_hot.sum(axis=1)) == {1.0}


def test_arrays_are_read_only() -> None:
    for array in facts.arrays().values():
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_generated_alike_each_time() -> None:
    again = data.family_relations()
    assert data.arrays_sha256(again.arrays()) == data.checksum("family_relations")


def test_changed_rules_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    by_blood = {**RELATIONS, "aunt": kinship._female(lambda tree, person: tree.siblings(person))}
    monkeypatch.setattr(kinship, "RELATIONS", by_blood)
    with pytest.raises(ChecksumError, match="family_relations is not the one in the catalog"):
        data.family_relations()


@pytest.mark.parametrize("train", [1, 100, 103, 104])
def test_split_is_disjoint_and_complete(train: int) -> None:
    training, testing = facts.split(3, train=train)
    assert (len(training), len(testing)) == (train, 104 - train)
    assert sorted([*training, *testing]) == list(range(104))


def test_split_is_seeded() -> None:
    np.testing.assert_array_equal(facts.split(5)[0], facts.split(5)[0])
    np.testing.assert_array_equal(facts.split(5)[0], facts.split(np.random.default_rng(5))[0])
    np.testing.assert_array_equal(facts.split(5)[0], facts.split(np.int64(5))[0])
    tests = {tuple(facts.split(seed)[1].tolist()) for seed in range(20)}
    assert len(tests) == 20
    # Pinned: a change here would give every committed record other training cases.
    assert facts.split(0)[1].tolist() == [33, 56, 79, 95]


def test_split_advances_a_generator() -> None:
    rng = np.random.default_rng(0)
    assert facts.split(rng)[1].tolist() != facts.split(rng)[1].tolist()


def test_every_question_can_be_drawn_for_testing() -> None:
    drawn = {i for seed in range(400) for i in facts.split(seed)[1].tolist()}
    assert drawn == set(range(104))


@pytest.mark.parametrize("train", [0, -1, 105])
def test_split_refuses_a_wrong_size(train: int) -> None:
    with pytest.raises(InputError, match=f"train is {train}: it must be between 1 and 104"):
        facts.split(0, train=train)


@pytest.mark.parametrize("seed", [-1, 0.5, "x", None])
def test_split_refuses_a_wrong_seed(seed: object) -> None:
    with pytest.raises(InputError, match=r"seed is .* whole number from 0"):
        facts.split(seed)  # type: ignore[arg-type]
