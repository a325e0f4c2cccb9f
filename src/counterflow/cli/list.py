"""``counterflow list``: the methods and the papers that are here."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from counterflow.cli.console import aligned
from counterflow.cli.targets import require_json, write_json

__all__ = ["list_command"]


def list_command(*, json: Annotated[str | None, tyro.conf.arg(metavar="PATH|-")] = None) -> int:
    """Show the methods of the library and the papers of the lab, one line each.

    A method is attached to a model from Python; a paper is rerun by its key:

        counterflow reproduce KEY

    For example:

        counterflow list
        counterflow list --json -

    Args:
        json: Write the list to this file as JSON; - is standard output.

    Returns:
        The exit status, 0; 2 where the file cannot be written.
    """
    from counterflow.exceptions import MissingExtraError
    from counterflow.registry import methods

    require_json(json)
    out = sys.stderr if json == "-" else sys.stdout
    rows = [(method.key, method.site, method.summary) for method in methods().values()]
    print("methods", *aligned(rows), "\npapers", sep="\n", file=out)
    papers = []
    try:
        from counterflow.lab.trials import digest_of, paper_keys

        papers = [(key, digest_of(key)) for key in paper_keys()]
    except MissingExtraError as error:
        print(f"  {error}", file=out)
    else:
        print(*aligned([(key, paper.title, paper.citation) for key, paper in papers]), sep="\n", file=out)
    if json is not None:
        write_json(
            json,
            {
                "methods": [{"key": key, "site": site, "summary": summary} for key, site, summary in rows],
                "papers": [{"key": key, "title": each.title, "citation": each.citation} for key, each in papers],
            },
        )
    return 0
