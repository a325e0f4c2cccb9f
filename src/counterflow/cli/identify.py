"""``counterflow identify``: who speaks in a file, by relative density nets."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from counterflow.cli.console import counted
from counterflow.cli.recordings import in_folders, require_heard
from counterflow.cli.targets import (
    json_file,
    require_apart,
    require_json,
    require_model,
    require_plot,
    require_seed,
    require_unread,
    write_json,
)
from counterflow.exceptions import InputError, MissingExtraError
from counterflow.pictures import write_picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from counterflow.density import RelativeDensityClassifier

__all__ = ["identify_command"]

KIND = "speaker identification"
FOLDS = 3
BAUM_WELCH = 5  # steps by which the models are fitted to speakers before the net learns
FEATURES = "cosine transform of log mel"
PIECE = 1000  # frames of 10 ms: longer recordings are learned from in pieces, which lie side by side in less memory
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Identifier:
    """A classifier of speakers with all that a file must be to be heard by it."""

    classifier: RelativeDensityClassifier
    rate: int
    n_mels: int
    threshold: float


def identify_command(
    action: Annotated[Literal["train", "run", "evaluate"], tyro.conf.Positional],
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")],
    /,
    *,
    out: Annotated[Path | None, tyro.conf.arg(metavar="MODEL")] = None,
    models: Annotated[int | None, tyro.conf.arg(metavar="M")] = None,
    states: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    iterations: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    mels: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    reject: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None,
    seed: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    plot: Annotated[Path | None, tyro.conf.arg(metavar="PNG")] = None,
    json: Annotated[str | None, tyro.conf.arg(metavar="PATH|-")] = None,
) -> int:
    """Tell who speaks, from a folder of recordings for each speaker.

    Actions:

      train DIR --out MODEL    DIR holds a folder for each speaker with WAV or FLAC files in it
      run MODEL FILE...        for each file, a speaker and its probability; unknown below the model's threshold
      evaluate MODEL DIR       how often it is right on other recordings in such folders, and a confusion matrix

    Recordings become 24 log mel features every 10 ms, whose cosine transform a relative density net
    (counterflow.density) learns to tell the speakers by; recordings beyond 10 s are learned from in pieces. Training
    also holds out a third of each speaker's files in turn: from the answers to those come the accuracy that it prints
    and the threshold below which an answer is unknown. It warns where a linear classifier on the mean spectrum does as
    well: then it may hear microphones, not voices.

    For example:

      counterflow identify train voices --out voices-model
      counterflow identify run voices-model call.wav
      counterflow identify evaluate voices-model other-voices --plot confusion.png

    Exit status: 0; 2 for input that cannot be used: audio that cannot be read, mixed rates, silence, one speaker.

    Args:
        action: What to do.
        paths: train: DIR. run: MODEL FILE... evaluate: MODEL DIR.
        out: train: the folder for the model.
        models: train: hidden Markov models; by default as many as speakers, 16 or more.
        states: train: states of each; 4 by default.
        iterations: train: conjugate-gradient iterations; 30 by default (the paper has 90).
        mels: train: mel filters; 24 by default.
        reject: train: the share of right answers to held-out files that the threshold turns into unknown; 0.05 by
            default.
        seed: train: of all that is random; 0 by default.
        plot: evaluate: draw the confusion matrix into this file (needs counterflow[plot]).
        json: Write the answers to this file as JSON; - is standard output.

    Returns:
        The exit status, 0.
    """
    given = {
        "out": out, "models": models, "states": states, "iterations": iterations, "mels": mels, "reject": reject,
        "seed": seed, "plot": plot,
    }  # fmt: skip
    allowed = {"train": {"out", "models", "states", "iterations", "mels", "reject", "seed"}, "evaluate": {"plot"}}
    for name, value in given.items():
        if value is not None and name not in allowed.get(action, ()):
            raise InputError(f"--{name} is not for identify {action}; leave it out")
    require_json(json)
    require_seed(seed)
    stream = sys.stderr if json == "-" else sys.stdout
    if action == "train":
        if len(paths) != 1:
            raise InputError(f"identify train takes one folder, got {len(paths)}; type: identify train DIR --out MODEL")
        if out is None:
            raise InputError("identify train needs --out MODEL, the folder for the model")
        for name in ("models", "states", "iterations", "mels"):
            value = given[name]
            least = 3 if name == "models" else 1
            if isinstance(value, int) and value < least:
                raise InputError(f"--{name} {value}: it has to be {least} or more")
        share = 0.05 if reject is None else reject
        if not 0 <= share < 1:
            raise InputError(f"--reject {share}: it has to be from 0 to below 1")
        require_unread([("json", json_file(json))], _read(action, paths))
        require_model(out, KIND, json)
        sizes = {"states": states or 4, "iterations": iterations or 30, "mels": mels or 24}
        answer = _train(paths[0], out, share, seed or 0, stream, models=models, **sizes)
    else:
        what = "MODEL FILE..." if action == "run" else "MODEL DIR"
        if len(paths) < 2 or (action == "evaluate" and len(paths) > 2):
            raise InputError(f"identify {action} takes {what}, got {counted(len(paths), 'path')}")
        require_plot(plot, "drawing the confusion matrix")
        written = [("plot", plot), ("json", json_file(json))]
        require_apart(written)
        require_unread(written, _read(action, paths))
        identifier = _load(paths[0])
        if action == "run":
            answer = _run(identifier, paths[1:], stream)
        else:
            answer = _evaluate(identifier, paths[1], plot, stream)
    if json is not None:
        write_json(json, answer)
    return 0


# The verbs


def _train(
    folder: Path,
    out: Path,
    reject: float,
    seed: int,
    stream: Any,
    *,
    models: int | None,
    states: int,
    iterations: int,
    mels: int,
) -> dict[str, Any]:
    import numpy as np

    from counterflow import persist
    from counterflow.density import RelativeDensityClassifier

    files, labels = _recordings(folder, 2)
    counts = Counter(labels)
    few = [name for name, count in counts.items() if count < 2]
    if few:
        raise InputError(f"{folder / few[0]} holds one recording; two or more are needed, so that one can be held out")
    sequences, rate = _listen(files, None, mels)
    names = np.asarray(labels)

    def fresh() -> RelativeDensityClassifier:
        return RelativeDensityClassifier(
            max(16, len(counts)) if models is None else models,
            states,
            iterations=iterations,
            baum_welch=BAUM_WELCH,
            random_state=seed,
        )

    held = np.zeros((len(files), len(counts)))
    linear = np.zeros(len(files), bool)
    fold = _folds(labels, seed)
    for number in range(FOLDS):
        test = fold == number
        if not test.any():
            continue
        training = [each for each, out_now in zip(sequences, test, strict=True) if not out_now]
        testing = [each for each, out_now in zip(sequences, test, strict=True) if out_now]
        held[test] = fresh().fit(*_pieces(training, names[~test])).predict_proba(testing)
        linear[test] = _mean_spectrum(training, names[~test], testing) == names[test]
    classes = np.unique(names)
    right = classes[held.argmax(1)] == names
    sure = held.max(1)
    threshold = float(np.quantile(sure[right], reject)) if right.any() else 0.0
    classifier = fresh().fit(*_pieces(sequences, names))
    config, tensors = classifier._stored()
    about = {"classifier": config, "features": FEATURES, "rate": rate, "n_mels": mels, "threshold": threshold}
    persist.save(out, KIND, about, tensors)
    accuracy, baseline = float(right.mean()), float(linear.mean())
    print(f"{len(counts)} speakers, {len(files)} recordings at {rate} Hz; model: {out}", file=stream)
    print(
        f"held-out recordings: {accuracy:.1%} right; a linear classifier on the mean spectrum {baseline:.1%}",
        file=stream,
    )
    print(f"an answer below a probability of {threshold:.3f} is {UNKNOWN}", file=stream)
    warning = baseline >= accuracy
    if warning:
        print(
            "warning: the mean spectrum tells the speakers as well; the model may hear microphones, not voices",
            file=sys.stderr,
        )
    return {
        "speakers": dict(counts), "recordings": len(files), "rate": rate, "held_out_accuracy": accuracy,
        "mean_spectrum_accuracy": baseline, "mean_spectrum_does_as_well": warning, "threshold": threshold,
        "evaluations": classifier.training_.evaluations,
    }  # fmt: skip


def _run(identifier: Identifier, files: Sequence[Path], stream: Any) -> dict[str, Any]:
    answers = []
    width = max(len(str(file)) for file in files)
    for file, probability in zip(files, _probabilities(identifier, files), strict=True):
        likeliest = identifier.classifier.classes_[probability.argmax()].item()
        speaker = likeliest if probability.max() >= identifier.threshold else UNKNOWN
        remark = f"  (likeliest: {likeliest})" if speaker == UNKNOWN else ""
        print(f"{file!s:{width}}  {speaker}  {probability.max():.3f}{remark}", file=stream)
        every = dict(zip(identifier.classifier.classes_.tolist(), probability.tolist(), strict=True))
        answers.append(
            {"file": str(file), "speaker": speaker, "probability": float(probability.max()), "probabilities": every}
        )
    return {"threshold": identifier.threshold, "answers": answers}


def _evaluate(identifier: Identifier, folder: Path, plot: Path | None, stream: Any) -> dict[str, Any]:
    import numpy as np

    files, labels = _recordings(folder, 1)
    found = _probabilities(identifier, files)
    known = identifier.classifier.classes_.tolist()
    answers = [known[row.argmax()] if row.max() >= identifier.threshold else UNKNOWN for row in found]
    rows = sorted({*labels})
    columns = [*known, UNKNOWN]
    matrix = np.zeros((len(rows), len(columns)), int)
    for label, answer in zip(labels, answers, strict=True):
        matrix[rows.index(label), columns.index(answer)] += 1
    enrolled = np.array([label in known for label in labels])
    forced = np.array([known[row.argmax()] == label for row, label in zip(found, labels, strict=True)])
    right = np.array([answer == label for answer, label in zip(answers, labels, strict=True)])
    unknown = np.array([answer == UNKNOWN for answer in answers])
    width = max(len(name) for name in [*rows, *columns]) + 1
    print(f"{'':{width}}{''.join(f'{name:>{width}}' for name in columns)}", file=stream)
    for name, row in zip(rows, matrix, strict=True):
        print(f"{name:{width}}{''.join(f'{count:>{width}}' for count in row)}", file=stream)
    result: dict[str, Any] = {"rows": rows, "columns": columns, "matrix": matrix.tolist(), "accuracy": None}
    if enrolled.any():
        result["accuracy"] = float(right[enrolled].mean())
        result["accuracy_without_unknown"] = float(forced[enrolled].mean())
        result["unknown"] = float(unknown[enrolled].mean())
        print(
            f"of {counted(int(enrolled.sum()), 'recording')} of enrolled speakers {result['accuracy']:.1%} right, "
            f"{result['unknown']:.1%} {UNKNOWN}; without that answer {result['accuracy_without_unknown']:.1%} right",
            file=stream,
        )
    if not enrolled.all():
        result["strangers_unknown"] = float(unknown[~enrolled].mean())
        print(
            f"of {counted(int((~enrolled).sum()), 'recording')} of others {result['strangers_unknown']:.1%} {UNKNOWN}",
            file=stream,
        )
    if plot is not None:
        _draw(plot, matrix, rows, columns)
        print(f"confusion matrix: {plot}", file=stream)
    return result


# What they share


def _read(action: str, paths: Sequence[Path]) -> Iterator[Path]:
    """All files that are read."""
    from counterflow.persist import model_files

    if action != "train":
        yield from model_files(paths[0])
    yield from paths[1:] if action == "run" else _recordings(paths[-1], 1)[0]


def _recordings(folder: Path, least: int) -> tuple[list[Path], list[str]]:
    """The files and their speakers, in order."""
    files, labels = in_folders(folder, "speaker", least=least)
    if UNKNOWN in labels:
        raise InputError(f"{folder / UNKNOWN}: {UNKNOWN!r} is what answers without a speaker say; rename the folder")
    return files, labels


def _listen(files: Sequence[Path], rate: int | None, n_mels: int) -> tuple[list[NDArray[np.float64]], int]:
    """Features of files that all have one rate, that of the first if none is asked for."""
    from scipy.fft import dct

    from counterflow.audio import log_mel, read

    features = []
    wanted, first = rate, "the model"
    for file in files:
        wave, found = read(file)
        if wanted is None:
            wanted, first = found, str(file)
        require_heard(file, wave, found, wanted, first, 0.1)
        # Variances along the axes fit what the transform has made nearly uncorrelated.
        features.append(dct(log_mel(wave.double(), found, n_mels).numpy(), norm="ortho"))
    assert wanted is not None
    return features, wanted


def _pieces(
    sequences: Sequence[NDArray[np.float64]], labels: NDArray[np.str_]
) -> tuple[list[NDArray[np.float64]], NDArray[np.str_]]:
    """Long recordings in pieces of equal length, each with its speaker."""
    import numpy as np

    cut = [np.array_split(each, -(-len(each) // PIECE)) for each in sequences]
    return [piece for pieces in cut for piece in pieces], np.repeat(labels, [len(pieces) for pieces in cut])


def _folds(labels: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A fold for each file, each speaker's files spread over all."""
    import numpy as np

    random = np.random.default_rng(seed)
    fold = np.zeros(len(labels), np.int64)
    names = np.asarray(labels)
    for name in np.unique(names):
        mine = np.flatnonzero(names == name)
        fold[random.permutation(mine)] = np.arange(len(mine)) % FOLDS
    return fold


