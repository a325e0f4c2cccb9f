"""Recognition of files beside pocketsphinx, and what an hour of speech costs to learn.

    python benchmarks/speech_files.py [--only files|hour] [--rounds N] [--json FILE]

files: the recordings of AN4 whose audio is here, at 16 kHz. Both recognizers have AN4's lexicon and a bigram of the
training texts; ours learns from the training recordings among them, minutes of speech. pocketsphinx has its own model
of American English, which was trained on far more speech, and is not adapted; it hears 16 kHz, so telephone prompts,
which are offered to it resampled, are a handicap that is stated here. A round is all files, in turn by ours and by
pocketsphinx; times are of one thread's processor, from samples to words, features counted; the medians of all rounds.

hour: the mean of two passes of training over a quarter and over half of AN4's training speech, from which an hour's is
extrapolated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from counterflow.lab.data import an4, prompts
from counterflow.lab.papers.speech.corpora import load
from counterflow.lab.papers.speech.listening import errors_of
from counterflow.speech import (
    GaussianStates,
    Grammar,
    Lexicon,
    Linkage,
    Phoneme,
    PredictorBank,
    Recognizer,
    StateClassifier,
    add_deltas,
    train_classifier,
    train_gaussians,
    train_predictors,
)

sys.path.insert(0, str(Path(__file__).parent))
from common.command import output, positive, status_of
from common.measuring import in_turns, timed
from common.records import read_record, write_record

REAL_TIME = 0.03
FASTER = 2.0
RATE = 16000


def arpa(texts: Sequence[Sequence[str]], words: Sequence[str]) -> str:
    """A bigram with absolute discounting in the format that pocketsphinx reads; words that were not seen count half."""
    single: Counter[str] = Counter(dict.fromkeys((*words, "</s>"), 0))
    pairs: dict[str, Counter[str]] = {}
    for text in texts:
        whole = ["<s>", *text, "</s>"]
        single.update(whole[1:])
        for first, then in itertools.pairwise(whole):
            pairs.setdefault(first, Counter())[then] += 1
    total = sum(single.values()) + 0.5 * len(single)
    alone = {word: (count + 0.5) / total for word, count in single.items()}
    ones, twos = [], []
    for word in ("<s>", *single):
        seen = pairs.get(word, Counter())
        left, count = 0.5 * len(seen), sum(seen.values())
        rest = 1.0 - sum(alone[then] for then in seen)
        back = math.log10(left / count / rest) if count and rest > 0 else 0.0
        ones.append(f"{math.log10(alone[word]) if word in alone else -99:.6f} {word} {back:.6f}")
        twos += [f"{math.log10((n - 0.5) / count):.6f} {word} {then}" for then, n in seen.items()]
    head = f"\\data\\\nngram 1={len(ones)}\nngram 2={len(twos)}\n\n"
    return head + "\\1-grams:\n" + "\n".join(ones) + "\n\n\\2-grams:\n" + "\n".join(twos) + "\n\n\\end\\\n"


def peer(lexicon: Lexicon, texts: Sequence[Sequence[str]]) -> Callable[[Tensor], list[str]]:
    """A decoder of pocketsphinx with a lexicon and a bigram of texts."""
    import pocketsphinx

    lines = [
        f"{word}{'' if not number else f'({number + 1})'} {' '.join(phones)}"
        for word, several in lexicon.pronunciations.items()
        for number, phones in enumerate(several)
    ]
    with tempfile.TemporaryDirectory() as folder:  # both files are read when the decoder is made
        known, grammar = Path(folder) / "words.dic", Path(folder) / "texts.lm"
        known.write_text("\n".join(lines) + "\n")
        grammar.write_text(arpa(texts, [*lexicon.pronunciations]))
        decoder = pocketsphinx.Decoder(
            hmm=pocketsphinx.get_model_path("en-us/en-us"), lm=str(grammar), dict=str(known), loglevel="FATAL"
        )

    def hear(wave: Tensor) -> list[str]:
        samples = (wave.numpy() * 32767).clip(-32768, 32767).astype(np.int16)
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return [] if found is None else [word.split("(")[0] for word in found.hypstr.split()]

    return hear


def errors(said: Sequence[Sequence[str]], heard: Sequence[Sequence[str]]) -> float:
    """Word error in percent."""
    return 100.0 - errors_of(said, heard).accuracy


def files(rounds: int) -> dict[str, Any]:
    """AN4's recordings by ours and by pocketsphinx, and prompts by pocketsphinx."""
    data = an4()
    spoken = (data.audio if data.frames is None else data.frames).clips  # the publisher's archives have all as audio
    texts = [clip.words for clip in spoken if clip.split == "train"]
    words = sorted({word for clip in spoken for word in clip.words})
    lexicon = Lexicon({word: data.lexicon[word] for word in words})
    clips = data.audio.clips
    waves = [torch.from_numpy(data.audio[index]).float() for index in range(len(clips))]
    learned = [index for index, clip in enumerate(clips) if clip.split == "train"]
    judged = [index for index, clip in enumerate(clips) if clip.split == "test"]
    began = time.process_time()
    ours = Recognizer.train(
        [waves[index] for index in learned],
        [clips[index].words for index in learned],
        RATE,
        lexicon,
        grammar=Grammar.bigram(texts, words),
        generator=torch.Generator().manual_seed(0),
    )
    seconds = time.process_time() - began
    ways: dict[str, Callable[[Tensor], list[str]]] = {
        "ours": lambda wave: [word.text for word in ours.recognize(wave)],
        "pocketsphinx": peer(lexicon, texts),
    }
    lasts = sum(map(len, waves)) / RATE
    rows: dict[str, Any] = {}
    for name, hear in ways.items():
        heard = [hear(wave) for wave in waves]
        rows[name] = {
            "training files": errors([clips[n].words for n in learned], [heard[n] for n in learned]),
            "test files": errors([clips[n].words for n in judged], [heard[n] for n in judged]),
        }
    works = {name: timed(lambda hear=hear: [hear(wave) for wave in waves]) for name, hear in ways.items()}  # type: ignore[misc]
    for name, taken in in_turns(works, rounds).items():
        rows[name]["real-time factor"] = float(np.median(taken)) / lasts
    ratio = rows["pocketsphinx"]["real-time factor"] / rows["ours"]["real-time factor"]
    return {
        "files": [len(learned), len(judged)], "words": len(words), "seconds of speech": lasts,
        "seconds of training": seconds, "rows": rows, "prompts": resampled(),
        "times faster": ratio, "bars": {"real-time factor": REAL_TIME, "times faster": FASTER},
        "pass": {
            "real-time factor": rows["ours"]["real-time factor"] <= REAL_TIME, "times faster": ratio >= FASTER,
        },
    }  # fmt: skip


