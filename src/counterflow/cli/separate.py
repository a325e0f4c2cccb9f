"""``counterflow separate``: the sources of a recording with several microphones."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from counterflow.cli.recordings import in_folders, require_heard
from counterflow.cli.targets import (
    json_file,
    require_apart,
    require_folder,
    require_json,
    require_model,
    require_plot,
    require_seed,
    require_unread,
    write_json,
)
from counterflow.exceptions import CounterflowError, DataError, DivergenceError, InputError, MissingExtraError
from counterflow.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from counterflow.separation import WordClassifier

__all__ = ["separate_command"]

CLIPPED = 0.001  # share of samples at full scale
LARGEST_DB = 150.0  # of SDR and SIR, which would be infinite for a reference that is found to the bit
FILTER = 512  # taps by which a reference may be filtered before what is left counts as error


def separate_command(
    action: Annotated[Literal["run", "train"], tyro.conf.Positional],
    path: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    attend: Annotated[Path | None, tyro.conf.arg(metavar="MODEL")] = None,
    references: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="WAV...")] = (),
    sources: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    method: Literal["iva", "ica"] | None = None,
    online: bool = False,
    gamma: Annotated[float | None, tyro.conf.arg(metavar="G")] = None,
    passes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    plot: Annotated[Path | None, tyro.conf.arg(metavar="PNG")] = None,
    epochs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    seed: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    json: Annotated[str | None, tyro.conf.arg(metavar="PATH|-")] = None,
) -> int:
    """Separate a recording of two or more microphones into its sources.

    Actions:

      run TWO.WAV --out DIR         DIR gets source-1.wav, source-2.wav, ...: each as the first microphone hears it
      train WORDS --out MODEL       WORDS holds a folder for each word with WAV or FLAC clips of it, of one channel

    Separation is by independent vector analysis (counterflow.separation), and knows nothing of what is said. With
    --attend, a classifier of words that has learned from clean clips says what it expected to hear, and retunes the
    separation; the output that it hears a word in comes first. With --references, files of what each source alone
    leaves at the first microphone, it prints how far SDR and SIR have improved.

    For example:

      counterflow separate run two.wav --out sources --plot before-and-after.png
      counterflow separate train words --out words-model
      counterflow separate run two.wav --out sources --attend words-model

    Exit status: 0; 2 for input that cannot be used: one channel, silence, channels that are copies of each other.

    Args:
        action: What to do.
        path: run: a WAV or FLAC file of two or more channels. train: the folder of words.
        out: run: the folder for the sources, which must not hold more of another run. train: the folder for the model.
        attend: run: a model of train.
        references: run: a file for each source.
        sources: run: how many there are; as many as channels by default. Fewer are sought in the principal components.
        method: run: iva (the default), or ica, the natural gradient.
        online: run: separate as the sound comes, with what was heard so far.
        gamma: run: the weight of attention; 100 by default.
        passes: run: of attention; 5 by default.
        plot: run: draw spectrograms before and after into this file (needs counterflow[plot]).
        epochs: train: passes over the clips; 60 by default.
        seed: train: of all that is random; 0 by default.
        json: Write the answers to this file as JSON; - is standard output.

    Returns:
        The exit status, 0.
    """
    given = {
        "attend": attend, "references": references or None, "sources": sources, "method": method,
        "online": online or None, "gamma": gamma, "passes": passes, "plot": plot, "epochs": epochs, "seed": seed,
    }  # fmt: skip
    allowed = {"train": {"epochs", "seed"}, "run": set(given) - {"epochs", "seed"}}
    for name, value in given.items():
        if value is not None and name not in allowed[action]:
            raise InputError(f"--{name} is not for separate {action}; leave it out")
    if out is None:
        raise InputError(
            f"separate {action} needs --out, the folder for {'the model' if action == 'train' else 'sources'}"
        )
    require_folder(out)
    for name, number, least in (("epochs", epochs, 1), ("sources", sources, 1), ("passes", passes, 0)):
        if number is not None and number < least:
            raise InputError(f"--{name} {number}: it has to be {least} or more")
    if attend is None and not (gamma is None and passes is None):
        raise InputError("--gamma and --passes are of attention; give --attend MODEL, or leave them out")
    if gamma is not None and not gamma >= 0:
        raise InputError(f"--gamma {gamma}: it has to be 0 or more")
    if online and (attend is not None or method == "ica"):
        raise InputError(
            f"--online is without {'--method ica' if attend is None else '--attend'}; leave one of them out"
        )
    require_seed(seed)
    require_json(json)
    require_plot(plot, "drawing spectrograms")
    require_unread([("json", json_file(json)), ("plot", plot)], _read(action, path, attend, references))
    stream = sys.stderr if json == "-" else sys.stdout
    if action == "train":
        from counterflow.separation.classifier import KIND

        require_model(out, KIND, json)
        answer = _train(path, out, epochs or 60, seed or 0, stream)
    else:
        options: dict[str, Any] = {"sources": sources, "method": method or "iva", "online": online}
        if gamma is not None:
            options["gamma"] = gamma
        if passes is not None:
            options["passes"] = passes
        answer = _run(path, out, attend, references, plot, json_file(json), options, stream)
    if json is not None:
        write_json(json, answer)
    return 0


# The verbs


def _train(folder: Path, out: Path, epochs: int, seed: int, stream: Any) -> dict[str, Any]:
    import torch

    from counterflow.separation import WordClassifier
    from counterflow.separation.separating import default_words_transform

    files, words = in_folders(folder, "word", least=2)
    waves, rate = _listen(files)
    transform = default_words_transform(rate)
    spectra = [transform(wave) for wave in waves]
    labels = sorted(set(words))

    def fresh(rows: Sequence[int]) -> WordClassifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = WordClassifier(labels, rate, transform)
        return made.fit([spectra[i] for i in rows], [words[i] for i in rows], epochs=epochs, seed=seed).eval()

    # Every fourth clip of each word is held out once, to say what is to be expected of others.
    count: dict[str, int] = {}
    held = []
    for number, word in enumerate(words):
        count[word] = count.get(word, 0) + 1
        if count[word] % 4 == 0:
            held.append(number)
    accuracy = None
    if held:
        rest = [i for i in range(len(files)) if i not in set(held)]
        answers = fresh(rest).predict([spectra[i] for i in held])
        accuracy = sum(a == words[i] for a, i in zip(answers, held, strict=True)) / len(held)
    fresh(range(len(files))).save(out)
    print(f"{len(labels)} words, {len(files)} clips at {rate} Hz; model: {out}", file=stream)
    if accuracy is None:
        print("no clip could be held out: four of a word are needed", file=stream)
    else:
        print(f"held-out clips: {accuracy:.1%} of {len(held)} right", file=stream)
    return {"words": labels, "clips": len(files), "rate": rate, "held_out": len(held), "held_out_accuracy": accuracy}


def _run(
    file: Path,
    out: Path,
    model: Path | None,
    references: tuple[Path, ...],
    plot: Path | None,
    json: Path | None,
    options: dict[str, Any],
    stream: Any,
) -> dict[str, Any]:
    import torch

    from counterflow.audio import read_channels
    from counterflow.separation import WordClassifier, separate

    # What would be found out at the end is asked before the work.
    if references:
        _metrics()
    classifier = None if model is None else WordClassifier.load(model)
    mixture, rate = read_channels(file)
    clipped = float((mixture.abs() >= 0.999).float().mean())
    if clipped > CLIPPED:
        print(
            f"warning: {clipped:.1%} of the samples of {file} are clipped, which no mixture is; separated as it is",
            file=sys.stderr,
        )
    truth = [_reference(each, rate, mixture.shape[1]) for each in references]
    count = options["sources"] or len(mixture)
    if count > len(mixture):
        raise InputError(f"--sources {count}: {file} has {len(mixture)} channels; ask for 1 to that many")
    if options["online"] and count < len(mixture):
        raise InputError(
            f"--sources {count}: --online finds as many as there are channels, {len(mixture)}; leave it out"
        )
    if truth and len(truth) != count:
        raise InputError(f"--references names {len(truth)} files, and there are {count} sources; give one for each")
    if len(truth) == 1:
        raise InputError("SIR of one source is not defined; give two references or more, or none")
    names = [out / f"source-{number}.wav" for number in range(1, count + 1)]
    for name in names:
        if name.exists() and any(name.samefile(each) for each in (file, *references)):
            raise InputError(f"--out {out}: {name} is what is read; name another folder")
        if name.exists() and not name.is_file():
            raise InputError(f"--out {out}: {name} is no file; name another folder")
    for name in out.glob("source-*.wav"):
        if name not in names and re.fullmatch(r"source-[1-9]\d*", name.stem):
            raise InputError(f"--out {out}: {name} is of more sources than {count}; remove it, or name another folder")
    require_apart([("plot", plot), ("json", json), *(("out", name) for name in names)])
    try:
        with torch.no_grad():
            found = separate(mixture, rate, attend=classifier, **options)
    except DivergenceError as error:
        if options["method"] == "ica":
            raise DivergenceError(f"{file}: --method ica diverges on it; take --method iva") from error
        raise DivergenceError(
            f"{file}: it holds fewer than {count} sources; ask for fewer, --sources 2 say, or leave channels out"
        ) from error
    except CounterflowError as error:
        raise type(error)(f"{file}: {error}") from error
    _write_together(names, found, rate)
    answer: dict[str, Any] = {
        "file": str(file),
        "rate": rate,
        "channels": len(mixture),
        "clipped": clipped,
        "sources": [str(name) for name in names],
    }
    print(f"{file}: {len(mixture)} channels, {mixture.shape[1] / rate:.2f} s at {rate} Hz", file=stream)
    for name in names:
        print(name, file=stream)
    if classifier is not None:
        word, sure = _heard(classifier, found[0])
        answer |= {"word": word, "confidence": sure}
        print(f"heard in source 1: {word} (confidence {sure:.2f})", file=stream)
    if truth:
        rows = _improvement(torch.stack(truth), found, mixture[0])
        answer["improvement"] = rows
        for row in rows:
            print(
                f"{references[row['reference'] - 1]}: source {row['source']}, SDR {row['sdr']:.1f} dB "
                f"({row['sdr_improvement']:+.1f}), SIR {row['sir']:.1f} dB ({row['sir_improvement']:+.1f})",
                file=stream,
            )
    if plot is not None:
        _draw(plot, mixture, found, rate)
        answer["plot"] = str(plot)
        print(f"spectrograms: {plot}", file=stream)
    return answer


# What they share


def _read(action: str, path: Path, model: Path | None, references: Sequence[Path]) -> Iterator[Path]:
    """All files that are read."""
    from counterflow.persist import model_files

    if action == "train":
        yield from in_folders(path, "word", least=2)[0]
    else:
        yield from (path, *references, *([] if model is None else model_files(model)))


def _write_together(names: Sequence[Path], waves: Tensor, rate: int) -> None:
    """All files, or none of them: each gets its name once the last is whole."""
    from counterflow.audio import write

    folder = names[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            for name, wave in zip(names, waves, strict=True):
                write(stack.enter_context(replacing(name.resolve())), wave, rate)
    except OSError as error:
        raise InputError(f"--out {folder}: it cannot be written: {error.strerror or error}") from error


def _listen(files: Sequence[Path]) -> tuple[list[Tensor], int]:
    from counterflow.audio import read

    waves: list[Tensor] = []
    rate = 0
    for file in files:
        wave, found = read(file)
        rate = rate or found
        require_heard(file, wave, found, rate, files[0], 0.1)
        waves.append(wave)
    return waves, rate


def _reference(file: Path, rate: int, samples: int) -> Tensor:
    from counterflow.audio import read_channels
    from counterflow.audio.files import is_silent

    wave, found = read_channels(file)
    if found != rate or wave.shape[1] != samples:
        raise DataError(
            f"{file} has {wave.shape[1]} samples at {found} Hz, the mixture {samples} at {rate}; they must be alike"
        )
    if is_silent(wave[0]):
        raise DataError(f"{file} is silent; a reference is what its source leaves at the first microphone")
    return wave[0]


def _heard(classifier: WordClassifier, wave: Tensor) -> tuple[str, float]:
    import torch

    from counterflow.separation import confidence

    spectrum = classifier.transform(wave)[None]
    with torch.no_grad():
        outputs = classifier(spectrum, torch.tensor([spectrum.shape[-1]]))
    return classifier.labels[int(outputs.argmax())], float(confidence(outputs)[0])


def _improvement(truth: Tensor, found: Tensor, mixture: Tensor) -> list[dict[str, Any]]:
    """For each reference its best source, SDR and SIR in decibels, and how far both are above the mixture's."""
    fast_bss_eval = _metrics()
    options: dict[str, Any] = {"filter_length": FILTER, "load_diag": 1e-10, "clamp_db": LARGEST_DB}
    sdr, sir, _, order = fast_bss_eval.bss_eval_sources(truth.double(), found.double(), **options)
    heard = mixture.double().expand(len(truth), -1)
    before_sdr, before_sir, _ = fast_bss_eval.bss_eval_sources(
        truth.double(), heard, compute_permutation=False, **options
    )
    return [
        {
            "reference": number + 1,
            "source": int(order[number]) + 1,
            "sdr": float(sdr[number]),
            "sdr_improvement": float(sdr[number] - before_sdr[number]),
            "sir": float(sir[number]),
            "sir_improvement": float(sir[number] - before_sir[number]),
        }
        for number in range(len(truth))
    ]


