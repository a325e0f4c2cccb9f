"""What is heard in files that other programs read: subtitles, NIST's CTM, Praat's TextGrid."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from counterflow.speech import Segment, Word

__all__ = ["captions", "ctm", "ctm_name", "textgrid"]


def ctm_name(name: str) -> str:
    """What CTM calls a file: blanks part its fields, so that a name can have none."""
    return "_".join(name.split())


def ctm(name: str, words: Sequence[Word]) -> str:
    """A line for each word: file, channel, start, duration, word."""
    file = ctm_name(name)
    return "".join(f"{file} 1 {word.start:.2f} {word.end - word.start:.2f} {word.text}\n" for word in words)


def captions(words: Sequence[Word], *, vtt: bool) -> str:
    """Subtitles in SubRip's format, or in WebVTT."""
    found = ["WEBVTT\n\n"] if vtt else []
    for count, line in enumerate(_lines(words), 1):
        times = " --> ".join(_clock(seconds, "." if vtt else ",") for seconds in (line[0].start, line[-1].end))
        number = "" if vtt else f"{count}\n"
        text = " ".join(word.text for word in line)
        if vtt:  # where & and < begin what is not text
            text = html.escape(text, quote=False)
        found.append(f"{number}{times}\n{text}\n\n")
    return "".join(found)


def _lines(words: Sequence[Word]) -> list[list[Word]]:
    """Words of a subtitle: seven at most, and none across a pause of half a second."""
    found: list[list[Word]] = []
    for word in words:
        if found and len(found[-1]) < 7 and word.start - found[-1][-1].end < 0.5:
            found[-1].append(word)
        else:
            found.append([word])
    return found


def _clock(seconds: float, mark: str) -> str:
    whole = round(1000 * seconds)
    return f"{whole // 3600000:02}:{whole // 60000 % 60:02}:{whole // 1000 % 60:02}{mark}{whole % 1000:03}"


def textgrid(seconds: float, tiers: dict[str, list[Segment]]) -> str:
    """Praat's format; what no segment covers is an empty interval."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {seconds:.5f}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, segments) in enumerate(tiers.items(), 1):
        whole: list[tuple[str, float, float]] = []
        last = 0.0
        for each in segments:
            if each.start > last + 1e-6:
                whole.append(("", last, each.start))
            whole.append((each.text, each.start, min(each.end, seconds)))
            last = each.end
        if seconds > last + 1e-6:
            whole.append(("", last, seconds))
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {seconds:.5f}", f"        intervals: size = {len(whole)}"]
        for place, (text, start, end) in enumerate(whole, 1):
            quoted = text.replace('"', '""')
            lines += [
                f"        intervals [{place}]:",
                f"            xmin = {start:.5f}",
                f"            xmax = {end:.5f}",
            ]
            lines.append(f'            text = "{quoted}"')
    return "\n".join(lines) + "\n"