def resampled(count: int = 94) -> dict[str, Any]:
    """Prompts at 8 kHz, resampled for pocketsphinx, with a bigram of the others."""
    data = prompts()
    clips = data.audio.clips
    covered = [index for index, clip in enumerate(clips) if data.covered(clip)]
    words = sorted({word for index in covered for word in clips[index].words})
    lexicon = Lexicon({word: data.lexicon[word] for word in words})
    judged, others = covered[:: len(covered) // count][:count], covered
    apart = {clips[index].words for index in judged}
    hear = peer(lexicon, [clips[index].words for index in others if clips[index].words not in apart])
    waves = [
        torch.from_numpy(soxr.resample(np.asarray(data.audio[index], np.float32), data.audio.rate, RATE))
        for index in judged
    ]
    return {"files": len(judged), "error": errors([clips[n].words for n in judged], [hear(wave) for wave in waves])}


def hour() -> dict[str, Any]:
    """Seconds of processor time for one pass over speech, at two sizes."""
    corpus = load("an4", None)
    learned = corpus.of("train", "choose")
    phoneme, row = Phoneme(), Phoneme(3, 3, skip=False)
    count, size = len(corpus.lexicon.phones) * 3, corpus.features[0].shape[1]
    found: dict[str, Any] = {"rows": []}
    for share in (400, 4, 2):  # the first is not counted: kernels are compiled or loaded
        chosen = learned[::share]
        x = [corpus.features[index] for index in chosen]
        slopes = [add_deltas(each, orders=2) for each in x]
        six = [Linkage(corpus.texts[index], corpus.lexicon, phoneme) for index in chosen]
        three = [Linkage(corpus.texts[index], corpus.lexicon, row) for index in chosen]
        gaussians = GaussianStates(count, 3 * size)
        calls: dict[str, Callable[[], object]] = {
            "predictors": lambda x=x, six=six: train_predictors(PredictorBank(count, size), x, six, passes=2),
            "Gaussians": lambda s=slopes, three=three, g=gaussians: train_gaussians(g, s, three, passes=2),
            "classifier": lambda x=x, three=three, g=gaussians, s=slopes: train_classifier(
                StateClassifier(count, size), x, three, g, s, passes=2
            ),
        }
        speech = sum(map(len, x)) / 100
        for name, call in calls.items():
            began = time.process_time()
            call()
            seconds = (time.process_time() - began) / 2
            if share == 400:
                continue
            found["rows"].append({"what": name, "speech": speech, "seconds": seconds, "hour": seconds / speech * 3600})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("files", "hour"))
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="of all files (default 3)")
    parser.add_argument("--json", metavar="FILE", type=output, help="put the results in there, beside those of others")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = read_record(arguments.json)
    for part in ("files", "hour"):
        if arguments.only in (None, part):
            found[part] = files(arguments.rounds) if part == "files" else hour()
            print(json.dumps(found[part], indent=1))
            found |= {"threads": 1, "torch": torch.__version__}
            write_record(arguments.json, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(status_of(main))
