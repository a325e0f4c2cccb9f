"""Isolated words, emotional speech and noises: each clip has a class, and its speaker if there is one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from counterflow.exceptions import DataError
from counterflow.lab.data.archives import archive_members
from counterflow.lab.data.audio import read_audio
from counterflow.lab.data.checksums import verified
from counterflow.lab.data.locate import provide
from counterflow.lab.data.sequences import Clip, Phone, Sequences
from counterflow.lab.data.splits import drawn_split

__all__ = ["emodb", "fsdd", "noise"]


def fsdd() -> Sequences:
    """The Free Spoken Digit Dataset: 3,000 digits in English, 6 speakers, 8 kHz, with the official split.

    It is read from ``fsdd/fsdd.npz`` or from the archive of its publisher's repository.

    Returns:
        Clips by digit, speaker and index; ``label`` is the digit. The speakers are the same in both splits:
        index 0 to 4 of each digit and speaker is for testing.

    Raises:
        DataNotFoundError: It is not on this machine.
        DataError: A file is damaged, or not what was published.
        MissingExtraError: The publisher's files are to be read, and soundfile is not installed.

    References:
        Z. Jackson et al., Free Spoken Digit Dataset, https://github.com/Jakobovski/free-spoken-digit-dataset.
    """
    found = provide("fsdd")
    read = {"npz": _fsdd_npz, "wav archive": _fsdd_archive}[found.form.format]
    return verified("fsdd", read(found.paths[0]), found.form)


def emodb() -> Sequences:
    """Berlin emotional speech: ten German sentences in seven emotions, 16 kHz, with phone labels.

    It is read from ``emodb/`` or from its publisher's ``download.zip``; ours holds 8 of the 10 speakers, cut
    at 2.0 s. It has no split of its own. One is drawn, once and for all: one woman and one man are for
    testing.

    Returns:
        Clips by name; ``label`` is the emotion, ``complete`` whether the clip is whole. ``phones`` end with
        the clip.

    Raises:
        DataNotFoundError: It is not on this machine.
        DataError: A file is damaged, or not what was published.
        MissingExtraError: soundfile is not installed.

    References:
        F. Burkhardt, A. Paeschke, M. Rolfes, W. Sendlmeier, B. Weiss, A database of German emotional speech,
        Interspeech 2005.
    """
    found = provide("emodb")
    read = {"flac": _emodb_flac, "wav archive": _emodb_archive}[found.form.format]
    return verified("emodb", read(found.paths), found.form)


def noise() -> Sequences:
    """Ten noises of 18 to 60 seconds, 16 kHz: car, street, engine, machine, leopard (a vehicle), and others.

    It is read from ``noise/``, or, two of the ten only, from the Speech Commands archive. It has no split of
    its own. One is drawn, once and for all: three noises are for testing.

    Returns:
        Clips by name; ``label`` is the noise. Levels are as found and differ by 40 dB: normalize them.

    Raises:
        DataNotFoundError: It is not on this machine.
        DataError: A file is damaged, or not what was published.
        MissingExtraError: soundfile is not installed.

    References:
        A. Varga, H. J. M. Steeneken, Assessment for automatic speech recognition: II. NOISEX-92, Speech
        Communication 12, 1993; P. Warden, Speech Commands, arXiv:1804.03209, 2018.
    """
    found = provide("noise")
    read = {"flac": _noise_flac, "speech commands": _noise_archive}[found.form.format]
    return verified("noise", read(found.paths), found.form)


# the Free Spoken Digit Dataset

_FSDD_TEST = 5  # of the 50 of each digit and speaker, as its publisher states


def _fsdd_npz(path: Path) -> Sequences:
    with np.load(path, allow_pickle=False) as archive:
        names = archive["speaker_names"].tolist()
        facts = zip(*(archive[key].tolist() for key in ("digit", "speaker", "index")), strict=True)
        clips = [_fsdd_clip(digit, names[speaker], index) for digit, speaker, index in facts]
        return Sequences(
            "fsdd", int(archive["sample_rate"]), archive["audio"], archive["offsets"].astype(np.int64), tuple(clips)
        )


def _fsdd_archive(path: Path) -> Sequences:
    """``recordings/DIGIT_SPEAKER_INDEX.wav`` in a folder that is named for the release."""
    found = {}
    for name, content in archive_members(path, lambda name: name.parent.name == "recordings"):
        if match := re.fullmatch(r"(\d)_([a-z]+)_(\d+)\.wav", name.name):
            key = int(match[1]), match[2], int(match[3])
            found[key] = read_audio(content, 8000, called=f"{path}: {name}")
    if not found:
        raise DataError(f"{path} is not the spoken digits' archive: it holds no recordings/DIGIT_SPEAKER_INDEX.wav")
    keys = sorted(found)
    return Sequences.joined("fsdd", 8000, [found[key] for key in keys], [_fsdd_clip(*key) for key in keys])


def _fsdd_clip(digit: int, speaker: str, index: int) -> Clip:
    return Clip(
        id=f"{digit}_{speaker}_{index}",
        split="test" if index < _FSDD_TEST else "train",
        speaker=speaker,
        label=str(digit),
    )


# Berlin emotional speech

EMOTIONS = {
    "W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "T": "sadness", "N": "neutral",
}  # fmt: skip
_GENDERS = {
    "03": "m", "08": "f", "09": "f", "10": "m", "11": "m", "12": "m", "13": "f", "14": "f", "15": "m", "16": "f",
}  # fmt: skip
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
# The test speakers of the split, drawn from the eight that every form holds: named, so that it is the same
# split in all forms.
_EMODB_SHARED = ("03", "08", "11", "12", "13", "14", "15", "16")
_EMODB_TEST = tuple(
    speaker
    for speaker, side in zip(
        _EMODB_SHARED, drawn_split(_EMODB_SHARED, 1, strata=[_GENDERS[s] for s in _EMODB_SHARED]), strict=True
    )
    if side == "test"
)


def _emodb_flac(paths: Sequence[Path]) -> Sequences:
    (table,) = (path for path in paths if path.suffix == ".jsonl")
    arrays, clips = [], []
    for row in map(json.loads, table.read_text(encoding="utf-8").splitlines()):
        samples = read_audio(table.parent / "flac" / f"{row['id']}.flac", 16000)
        phones = row["phones"] and tuple(Phone(*phone) for phone in row["phones"])
        arrays.append(samples)
        clips.append(_emodb_clip(row["id"], phones, len(samples), complete=row["complete"]))
    return Sequences.joined("emodb", 16000, arrays, clips)


def _emodb_archive(paths: Sequence[Path]) -> Sequences:
    """``wav/ID.wav`` and ``lablaut/IDxx.lablaut``, some of them without labels."""
    (path,) = paths
    audio, labels = {}, {}
    for name, content in archive_members(path, lambda name: name.suffix in (".wav", ".lablaut")):
        if match := re.fullmatch(r"(\d\d[ab]\d\d[A-Z][a-z]?)\w*", name.stem):
            if name.suffix == ".wav":
                audio[match[1]] = read_audio(content, 16000, called=f"{path}: {name}")
            else:
                labels[match[1].removesuffix("x")] = _read_lablaut(content, f"{path}: {name}")
    if not audio:
        raise DataError(f"{path} is not the archive of Berlin emotional speech: it holds no wav/03a01Fa.wav")
    clips = []
    for id in sorted(audio):
        length = len(audio[id])
        phones = emodb_phones(labels[id], length / 16000) if id in labels else None
        clips.append(_emodb_clip(id, phones, length, complete=True))
    return Sequences.joined("emodb", 16000, [audio[id] for id in sorted(audio)], clips)


def _emodb_clip(id: str, phones: tuple[Phone, ...] | None, length: int, *, complete: bool) -> Clip:
    speaker, sentence, emotion = id[:2], id[2:5], id[5]
    if speaker not in _GENDERS or sentence not in SENTENCES or emotion not in EMOTIONS:
        raise DataError(f"{id} does not name a speaker, a sentence and an emotion of Berlin emotional speech")
    end = length / 16000
    if phones is not None:
        phones = tuple(Phone(p.start, min(p.end, end), p.symbol) for p in phones if p.start < end)
    return Clip(
        id=id,
        split="test" if speaker in _EMODB_TEST else "train",
        speaker=speaker,
        gender=_GENDERS[speaker],
        text=SENTENCES[sentence],
        label=EMOTIONS[emotion],
        phones=phones,
        complete=complete,
    )


def _read_lablaut(content: bytes, called: str) -> list[tuple[float, str]]:
    """An xlabel file: a header that ends with a line ``#``, then lines ``seconds color label``."""
    _, mark, body = content.decode("latin-1").replace("\r\n", "\n").partition("\n#\n")
    if not mark:
        raise DataError(f"{called} is not a label file: its header does not end with a line '#'")
    labels = []
    for line in filter(None, map(str.strip, body.split("\n"))):
        match = re.fullmatch(r"(\d+(?:\.\d*)?)\s+-?\d+(?:\s+(.*))?", line)
        if match is None:
            raise DataError(f"{called} is not a label file: {line!r} is not 'seconds color label'")
        if match[2]:
            labels.append((float(match[1]), match[2]))
    return labels