def _mean_spectrum(
    training: Sequence[NDArray[np.float64]], labels: NDArray[np.str_], testing: Sequence[NDArray[np.float64]]
) -> NDArray[np.str_]:
    """What a linear classifier on each recording's mean log mel spectrum says."""
    import numpy as np

    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError("audio", "the comparison with the mean spectrum") from error
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    linear.fit(np.array([each.mean(0) for each in training]), labels)
    found: NDArray[np.str_] = linear.predict(np.array([each.mean(0) for each in testing]))
    return found


def _load(folder: Path) -> Identifier:
    from counterflow import persist
    from counterflow.density import RelativeDensityClassifier

    config, tensors = persist.load(folder, KIND)
    try:
        features, stored = config["features"], config["classifier"]
        rate, n_mels, threshold = int(config["rate"]), int(config["n_mels"]), float(config["threshold"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the model in {folder} is damaged: {error}; train it again") from error
    if features != FEATURES:
        raise InputError(f"the model in {folder} hears {features!r}, not {FEATURES!r}; train it again")
    classifier = RelativeDensityClassifier._restored(stored, tensors, str(folder))
    if n_mels != classifier.n_features_in_:
        heard = classifier.n_features_in_
        raise InputError(f"the model in {folder} is damaged: it hears {heard} features of {n_mels}; train it again")
    return Identifier(classifier, rate, n_mels, threshold)


def _probabilities(identifier: Identifier, files: Sequence[Path]) -> NDArray[np.float64]:
    sequences, _ = _listen(files, identifier.rate, identifier.n_mels)
    return identifier.classifier.predict_proba(sequences)


def _draw(path: Path, matrix: NDArray[Any], rows: Sequence[str], columns: Sequence[str]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 0.5 * len(columns), 1.6 + 0.5 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(matrix / matrix.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            if count:
                color = "white" if count > 0.6 * row.sum() else "black"
                axes.text(j, i, str(count), ha="center", va="center", color=color)
    # Folders have any name: $ would begin a formula, and what is not UTF-8 has no letters to draw.
    across, down = ([each.encode("utf-8", "backslashreplace").decode() for each in names] for names in (columns, rows))
    axes.set_xticks(range(len(columns)), across, rotation=90, parse_math=False)
    axes.set_yticks(range(len(rows)), down, parse_math=False)
    axes.set_xlabel("answer")
    axes.set_ylabel("speaker")
    write_picture(figure, path, 150)
