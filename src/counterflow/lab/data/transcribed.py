"""Transcribed speech with pronunciations: CMU's census database AN4, and telephone prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from counterflow.exceptions import DataError
from counterflow.lab.data.archives import archive_members
from counterflow.lab.data.audio import read_audio
from counterflow.lab.data.checksums import verified
from counterflow.lab.data.locate import provide
from counterflow.lab.data.sequences import Clip, Sequences, Speech
from counterflow.lab.data.splits import drawn_split

__all__ = ["an4", "prompts"]

_Lexicon = Mapping[str, tuple[tuple[str, ...], ...]]


def an4() -> Speech:
    """CMU's census speech: spelled names, addresses and commands by American speakers, with the official split.

    It is read from ``an4/`` (features of 948 utterances, audio of 63), or from one of its publisher's two
    archives (audio of all 1,078, no features).

    Returns:
        ``frames``: 13 mel cepstra, 100 a second, of all utterances; None from the publisher's archives.
        ``audio``: 16 kHz. No speaker is in both splits. The lexicon has a pronunciation or more for each word.

    Raises:
        DataNotFoundError: It is not on this machine.
        DataError: A file is damaged, or not what was published.
        MissingExtraError: SPHERE files are to be read, and soundfile is not installed.

    References:
        Carnegie Mellon University, The census database (AN4), 1991, http://www.speech.cs.cmu.edu/databases/an4/.
    """
    found = provide("an4")
    read = {"npz": _an4_npz, "raw archive": _an4_archive, "sphere archive": _an4_archive}[found.form.format]
    return verified("an4", read(found.paths), found.form)


def prompts() -> Speech:
    """Telephone prompts by one professional speaker: 498 phrases, 15 minutes, 8 kHz.

    It is read from ``prompts/``, or from the archive of Asterisk's core sounds (which has no lexicon). It has
    no split of its own. One is drawn, once and for all: about 100 prompts are for testing, and prompts with
    the same words are on the same side.

    Returns:
        ``audio``: clips by name; ``words`` in capitals. ``frames`` is None. The lexicon does not have all
        words: ``speech.covered(clip)`` says of which clips it has.

    Raises:
        DataNotFoundError: It is not on this machine.
        DataError: A file is damaged, or not what was published.
        MissingExtraError: soundfile is not installed.

    References:
        Asterisk core sounds, voice: Allison Smith, https://downloads.asterisk.org/pub/telephony/sounds/; the
        pronunciations: The CMU Pronouncing Dictionary, Carnegie Mellon University.
    """
    found = provide("prompts")
    read = {"flac": _prompts_flac, "wav archive": _prompts_archive}[found.form.format]
    return verified("prompts", read(found.paths), found.form)


# AN4


def _an4_npz(paths: Sequence[Path]) -> Speech:
    by_name = {path.name: path for path in paths}
    lexicon, phones = _an4_lexicon(by_name["an4.dic"].read_text(), by_name["an4.phone"].read_text())
    with np.load(by_name["features.npz"], allow_pickle=False) as archive:
        frames = Sequences("an4", 100, archive["mfcc"], archive["offsets"].astype(np.int64), _an4_clips(archive))
    with np.load(by_name["audio_subset.npz"], allow_pickle=False) as archive:
        rate = int(archive["sample_rate"])
        audio = Sequences("an4", rate, archive["audio"], archive["offsets"].astype(np.int64), _an4_clips(archive))
    return Speech(audio, frames, lexicon, phones)


def _an4_clips(archive: Mapping[str, np.ndarray]) -> tuple[Clip, ...]:
    facts = zip(*(archive[key].tolist() for key in ("ids", "split", "speakers", "text")), strict=True)
    return tuple(_an4_clip(*fact) for fact in facts)


def _an4_clip(id: str, split: str, speaker: str, text: str) -> Clip:
    # The speaker's name begins with f or m.
    return Clip(id, split, speaker, gender=speaker[0], text=text, words=tuple(text.split()))


def _an4_archive(paths: Sequence[Path]) -> Speech:
    """``wav/an4_clstk/SPEAKER/ID.raw`` (or .sph), transcripts ``<s> WORDS </s> (ID)``, and the dictionary."""
    (path,) = paths
    etc = {f"an4_{split}.{kind}" for split in ("train", "test") for kind in ("fileids", "transcription")}
    etc |= {"an4.dic", "an4.phone"}
    audio, texts = {}, {}
    for name, content in archive_members(path, lambda n: n.name in etc or n.suffix in (".raw", ".sph")):
        if name.name in etc:
            texts[name.name] = content.decode("latin-1")
        elif name.suffix == ".sph":
            audio[name.stem] = read_audio(content, 16000, called=f"{path}: {name}")
        elif len(content) % 2:
            raise DataError(f"{path}: {name} is not 16-bit audio: it has {len(content)} bytes")
        else:
            audio[name.stem] = np.frombuffer(content, ">i2").astype(np.int16)
    if missing := etc - set(texts):
        raise DataError(f"{path} is not an AN4 archive: it holds no etc/{min(missing)}")
    clips = []
    for split in ("train", "test"):
        said = {}
        for line in texts[f"an4_{split}.transcription"].splitlines():
            if match := re.fullmatch(r"(?:<s>)?(.*?)(?:</s>)?\s*\((\S+)\)\s*", line):
                said[match[2]] = match[1].strip()
        for entry in texts[f"an4_{split}.fileids"].split():
            *folders, id = entry.split("/")
            speaker = folders[-1] if folders else ""
            if not speaker or id not in audio or id not in said:
                raise DataError(f"{path} is not a whole AN4 archive: {entry} has no audio or no transcript")
            clips.append(_an4_clip(id, split, speaker, said[id]))
    lexicon, phones = _an4_lexicon(texts["an4.dic"], texts["an4.phone"])
    return Speech(Sequences.joined("an4", 16000, [audio[clip.id] for clip in clips], clips), None, lexicon, phones)


def _an4_lexicon(dictionary: str, phones: str) -> tuple[_Lexicon, tuple[str, ...]]:
    """Lines ``WORD  PHONE PHONE``; a second pronunciation's word is ``WORD(2)``."""
    rows = (line.split() for line in dictionary.splitlines() if line.strip())
    return _lexicon((re.sub(r"\(\d+\)$", "", word), pronunciation) for word, *pronunciation in rows), tuple(
        phones.split()
    )


