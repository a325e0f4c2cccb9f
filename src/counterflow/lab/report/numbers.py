"""How the report writes numbers and times: enough digits to compare, no more."""

from __future__ import annotations

import math

__all__ = ["format_computing", "format_interval", "format_number", "format_p", "format_seconds"]

MISSING = "–"


def format_number(value: float | None) -> str:
    """Three significant digits, but never fewer than the integer part has.

    Args:
        value: A number, or None where there is none.

    Returns:
        The number as text; an en dash for None.

    Example:
        >>> [format_number(x) for x in (2438.0, 89.63, 0.2774, 10, 3e-4, 0.0, None)]
        ['2438', '89.6', '0.277', '10', '3e-4', '0', '–']
        >>> format_number(-1234567.0), format_number(float("inf"))
        ('−1.23e6', '∞')
    """
    if value is None or math.isnan(value):
        return MISSING
    magnitude = abs(value)
    if math.isinf(value):
        text = "∞"
    elif magnitude >= 1e6 or 0 < magnitude < 1e-3:
        mantissa, exponent = f"{magnitude:.2e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    elif magnitude >= 100:
        text = f"{magnitude:.0f}"
    else:
        text = f"{magnitude:.3g}"
    return text if value >= 0 else f"−{text}"


def format_interval(low: float | None, high: float | None) -> str:
    """An interval in square brackets, or nothing where it has no ends.

    Example:
        >>> format_interval(310.2, 449.8)
        '[310, 450]'
        >>> format_interval(None, None)
        ''
        >>> format_interval(0.5, None)
        '[0.5, ∞]'
    """
    if low is None and high is None:
        return ""
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    return f"[{format_number(ends[0])}, {format_number(ends[1])}]"


def format_p(p: float | None) -> str:
    """The p value of a test, or nothing where there was none.

    Example:
        >>> format_p(0.0312), format_p(1e-9), format_p(None)
        ('p = 0.031', 'p < 0.001', '')
    """
    if p is None:
        return ""
    return "p < 0.001" if p < 1e-3 else f"p = {p:.2g}"


def format_seconds(seconds: float) -> str:
    """A time with its two largest units.

    Args:
        seconds: A time in seconds.

    Example:
        >>> [format_seconds(s) for s in (0.0, 0.042, 12.3, 200, 3900)]
        ['0 s', '0.04 s', '12 s', '3 min 20 s', '1 h 5 min']
    """
    if seconds < 10:
        return f"{float(f'{seconds:.2f}'):g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def format_computing(seconds: float, card_seconds: float) -> str:
    """A computing time, by what computed: an hour of a graphics card is not one of a processor.

    Args:
        seconds: Of all trials.
        card_seconds: Of these, of trials on a graphics card.

    Example:
        >>> format_computing(3900.0, 0.0)
        '1 h 5 min'
        >>> format_computing(3900.0, 200.0)
        '1 h 2 min of a processor and 3 min 20 s of a graphics card'
    """
    if not card_seconds:
        return format_seconds(seconds)
    on_card = f"{format_seconds(card_seconds)} of a graphics card"
    rest = seconds - card_seconds
    return f"{format_seconds(rest)} of a processor and {on_card}" if rest > 0 else on_card
