"""``counterflow data``: which data sets there are, where they are found, and whether they are intact."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from counterflow.cli.console import Console
from counterflow.cli.targets import require_json, write_json
from counterflow.exceptions import DataError, MissingExtraError
from counterflow.lab import data

__all__ = ["data_command"]


def data_command(
    action: Annotated[Literal["list", "check", "where"], tyro.conf.Positional] = "list",
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME...]")] = (),
    /,
    *,
    json: Annotated[str | None, tyro.conf.arg(metavar="PATH|-")] = None,
) -> int:
    """Show the data sets that experiments use; nothing is downloaded.

    For example:

        counterflow data list
        counterflow data check mnist fsdd
        counterflow data where --json -

    Args:
        action: list: what there is, where it is found, its license and size. check: verify the checksums
            of all that is found. where: the search order with its folders, and what each holds.
        names: The data sets meant; all if none is named.
        json: Write name, title, license and folder of each to this file as JSON, and for check whether it is intact
            (null where it is not here, or nobody stated a checksum); - is standard output.

    Returns:
        The exit status: 0; 1 if ``check`` found damage; 2 for a name that there is not.

    Raises:
        InputError: A data set that does not exist, or ``COUNTERFLOW_DATA`` names no folder.
    """
    chosen = tuple(data.dataset(name).name for name in names) or data.names()
    require_json(json)
    console = Console(stderr=json == "-")
    intact: dict[str, bool | None] = {}
    if action == "check":
        intact = _check(console, chosen)
    elif action == "where":
        _where(console, chosen)
    else:
        _list(console, chosen)
    if json is not None:
        write_json(json, [_facts(name) | ({"intact": intact[name]} if name in intact else {}) for name in chosen])
    return 1 if False in intact.values() else 0


def _facts(name: str) -> dict[str, object]:
    """What a program would ask of a data set."""
    entry, found = data.dataset(name), data.find(name)
    folder = None if found is None or found.place.folder is None else str(found.place.folder)
    return {
        "name": name,
        "title": entry.title,
        "license": entry.license,
        "splits": dict(entry.splits),
        "found": found is not None,
        "folder": folder,
    }


def _list(console: Console, names: tuple[str, ...]) -> None:
    table = Table(title="Data sets", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    table.add_column("found", no_wrap=True)
    table.add_column("license", overflow="fold")
    table.add_column("size", no_wrap=True, justify="right")
    remarks = []
    for name in names:
        entry = data.dataset(name)
        found = data.find(name)
        form = found.form if found else next((f for f in entry.forms if f.downloadable), entry.forms[0])
        table.add_row(
            name,
            Text("\n".join([entry.title, *(f"{size:,} {split}" for split, size in entry.splits.items())])),
            found.place.label if found else Text("not here", style="yellow"),
            Text(entry.license),
            f"{form.size / 1e6:.1f} MB" if form.files else "",
        )
        if found is None:
            remarks.append(f"{name}: {_missing(entry)}")
        if form.differs:
            remarks.append(f"{name}: {form.differs}")
    console.show(table)
    for line in remarks:
        console.say(line)


def _check(console: Console, names: tuple[str, ...]) -> dict[str, bool | None]:
    """Whether each set is intact; None where that is not known."""
    table = Table("name", "found", "files", "checksum", title="Checksums")
    damage = []
    intact: dict[str, bool | None] = {}
    for name in names:
        intact[name] = None
        found = data.find(name)
        if found is None:
            table.add_row(name, Text(_missing(data.dataset(name)), style="yellow"), "", "")
            continue
        try:
            known = data.check(name)
        except DataError as error:
            damage.append(f"{name}: {error}")
            intact[name] = False
            verdict = Text("damaged", style="bold red")
        except MissingExtraError as error:
            verdict = Text(str(error), style="yellow")
        else:
            intact[name] = True if known else None
            # Publishers' files of which nobody stated a checksum are here; all that can be said is that they load.
            verdict = Text("intact", style="green") if known else Text("readable, no checksum known", style="yellow")
        table.add_row(name, found.place.label, str(len(found.form.files) or ""), verdict)
    console.show(table)
    for line in damage:
        console.say(line)
    return intact


def _where(console: Console, names: tuple[str, ...]) -> None:
    table = Table("", "place", "folder", "holds", title="Where data is looked for, in this order")
    files = [name for name in names if data.dataset(name).provided == "files"]
    places = data.search_order()
    for number, place in enumerate(places, start=1):
        if place.folder is None:
            folder, holds = Text(place.note, style="dim"), ""
        else:
            folder = Text(str(place.folder), overflow="fold")
            held = [name for name in files if data.held(name, place)]
            holds = ", ".join(held) if place.folder.is_dir() else "(does not exist)"
        table.add_row(str(number), place.label, folder, holds)
    for name in files:
        hosts = _hosts(data.dataset(name))
        if hosts:
            line = f"{', '.join(hosts)} (into the cache, when {name} is loaded and is nowhere else)"
            table.add_row(str(len(places) + 1), "download", Text(line), name)
        if source := data.dataset(name).by_hand.source:
            table.add_row(
                "", "by hand", Text(f"{source} as {_files(data.dataset(name).by_hand)}", overflow="fold"), name
            )
    for name in names:
        if name not in files:
            table.add_row("", data.dataset(name).provided, Text("needs no file", style="dim"), name)
    console.show(table)


def _missing(entry: data.DataSet) -> str:
    if entry.provided == "package scikit-learn":
        return "not here: pip install 'counterflow[lab]'"
    if _hosts(entry):
        return "not here: downloaded when it is used"
    if entry.by_hand.source:
        return f"not here: put {_files(entry.by_hand)} into a data folder, from {entry.by_hand.source}"
    return "not here: see `counterflow data where`"


def _files(form: data.Form) -> str:
    return ", ".join(file.path for file in form.files)


def _hosts(entry: data.DataSet) -> list[str]:
    """Where a set can be downloaded from, in the order of trying."""
    form = next((form for form in entry.forms if form.downloadable), None)
    return [urlsplit(url).netloc for url in form.files[0].urls] if form else []