def _lexicon(rows: Iterable[tuple[str, Sequence[str]]]) -> _Lexicon:
    lexicon: dict[str, tuple[tuple[str, ...], ...]] = {}
    for word, pronunciation in rows:
        lexicon[word] = (*lexicon.get(word, ()), tuple(pronunciation))
    return lexicon


# telephone prompts

_PROMPTS_TEST = 100
_DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")


def _prompts_flac(paths: Sequence[Path]) -> Speech:
    by_name = {path.name: path for path in paths}
    table = by_name["utterances.jsonl"]
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    arrays = [read_audio(table.parent / row["file"], 8000) for row in rows]
    pairs = (line.split("\t") for line in by_name["lexicon.txt"].read_text().splitlines())
    lexicon = _lexicon((word, pronunciation.split()) for word, pronunciation in pairs)
    phones = sorted({phone for of_word in lexicon.values() for one in of_word for phone in one})
    facts = [(row["id"], row["text"], tuple(row["words"].split())) for row in rows]
    return Speech(Sequences.joined("prompts", 8000, arrays, _prompt_clips(facts)), None, lexicon, tuple(phones))


def _prompts_archive(paths: Sequence[Path]) -> Speech:
    """``NAME.wav`` or ``FOLDER/NAME.wav``, and ``core-sounds-en.txt`` with lines ``FOLDER/NAME: text``."""
    (path,) = paths
    audio, texts = {}, {}
    for name, content in archive_members(path, lambda n: n.suffix == ".wav" or n.name == "core-sounds-en.txt"):
        if name.suffix == ".wav":
            audio[str(name.with_suffix(""))] = read_audio(content, 8000, called=f"{path}: {name}")
            continue
        for line in content.decode("utf-8", "replace").splitlines():
            key, colon, text = line.partition(":")
            if colon:
                texts[key.strip()] = text.strip()
    facts = [(id, texts[id], words) for id in sorted(audio) if (words := prompt_words(texts.get(id, "")))]
    if not facts:
        raise DataError(f"{path} is not the core sounds' archive: it holds no core-sounds-en.txt, or no sound of it")
    sounds = Sequences.joined("prompts", 8000, [audio[id] for id, _, _ in facts], _prompt_clips(facts))
    return Speech(sounds, None, {}, ())


def prompt_words(text: str) -> tuple[str, ...]:
    """The words of a prompt's text: capitals, without punctuation, single digits spelled.

    Example:
        >>> prompt_words("...to redial, press 1.")
        ('TO', 'REDIAL', 'PRESS', 'ONE')
    """
    spelled = re.sub(r"\b\d\b", lambda digit: _DIGITS[int(digit[0])], text.upper())
    words = (word.strip("'") for word in re.sub(r"[^A-Z0-9']+", " ", spelled).split())
    return tuple(word for word in words if word)


def _prompt_clips(facts: Sequence[tuple[str, str, tuple[str, ...]]]) -> list[Clip]:
    split = drawn_split([" ".join(words) for _, _, words in facts], _PROMPTS_TEST)
    rows = zip(facts, split, strict=True)
    return [Clip(id, side, text=text, words=words) for (id, text, words), side in rows]
