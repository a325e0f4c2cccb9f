"""What an ensemble is worth to an oracle who picks the best of its answers, and how different these answers are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from counterflow.exceptions import InputError, ShapeError
from counterflow.pictures import require_picture, write_picture

__all__ = [
    "assignment_matrix",
    "cider_d",
    "distinct_ngrams",
    "mean_length",
    "oracle_accuracy",
    "oracle_cider_d",
    "oracle_mean_iou",
    "plot_assignments",
]

# CIDEr-D's constants: the longest n-grams, and the standard deviation of the penalty on length.
_LONGEST = 4
_SIGMA = 6.0

Caption = Sequence[Hashable]


def oracle_accuracy(outputs: Tensor, labels: Tensor) -> float:
    """The share of examples that at least one member classifies rightly.

    Args:
        outputs: Scores of the classes, ``(members, examples, classes)``.
        labels: The right classes, ``(examples,)``.

    Returns:
        Between 0 and 1.

    Raises:
        ShapeError: If the shapes do not fit.

    References:
        Lee and others (2016), section 4.1.

    Example:
        >>> outputs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> oracle_accuracy(outputs, torch.tensor([0, 1]))
        1.0
    """
    if outputs.dim() != 3 or outputs.shape[1:2] != labels.shape:
        raise ShapeError(
            f"outputs has shape {tuple(outputs.shape)} and labels {tuple(labels.shape)}; give "
            "(members, examples, classes) and (examples,)"
        )
    right: Tensor = (outputs.argmax(-1) == labels).any(0)
    return float(right.double().mean())


def _confusion(predicted: Tensor, labels: Tensor, classes: int, ignore: int | None) -> Tensor:
    """Counts of pixels by right class and predicted class, ``(..., classes, classes)``; leading dimensions stay."""
    lead = predicted.shape[:-2]
    labels = labels.expand_as(predicted)
    known = torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore
    cell = torch.where(known, labels * classes + predicted, classes**2).reshape(*lead, -1)
    counts = torch.zeros(*lead, classes**2 + 1, dtype=torch.long, device=predicted.device)
    counts.scatter_add_(-1, cell, torch.ones_like(cell))
    return counts[..., :-1].reshape(*lead, classes, classes)


def _mean_iou(confusion: Tensor) -> Tensor:
    """The mean over the classes that are there or are predicted; 0 where there is none."""
    both = confusion.diagonal(dim1=-2, dim2=-1).double()
    either = confusion.sum(-1) + confusion.sum(-2) - both
    mean: Tensor = torch.where(either > 0, both / either.clamp(min=1), 0).sum(-1) / (either > 0).sum(-1).clamp(min=1)
    return mean


def oracle_mean_iou(predicted: Tensor, labels: Tensor, classes: int, ignore: int | None = None) -> float:
    """The mean intersection over union when each picture is answered by the member that segments it best.

    For each picture the member is taken whose own mean intersection over union on it is highest (the lower index at a
    tie); their predictions go into one confusion matrix, and the mean is over its classes.

    Args:
        predicted: Predicted classes, ``(members, pictures, height, width)``.
        labels: The right classes, ``(pictures, height, width)``.
        classes: How many classes there are.
        ignore: A label whose pixels do not count.

    Returns:
        Between 0 and 1.

    Raises:
        ShapeError: If the shapes do not fit.
        InputError: If a class is no integer between 0 and ``classes`` - 1, or if no pixel counts.

    References:
        Lee and others (2016), section 4.2.

    Example:
        >>> predicted = torch.tensor([[[[0, 0]]], [[[0, 1]]]])
        >>> oracle_mean_iou(predicted, torch.tensor([[[0, 1]]]), classes=2)
        1.0
    """
    if predicted.dim() != 4 or predicted.shape[1:] != labels.shape:
        raise ShapeError(
            f"predicted has shape {tuple(predicted.shape)} and labels {tuple(labels.shape)}; give "
            "(members, pictures, height, width) and (pictures, height, width)"
        )
    predicted, labels = _whole("predicted", predicted), _whole("labels", labels)
    known = labels if ignore is None else labels[labels != ignore]
    if known.numel() == 0:
        raise InputError("labels: there is no pixel that counts; every one has the ignored label")
    for name, values in (("predicted", predicted), ("labels", known)):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= classes:
            raise InputError(
                f"{name} holds the class {low if low < 0 else high}; give 0 to {classes - 1}, or ignore it"
            )
    each = _confusion(predicted, labels, classes, ignore)
    best = _mean_iou(each).argmax(0)
    return float(_mean_iou(each[best, torch.arange(len(labels), device=best.device)].sum(0)))


def _ngrams(caption: Caption, longest: int = _LONGEST) -> Counter[tuple[Hashable, ...]]:
    words = tuple(caption)
    return Counter(words[i : i + n] for n in range(1, longest + 1) for i in range(len(words) - n + 1))


def _whole(name: str, values: Tensor) -> Tensor:
    """Classes as 64-bit integers: of smaller ones, as pictures of labels often are, a product would overflow."""
    if values.is_floating_point() or values.is_complex():
        raise InputError(f"{name} must hold classes as integers, got {values.dtype}; take .argmax() of scores first")
    return values.long()


def _refuse_text(name: str, items: Sequence[object], what: str) -> None:
    """Refuse one text where a list of them is meant, whose letters would be taken for captions."""
    for each in (items, *items):
        if isinstance(each, str):
            raise InputError(f"{name} must hold {what}, but there is a string in that place: {each!r}")


def _words(caption: Caption | str) -> Caption:
    return caption.split() if isinstance(caption, str) else caption


def cider_d(
    captions: Sequence[Caption | str],
    references: Sequence[Sequence[Caption | str]],
    corpus: Sequence[Sequence[Caption | str]] | None = None,
) -> list[float]:
    r"""CIDEr-D, the consensus of a caption with those that people have written.

    .. math::

       \frac{10}{4\,|R_i|} \sum_{n=1}^4 \sum_{r \in R_i} e^{-(l(c) - l(r))^2 / 2 \sigma^2}\,
       \frac{\min(g^n(c), g^n(r)) \cdot g^n(r)}{\|g^n(c)\| \, \|g^n(r)\|}

    :math:`g^n` counts a caption's n-grams, each weighted by :math:`\log N - \log \max(1, d)` for the d of N pictures
    with a reference that holds it; :math:`\sigma = 6`. Captions are compared as they are: lower their case, and strip
    and separate their punctuation first. Lengths are counts of bigrams, as in the authors' program.

    Args:
        captions: One a picture; words parted by spaces, or a sequence of tokens.
        references: One or more for each picture, likewise.
        corpus: References whose document frequencies count; those of ``references`` by default. Of a single picture
            every n-gram is in all of them, so that it counts for nothing.

    Returns:
        A score a picture, from 0 to 10.

    Raises:
        InputError: If the lengths differ, if a picture has no reference, or if a string stands for a list.

    References:
        Vedantam, Lawrence Zitnick, Parikh (2015), CIDEr: Consensus-based image description evaluation, section 8.

    Example:
        >>> references = [["a red bus stops here", "one red bus"], ["two dogs run on grass", "dogs run"]]
        >>> [round(score, 3) for score in cider_d(["a red bus stops here", "a dog"], references)]
        [6.029, 0.0]
    """
    _refuse_text("references", references, "a list of references for each picture")
    _refuse_text("corpus", () if corpus is None else corpus, "a list of references for each picture")
    if isinstance(captions, str):
        raise InputError(f"captions must hold one caption a picture, got a string: {captions!r}")
    if len(captions) != len(references):
        raise InputError(
            f"there are {len(captions)} captions and {len(references)} sets of references; give one for each"
        )
    for index, several in enumerate(references):
        if not several:
            raise InputError(f"references: picture {index} has none; give one at least, or leave the picture out")
    counted = [[_ngrams(_words(reference)) for reference in several] for several in references]
    documents = (
        counted if corpus is None else [[_ngrams(_words(reference)) for reference in several] for several in corpus]
    )
    frequency = Counter(ngram for several in documents for ngram in set().union(*several))
    log_total = math.log(max(len(documents), 1))

    def vector(
        counts: Counter[tuple[Hashable, ...]],
    ) -> tuple[list[dict[tuple[Hashable, ...], float]], list[float], int]:
        weighted: list[dict[tuple[Hashable, ...], float]] = [{} for _ in range(_LONGEST)]
        for ngram, count in counts.items():
            weighted[len(ngram) - 1][ngram] = count * (log_total - math.log(max(1, frequency[ngram])))
        norms = [math.sqrt(sum(weight**2 for weight in each.values())) for each in weighted]
        return weighted, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)

    scores = []
    for caption, human in zip(captions, counted, strict=True):
        ours, our_norms, our_length = vector(_ngrams(_words(caption)))
        total = 0.0
        for counts in human:
            theirs, their_norms, their_length = vector(counts)
            penalty = math.exp(-((our_length - their_length) ** 2) / (2 * _SIGMA**2))
            for n in range(_LONGEST):
                norm = our_norms[n] * their_norms[n]
                if norm > 0:
                    common = sum(min(w, theirs[n][g]) * theirs[n][g] for g, w in ours[n].items() if g in theirs[n])
                    total += penalty * common / norm
        scores.append(10 * total / (_LONGEST * len(human)))
    return scores


def oracle_cider_d(
    captions: Sequence[Sequence[Caption | str]],
    references: Sequence[Sequence[Caption | str]],
    corpus: Sequence[Sequence[Caption | str]] | None = None,
) -> float:
    """The mean over the pictures of the best CIDEr-D that a member has.

    Args:
        captions: Of each member, one a picture.
        references: One or more for each picture.
        corpus: As in `cider_d`.

    Returns:
        From 0 to 10; captions of photographs come to about 1.

    Raises:
        InputError: As in `cider_d`, and if there is no member or no picture.

    References:
        Lee and others (2016), section 4.3 and table 1.

    Example:
        >>> references = [["a red bus", "one red bus"], ["two dogs run", "dogs run"]]
        >>> round(oracle_cider_d([["a red bus", "a cat"], ["a cat", "dogs run"]], references), 2)
        4.79
    """
    if not captions or not references:
        raise InputError(f"there are {len(captions)} members and {len(references)} pictures; give one at least of each")
    members = [cider_d(each, references, corpus) for each in captions]
    best: list[float] = [max(scores) for scores in zip(*members, strict=True)]
    return sum(best) / len(best)


def distinct_ngrams(captions: Sequence[Sequence[Caption | str]], n: int = 1) -> int:
    """How many different n-grams there are in the captions of all members together.

    Args:
        captions: Of each member, one a picture.
        n: Words in a row.

    Returns:
        Their number.

    Raises:
        InputError: If n is less than 1, or if a string stands for a member's list.

    References:
        Lee and others (2016), table 1.

    Example:
        >>> distinct_ngrams([["a red bus", "a dog"], ["a red bus", "the dog"]], n=2)
        4
    """
    if n < 1:
        raise InputError(f"n is {n}; an n-gram has one word at least")
    _refuse_text("captions", captions, "a list of captions for each member")
    return len(
        {ngram for each in captions for caption in each for ngram in _ngrams(_words(caption), n) if len(ngram) == n}
    )


def mean_length(captions: Sequence[Sequence[Caption | str]]) -> float:
    """The mean number of words in the captions of all members.

    Args:
        captions: Of each member, one a picture.

    Returns:
        The mean.

    Raises:
        InputError: If there is no caption, or if a string stands for a member's list.

    References:
        Lee and others (2016), table 1.

    Example:
        >>> mean_length([["a red bus", "a dog"]])
        2.5
    """
    _refuse_text("captions", captions, "a list of captions for each member")
    lengths = [len(_words(caption)) for each in captions for caption in each]
    if not lengths:
        raise InputError("captions is empty; give one caption at least")
    return sum(lengths) / len(lengths)


def assignment_matrix(winners: Tensor, labels: Tensor, classes: int | None = None) -> Tensor:
    """Which share of each class's examples goes to each member.

    Args:
        winners: A boolean mask, ``(members, examples)``, as `counterflow.choice.winners` gives it.
        labels: The examples' classes, ``(examples,)``.
        classes: How many there are; the highest label and one by default.

    Returns:
        ``(classes, members)``; each row sums to 1, and that of a class without examples is NaN.

    Raises:
        ShapeError: If the shapes do not fit.
        InputError: If a label is no integer between 0 and ``classes`` - 1.

    References:
        Lee and others (2016), figures 4c to 4f and 5b.

    Example:
        >>> mask = torch.tensor([[True, False, True], [False, True, False]])
        >>> assignment_matrix(mask, torch.tensor([0, 1, 1]))
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    if winners.dim() != 2 or winners.shape[1:] != labels.shape:
        raise ShapeError(
            f"winners has shape {tuple(winners.shape)} and labels {tuple(labels.shape)}; give (members, examples) and "
            "(examples,)"
        )
    labels = _whole("labels", labels)
    if classes is None:
        classes = int(labels.max()) + 1 if labels.numel() else 0
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise InputError(
            f"labels holds {int(labels.min())} to {int(labels.max())}; with {classes} classes, 0 to {classes - 1}"
        )
    counts = torch.zeros(classes, len(winners), dtype=torch.float64, device=winners.device)
    counts.index_add_(0, labels, winners.T.double())
    return counts / counts.sum(1, keepdim=True)