# Variants that the transcribers wrote for the same sound.
_SPELLINGS = {
    "@6": "6", "I6": "i6", "Y6": "i6", "I@": "I", "i@": "i", "ia": "i", "NN": "N", "nn": "n", "ss": "s", "vv": "v",
    "AU": "aU", "aO": "aU", "AO": "aU", "ao": "aU", "OU": "aU", "@O": "@", "@E": "@", "A": "a", "8": "9",
    ".": "sil",
}  # fmt: skip


def emodb_phones(labels: Sequence[tuple[float, str]], end: float) -> tuple[Phone, ...]:
    """The phones of an utterance, from the marks that its transcribers set at each sound's beginning.

    Marks of a closure's release (``!t``), of aspiration (``tasp``) and of a manner (``+lar``) lie within a
    sound: they begin one only where the sound itself has no mark.

    Args:
        labels: Seconds and mark, in rising order.
        end: Where the last sound ends, in seconds.

    Returns:
        The phones; ``sil`` is silence before and after, ``pau`` within.

    Example:
        >>> emodb_phones([(0.1, "_t"), (0.15, "!t +asp"), (0.2, "a 2"), (0.4, ".")], end=0.5)[1]
        Phone(start=0.1, end=0.2, symbol='t')
    """
    starts: list[tuple[float, str]] = []
    for start, label in labels:
        mark = re.split(r"[\s,]", label.strip("_"))[0]
        inner = mark.startswith("!") or bool(re.fullmatch(r"[bdgptk]asp.*", mark))
        if mark[:1] in ("", "+", "-"):
            continue
        symbol = "pau" if mark.startswith("(") else re.split(r"[+-]", mark.lstrip("!_"))[0].removesuffix("asp")
        symbol = _SPELLINGS.get(symbol, symbol)
        if symbol and not (inner and starts and starts[-1][1] == symbol):
            starts.append((start, symbol))
    if not starts:
        return ()
    if starts[0][0] > 0:
        starts.insert(0, (0.0, "sil"))
    ends = [*(start for start, _ in starts[1:]), end]
    return tuple(Phone(start, stop, symbol) for (start, symbol), stop in zip(starts, ends, strict=True))


