"""Draw the README's picture, for light and dark pages; every number in it is computed.

    python scripts/readme_picture.py [--records evidence]

Left: the error on its way through a deep network, as a probe sees it. Right: the epochs of table 2 of the tempering
paper, published and measured, from the records in the folder; where it holds none, the smoke profile is run first.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from torch import Tensor, nn

import counterflow as cf
from counterflow import backward
from counterflow.exceptions import CounterflowError
from counterflow.lab import papers
from counterflow.lab.data import digits
from counterflow.lab.papers.tempering.cells import CELLS, epochs_of, judged
from counterflow.lab.report import select
from counterflow.lab.trials import Profile, Record, load_paper, read_record, run, unpack

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from comparison import THEMES, error_path  # noqa: E402

IMAGES = ROOT / "docs" / "images"
CONDITIONS = {
    "mom.conventional": "momentum",
    "mom.tempered": "   + tempering",
    "mom.shunted": "   + error shunting",
    "dbd.conventional": "delta-bar-delta",
    "dbd.tempered": "   + tempering",
    "dbd.shunted": "   + error shunting",
}
DEPTH, WIDTH = 16, 64
FACTOR = 3**0.5  # torch's default weights have a variance of 1 / (3 fan-in), so a layer divides the error by this


def deep_net() -> nn.Sequential:
    """A chain of tanh layers on the 64 pixels of a digit."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)]
    return nn.Sequential(*blocks, nn.Linear(WIDTH, 10))


def error_sizes(model: nn.Module, pixels: Tensor, labels: Tensor) -> list[float]:
    """The error's RMS at each layer's output, from the network's output to its input, at the first step."""
    step = lambda: nn.functional.cross_entropy(model(pixels), labels, reduction="sum").backward()  # noqa: E731
    return list(error_path(model, step).values())


def read_records(folder: Path) -> tuple[Profile, list[Record]]:
    """The tempering paper's records of the largest profile in a folder; of a fresh smoke run where there is none."""
    paper = load_paper("tempering")
    profiles: tuple[Profile, ...] = ("paper", "laptop", "smoke")
    loose = [read_record(path) for path in sorted((folder / paper.key).glob("*.json"))]
    for profile in profiles:
        packed = folder / paper.key / f"{profile}.jsonl.gz"
        records = select(paper, profile, unpack(packed)[0] if packed.is_file() else loose)
        if records and all(judged(profile, name, records) for name in CELLS):
            return profile, records
    print(f"{folder}: no records that fill table 2; running the smoke profile", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        return "smoke", run([paper], "smoke", Path(scratch))[paper.key]


def published() -> dict[str, dict[str, Any]]:
    """The paper's claims by their ids."""
    path = Path(papers.__path__[0]) / "tempering" / "published.toml"
    return {claim["id"]: claim for claim in tomllib.loads(path.read_text("utf-8"))["claim"]}


def draw(theme: str, paths: dict[str, list[float]], profile: Profile, records: Sequence[Record]) -> Figure:
    """The picture in the colors of one theme."""
    color = THEMES[theme]
    figure = Figure(figsize=(11, 4.1), layout="constrained")
    figure.patch.set_alpha(0)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    _draw_paths(left, paths, color)
    _draw_epochs(right, profile, records, color)
    for axes in (left, right):
        axes.patch.set_alpha(0)
        axes.tick_params(colors=color["soft"], labelsize=9, length=0)
        axes.grid(True, axis="y" if axes is left else "x", color=color["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(color["soft"])
    for label in right.get_yticklabels():
        label.set_color(color["ink"])
    return figure


def _draw_paths(axes: Axes, paths: dict[str, list[float]], color: dict[str, str]) -> None:
    for (name, sizes), line, below in zip(paths.items(), (color["soft"], color["one"]), (True, False), strict=True):
        axes.plot(range(len(sizes)), sizes, color=line, linewidth=1.8, marker="o", markersize=4.5)
        middle = DEPTH // 2
        axes.annotate(
            name, (middle, sizes[middle]), xytext=(-10, -14) if below else (0, 9), textcoords="offset points",
            ha="right" if below else "center", fontsize=9.5, color=line,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks([0, DEPTH], ["output", "input"])
    axes.set_xlabel(f"the error's way back through {DEPTH} tanh layers", fontsize=9.5)
    axes.set_title("See the error, and shape it: its RMS at each layer", loc="left", fontsize=11, fontweight="bold",
                   color=color["ink"])  # fmt: skip


def _draw_epochs(axes: Axes, profile: Profile, records: Sequence[Record], color: dict[str, str]) -> None:
    claims = published()
    for place, name in enumerate(CONDITIONS):
        claim = claims[f"t2.{name}"]
        mean, spread = claim["value"], claim["spread"]
        label = "published: mean ± standard deviation" if place == 0 else None
        axes.plot([mean - spread, mean + spread], [place, place], color=color["two"], linewidth=9, alpha=0.35,
                  solid_capstyle="butt", label=label)  # fmt: skip
        axes.plot([mean, mean], [place - 0.2, place + 0.2], color=color["two"], linewidth=2.2)
        record = judged(profile, name, records)
        if record is None:
            continue
        epochs = epochs_of(record)
        axes.scatter(epochs, [place] * len(epochs), s=22, color=color["one"], alpha=0.55, linewidths=0, zorder=3,
                     label=f"here: {len(epochs)} restarts each" if place == 0 else None)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks(range(len(CONDITIONS)), list(CONDITIONS.values()), ha="left")
    axes.tick_params(axis="y", pad=105)
    axes.set_ylim(len(CONDITIONS) - 0.4, -0.6)
    axes.set_xlabel("epochs to learn the family relations", fontsize=9.5)
    legend = axes.legend(loc="lower right", fontsize=9, frameon=False, labelcolor=color["soft"])
    legend.set_zorder(4)
    axes.set_title("Rerun the paper: table 2, published and here", loc="left", fontsize=11, fontweight="bold",
                   color=color["ink"])  # fmt: skip


def main() -> int:
    """Compute, draw, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=Path, default=ROOT / "evidence")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = digits()
    pixels = torch.tensor(data.train_images[:128].reshape(128, -1)).float() * (2 / data.maximum) - 1
    labels = torch.tensor(data.train_labels[:128])
    bare, shaped = deep_net(), deep_net()
    cf.attach(shaped, {"*": backward.scale(FACTOR)})
    paths = {
        "the model as it is": error_sizes(bare, pixels, labels),
        f"with a tap on every layer: scale({FACTOR:.3g})": error_sizes(shaped, pixels, labels),
    }
    profile, records = read_records(options.records)
    IMAGES.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        path = IMAGES / f"readme-{theme}.png"
        scratch = path.with_suffix(".new.png")
        draw(theme, paths, profile, records).savefig(scratch, dpi=160)
        os.replace(scratch, path)
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CounterflowError as error:
        print(f"readme_picture: {error}", file=sys.stderr)
        sys.exit(2)
