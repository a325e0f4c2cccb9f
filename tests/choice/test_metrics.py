"""Metrics of ensembles: against counts by hand, scikit-learn, and numbers of CIDEr-D's reference program."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from sklearn.metrics import jaccard_score

import counterflow as cf
from counterflow.choice import metrics


def test_the_oracle_is_right_where_any_member_is() -> None:
    torch.manual_seed(0)
    outputs, labels = torch.randn(3, 200, 5), torch.randint(5, (200,))
    right = sum(any(int(outputs[m, i].argmax()) == int(labels[i]) for m in range(3)) for i in range(200))
    assert metrics.oracle_accuracy(outputs, labels) == pytest.approx(right / 200)


@pytest.mark.parametrize("ignore", [None, 3])
def test_mean_iou_is_that_of_one_confusion_matrix_over_each_pictures_best(ignore: int | None) -> None:
    torch.manual_seed(1)
    labels = torch.randint(4, (6, 5, 7))
    noise = torch.rand(3, 6, 5, 7) < torch.tensor([0.1, 0.5, 0.9])[torch.randint(3, (3, 6))][..., None, None]
    predicted = torch.where(noise, torch.randint(4, (3, 6, 5, 7)), labels)
    if ignore is not None:
        predicted = predicted.clamp(max=2)

    def iou(predicted: torch.Tensor, labels: torch.Tensor) -> float:
        known = labels != ignore if ignore is not None else torch.ones_like(labels, dtype=torch.bool)
        y, p = labels[known].numpy(), predicted[known].numpy()
        there = sorted({*y.tolist(), *p.tolist()})
        return float(jaccard_score(y, p, labels=there, average="macro"))

    best = [max(range(3), key=lambda m: iou(predicted[m, i], labels[i])) for i in range(6)]
    assert len(set(best)) > 1
    chosen = torch.stack([predicted[m, i] for i, m in enumerate(best)])
    assert metrics.oracle_mean_iou(predicted, labels, 4, ignore) == pytest.approx(iou(chosen, labels))


def test_of_members_that_segment_a_picture_equally_well_the_first_answers() -> None:
    labels = torch.tensor([[[0, 1]], [[0, 0]]])
    # On the first picture either class is right on one pixel and missing on the other.
    members = torch.tensor([[[[0, 0]], [[0, 0]]], [[[1, 1]], [[0, 0]]]])
    assert metrics.oracle_mean_iou(members, labels, 2) == pytest.approx((3 / 4 + 0) / 2)
    assert metrics.oracle_mean_iou(members.flip(0), labels, 2) == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_classes_may_be_small_integers_as_pictures_of_labels_are(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    labels, predicted = torch.randint(21, (4, 3, 3)), torch.randint(21, (2, 4, 3, 3))  # 21 classes squared are 441
    wanted = metrics.oracle_mean_iou(predicted, labels, 21)
    assert metrics.oracle_mean_iou(predicted.to(dtype), labels.to(dtype), 21) == wanted
    mask = torch.rand(2, 36) < 0.5
    shares = metrics.assignment_matrix(mask, labels.flatten())
    torch.testing.assert_close(metrics.assignment_matrix(mask, labels.flatten().to(dtype)), shares, equal_nan=True)


def _corpus(seed: int, pictures: int = 12) -> tuple[list[str], list[list[str]]]:
    words = [
        "a",
        "the",
        "red",
        "blue",
        "bus",
        "dog",
        "cat",
        "runs",
        "stops",
        "on",
        "grass",
        "street",
        "two",
        "one",
        "near",
        "big",
        "small",
    ]
    draw = random.Random(seed)

    def caption() -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, 12)))

    references = [[caption() for _ in range(draw.randint(1, 5))] for _ in range(pictures)]
    # Half of the captions are changed references, so that long n-grams agree too.
    captions = [caption() if index % 2 else several[0] + " " + caption() for index, several in enumerate(references)]
    return captions, references


def _slow_cider_d(captions: list[str], references: list[list[str]]) -> list[float]:
    """Section 8 of the paper word by word, without counters."""

    def grams(text: str, n: int) -> list[str]:
        words = text.split()
        return ["|".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    def weight(gram: str, text: str, n: int) -> float:
        holding = sum(any(gram in grams(reference, n) for reference in several) for several in references)
        return grams(text, n).count(gram) * math.log(len(references) / max(1, holding))

    def norm(text: str, n: int) -> float:
        return math.sqrt(sum(weight(gram, text, n) ** 2 for gram in set(grams(text, n))))

    scores = []
    for caption, several in zip(captions, references, strict=True):
        parts = []
        for n in range(1, 5):
            for reference in several:
                product = norm(caption, n) * norm(reference, n)
                common = sum(
                    min(weight(gram, caption, n), weight(gram, reference, n)) * weight(gram, reference, n)
                    for gram in set(grams(caption, n))
                )
                apart = len(grams(caption, 2)) - len(grams(reference, 2))
                parts.append(0.0 if product == 0 else math.exp(-(apart**2) / 72) * common / product)
        scores.append(10 * sum(parts) / len(parts))
    return scores


@pytest.mark.parametrize("seed", [0, 1])
def test_cider_d_is_the_papers(seed: int) -> None:
    captions, references = _corpus(seed)
    found = metrics.cider_d(captions, references)
    assert max(found) > 1
    assert found == pytest.approx(_slow_cider_d(captions, references), abs=1e-12)
    assert metrics.cider_d([c.split() for c in captions], references) == found  # tokens or words


def test_cider_d_has_the_reference_programs_numbers() -> None:
    # Of pycocoevalcap 1.2 on the first corpus: facts, so that the test needs no such package.
    captions, references = _corpus(0)
    assert metrics.cider_d(captions, references) == pytest.approx(REFERENCE, abs=1e-6)


REFERENCE = [
    0.412950528,
    0.814704132,
    1.33591045,
    0.63736019,
    0.35983909,
    0.719187807,
    1.36075664,
    0.264538507,
    0.341433442,
    0.624060188,
    0.101453873,
    0.660031302,
]


def test_cider_d_beside_the_reference_program() -> None:
    scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer")
    captions, references = _corpus(2)
    found = scorer.CiderScorer(n=4, sigma=6.0)
    for caption, several in zip(captions, references, strict=True):
        found += (caption, several)
    _, scores = found.compute_score()
    assert metrics.cider_d(captions, references) == pytest.approx(list(scores), abs=1e-9)


def test_document_frequencies_can_be_those_of_another_corpus() -> None:
    captions, references = _corpus(3)
    assert metrics.cider_d(captions[:3], references[:3], references) == pytest.approx(
        metrics.cider_d(captions, references)[:3]
    )
    assert metrics.cider_d(captions[:3], references[:3]) != pytest.approx(metrics.cider_d(captions, references)[:3])


def test_the_oracle_takes_the_best_caption_of_each_picture() -> None:
    first, references = _corpus(4)
    second = [several[-1] for several in references]
    scores = zip(metrics.cider_d(first, references), metrics.cider_d(second, references), strict=True)
    best = [max(pair) for pair in scores]
    assert metrics.oracle_cider_d([first, second], references) == pytest.approx(sum(best) / len(best))


def test_distinct_ngrams_and_mean_length() -> None:
    captions = [["a b a b", "a"], ["b a", "c"]]
    assert [metrics.distinct_ngrams(captions, n) for n in (1, 2, 3, 4, 5)] == [3, 2, 2, 1, 0]
    assert metrics.mean_length(captions) == 2.0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rows_of_the_assignment_matrix_are_shares(k: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = torch.randint(4, (50,))
    chosen = cf.choice.winners(torch.rand(3, 50), k)
    matrix = metrics.assignment_matrix(chosen, labels, 5)
    assert matrix.shape == (5, 3)
    for c in range(4):
        for m in range(3):
            wins = sum(bool(chosen[m, i]) for i in range(50) if int(labels[i]) == c)
            assert matrix[c, m] == pytest.approx(wins / (k * int((labels == c).sum())))
    assert matrix[4].isnan().all()  # no example
    pytest.importorskip("matplotlib")
    metrics.plot_assignments(matrix, tmp_path / "a.png", ["cat", "dog", "bus", "car", "none"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_bad_input_is_named() -> None:
    mask, labels = torch.ones(2, 3, dtype=torch.bool), torch.tensor([0, 1, 2])
    with pytest.raises(cf.exceptions.ShapeError, match=r"outputs has shape \(2, 3\)"):
        metrics.oracle_accuracy(torch.zeros(2, 3), labels)
    with pytest.raises(cf.exceptions.ShapeError, match="predicted has shape"):
        metrics.oracle_mean_iou(torch.zeros(2, 3, 4, 4).long(), labels, 2)
    pixels = torch.full((1, 2, 2), 11)
    with pytest.raises(cf.exceptions.InputError, match="labels holds the class 11; give 0 to 10, or ignore it"):
        metrics.oracle_mean_iou(torch.zeros(1, 1, 2, 2).long(), pixels, 11)
    with pytest.raises(cf.exceptions.InputError, match="no pixel that counts"):
        metrics.oracle_mean_iou(torch.zeros(1, 1, 2, 2).long(), pixels, 11, 11)
    with pytest.raises(cf.exceptions.InputError, match=r"labels must hold classes as integers, got torch\.float32"):
        metrics.assignment_matrix(mask, labels.float())
    with pytest.raises(cf.exceptions.InputError, match="predicted must hold classes as integers"):
        metrics.oracle_mean_iou(torch.zeros(1, 1, 2, 2), pixels, 12)
    for call in (
        lambda: metrics.cider_d(["a dog"], ["a dog"]),  # type: ignore[list-item]
        lambda: metrics.cider_d(["a dog"], [["a dog"]], corpus=["a dog"]),  # type: ignore[list-item]
        lambda: metrics.distinct_ngrams(["a dog"]),
        lambda: metrics.mean_length("a dog"),
    ):
        with pytest.raises(cf.exceptions.InputError, match="a string in that place: 'a dog'"):
            call()
    with pytest.raises(cf.exceptions.InputError, match="one caption a picture, got a string"):
        metrics.cider_d("a", [["a"]])
    with pytest.raises(cf.exceptions.InputError, match="1 captions and 2 sets"):
        metrics.cider_d(["a"], [["a"], ["b"]])
    with pytest.raises(cf.exceptions.InputError, match="picture 1 has none"):
        metrics.cider_d(["a", "b"], [["a"], []])
    with pytest.raises(cf.exceptions.InputError, match="0 members"):
        metrics.oracle_cider_d([], [["a"]])
    with pytest.raises(cf.exceptions.InputError, match="n is 0"):
        metrics.distinct_ngrams([["a"]], 0)
    with pytest.raises(cf.exceptions.InputError, match="captions is empty"):
        metrics.mean_length([[]])
    with pytest.raises(cf.exceptions.ShapeError, match="winners has shape"):
        metrics.assignment_matrix(mask[0], labels)
    with pytest.raises(cf.exceptions.InputError, match="with 2 classes, 0 to 1"):
        metrics.assignment_matrix(mask, labels, 2)
    matrix = metrics.assignment_matrix(mask, labels)
    with pytest.raises(cf.exceptions.ShapeError, match="a name for each class"):
        metrics.plot_assignments(matrix, "a.png", ["one"])
    pytest.importorskip("matplotlib")
    with pytest.raises(cf.exceptions.InputError, match=r"suffix must be .png"):
        metrics.plot_assignments(matrix, "a.doc")
    with pytest.raises(cf.exceptions.InputError, match="no folder"):
        metrics.plot_assignments(matrix, "nowhere/a.png")
