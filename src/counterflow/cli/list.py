"""``counterflow list``: the methods and the papers that are here."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["list_command"]


def list_command() -> int:
    """Show the methods of the library and the papers of the lab, one line each.

    A method is attached to a model from Python; a paper is rerun by its key:

        counterflow reproduce KEY

    Returns:
        The exit status, 0.
    """
    from counterflow.exceptions import MissingExtraError
    from counterflow.registry import methods

    rows = [(method.key, method.site, method.summary) for method in methods().values()]
    print("methods")
    _print_rows(rows)
    print("\npapers")
    try:
        from counterflow.lab.trials import load_paper, paper_keys

        papers = [load_paper(key) for key in paper_keys()]
    except MissingExtraError as error:
        print(f"  {error}")
    else:
        _print_rows([(paper.key, paper.title, paper.citation) for paper in papers])
    return 0


def _print_rows(rows: Sequence[tuple[str, str, str]]) -> None:
    first, second = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    for key, middle, summary in rows:
        print(f"  {key:{first}}  {middle:{second}}  {summary}".rstrip())