def _metrics() -> Any:
    try:
        import fast_bss_eval
    except ImportError as error:
        raise MissingExtraError("audio", "SDR and SIR") from error
    return fast_bss_eval


def _draw(path: Path, mixture: Tensor, found: Tensor, rate: int) -> None:
    from matplotlib.figure import Figure

    from counterflow.audio import ShortTime
    from counterflow.pictures import write_picture

    size = 1 << (max(round(0.032 * rate), 16) - 1).bit_length()
    transform = ShortTime(size, size // 4, "hann")
    waves = [*mixture, *found]
    titles = [f"microphone {n}" for n in range(1, len(mixture) + 1)] + [f"source {n}" for n in range(1, len(found) + 1)]
    figure = Figure(figsize=(9, 1.8 * len(waves)), layout="constrained")
    grid = figure.subplots(len(waves), 1, sharex=True, sharey=True)
    levels = [20 * (transform(wave).abs() + 1e-9).log10().numpy() for wave in waves]
    top = max(float(level.max()) for level in levels)
    extent = (0.0, mixture.shape[1] / rate, 0.0, rate / 2000)
    for axes, level, title in zip(grid, levels, titles, strict=True):
        picture = axes.imshow(
            level,
            origin="lower",
            aspect="auto",
            extent=extent,
            vmin=top - 80,
            vmax=top,
            cmap="magma",
            interpolation="none",
        )
        axes.set_title(title, loc="left", fontsize="small")
        axes.set_ylabel("kHz")
    grid[-1].set_xlabel("s")
    figure.colorbar(picture, ax=grid, label="dB")
    write_picture(figure, path, 120)
