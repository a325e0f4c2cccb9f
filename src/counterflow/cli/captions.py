"""What is heard in files that other programs read: subtitles, NIST's CTM, Praat's TextGrid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from counterflow.speech import Segment, Word

__all__ = ["caption_lines", "clock", "textgrid"]


def caption_lines(words: Sequence[Word]) -> list[list[Word]]:
    """Words of a subtitle: seven at most, and none across a pause of half a second."""
    found: list[list[Word]] = []
    for word in words:
        if found and len(found[-1]) < 7 and word.start - found[-1][-1].end < 0.5:
            found[-1].append(word)
        else:
            found.append([word])
    return found


def clock(seconds: float, mark: str) -> str:
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
