"""Run the examples in full, and keep what came out for the documentation's gallery.

    python scripts/gallery.py [--redraw] [NAME ...]

Each runs on one thread, with its own defaults. Its record, `evidence/examples/NAME.json`, has
what it printed, the numbers of a comparison if it makes one, the processor time, and the hash of the code that made it;
its pictures are in `docs/gallery/`. With --redraw nothing runs: a comparison's words and pictures are made again from
the numbers of its record, where `examples/comparison.py` says or draws them otherwise by now. Where an example's code
has changed since, `tests/test_gallery.py` says so.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import io
import json
import os
import platform
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, RECORDS, PICTURES = ROOT / "examples", ROOT / "evidence" / "examples", ROOT / "docs" / "gallery"
SHARED = ("arguments", "comparison", "models")  # what examples import, and no examples


def names() -> list[str]:
    """The examples."""
    return sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in SHARED)


def code_sha256(name: str) -> str:
    """The hash of all of an example but its docstring, whose words change no result."""
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    first = ast.parse(text).body[0]
    assert isinstance(first, ast.Expr)
    code = "".join(text.splitlines(keepends=True)[first.end_lineno :])
    return hashlib.sha256(code.encode()).hexdigest()


def run(name: str) -> None:
    """Run an example in a folder of its own, and keep its record and its pictures."""
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        start = time.process_time()
        with contextlib.redirect_stdout(printed):
            found = main()
        seconds = time.process_time() - start
        if found is not None:
            for theme in ("light", "dark"):
                found.draw(f"{name}-{theme}.png", theme, transparent=True)
        pictures = sorted(Path().glob("*.png"))
        record: dict[str, Any] = {
            "example": name,
            "code": code_sha256(name),
            "output": printed.getvalue(),
            "comparison": None if found is None else found.to_dict(),
            "pictures": [path.name for path in pictures],
            "seconds": round(seconds, 1),
            "torch": torch.__version__.split("+")[0],
            "python": platform.python_version(),
        }
        for path in pictures:
            keep(PICTURES / path.name, path.read_bytes())
    keep(RECORDS / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())


def redraw(name: str) -> None:
    """A comparison's words and pictures from the numbers that its record has, which stay."""
    from comparison import Comparison

    record = json.loads((RECORDS / f"{name}.json").read_text("utf-8"))
    held = record["comparison"]
    if held is None:
        return
    found = Comparison(**{**held, "asked": [tuple(pair) for pair in held["asked"]]})
    record["output"] = f"{found}\n"
    with tempfile.TemporaryDirectory() as scratch:
        for theme in ("light", "dark"):
            picture = Path(scratch) / f"{name}-{theme}.png"
            found.draw(picture, theme, transparent=True)
            keep(PICTURES / picture.name, picture.read_bytes())
    keep(RECORDS / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())


def keep(target: Path, content: bytes) -> None:
    """Write a file to a temporary name, and rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".new")
    scratch.write_bytes(content)
    os.replace(scratch, target)


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="examples; all if none is named")
    parser.add_argument("--redraw", action="store_true", help="run nothing; words and pictures from the records")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(names()))
    if unknown:
        parser.error(f"there is no example {unknown[0]!r}; there are {', '.join(names())}")
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    for name in options.names or names():
        print(name, flush=True)
        (redraw if options.redraw else run)(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
