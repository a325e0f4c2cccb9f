"""Words in files that other programs read."""

from __future__ import annotations

from counterflow.cli.captions import captions, ctm
from counterflow.speech import Word

WORDS = [Word("R&D", 0.5, 1.0, 0.1), Word("<UH>", 1.0, 1.25, 0.2)]


def test_a_name_with_blanks_is_one_field_of_ctm():
    rows = [line.split() for line in ctm("my own take", WORDS).splitlines()]
    assert rows == [["my_own_take", "1", "0.50", "0.50", "R&D"], ["my_own_take", "1", "1.00", "0.25", "<UH>"]]


def test_marks_of_webvtt_are_escaped_there_and_nowhere_else():
    assert captions(WORDS, vtt=True) == "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\nR&amp;D &lt;UH&gt;\n\n"
    assert captions(WORDS, vtt=False) == "1\n00:00:00,500 --> 00:00:01,250\nR&D <UH>\n\n"