def plot_assignments(
    matrix: Tensor, path: str | Path, classes: Sequence[str] | None = None, title: str = "Who wins which class"
) -> None:
    """Draw an assignment matrix, with its shares in percent in the cells.

    Args:
        matrix: ``(classes, members)``, from `assignment_matrix`.
        path: A file whose name ends in .png, .svg or .pdf.
        classes: Their names; numbers by default.
        title: Above the picture.

    Raises:
        ShapeError: If the matrix has not two dimensions, or not a row for each name.
        InputError: If no such file can be written.
        MissingExtraError: If matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> matrix = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_assignments(matrix, Path(folder) / "wins.svg", ["cat", "dog"])
    """
    names = [str(index) for index in range(len(matrix))] if classes is None else list(classes)
    if matrix.dim() != 2 or len(names) != len(matrix):
        raise ShapeError(f"matrix has shape {tuple(matrix.shape)}; give (classes, members), and a name for each class")
    target = require_picture(path, "drawing an assignment matrix")
    from matplotlib.figure import Figure

    members = matrix.shape[1]
    figure = Figure(figsize=(2.5 + 0.8 * members, 1.5 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * matrix.cpu().numpy(), cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for row, shares in enumerate(matrix.tolist()):
        for column, share in enumerate(shares):
            if share == share:
                axes.text(
                    column, row, f"{100 * share:.1f}", ha="center", va="center", color="w" if share < 0.6 else "k"
                )
    axes.set_xticks(range(members), [f"member {index}" for index in range(members)])
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="% of the class's examples")
    write_picture(figure, target, 150)