# noises

_NOISE_TEST = 3
_NOISE_IN_SPEECH_COMMANDS = ("doing_the_dishes", "running_tap")


def _noise_flac(paths: Sequence[Path]) -> Sequences:
    return _noises({path.stem: read_audio(path, 16000) for path in paths})


def _noise_archive(paths: Sequence[Path]) -> Sequences:
    (path,) = paths
    wanted = {f"{noise}.wav" for noise in _NOISE_IN_SPEECH_COMMANDS}

    def is_wanted(name: PurePosixPath) -> bool:
        return name.parent.name == "_background_noise_" and name.name in wanted

    found = {}
    for name, content in archive_members(path, is_wanted):
        found[name.stem] = read_audio(content, 16000, called=f"{path}: {name}")
        if len(found) == len(wanted):
            return _noises(found)  # the other gigabytes are spoken words
    raise DataError(f"{path} is not the Speech Commands archive: it holds no _background_noise_/{min(wanted)}")


def _noises(found: dict[str, np.ndarray[tuple[int], np.dtype[np.int16]]]) -> Sequences:
    names = sorted(found)
    split = drawn_split(names, _NOISE_TEST) if len(names) > _NOISE_TEST else ("train",) * len(names)
    clips = [Clip(id=name, split=side, label=name) for name, side in zip(names, split, strict=True)]
    return Sequences.joined("noise", 16000, [found[name] for name in names], clips)
