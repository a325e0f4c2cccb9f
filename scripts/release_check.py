"""Try a release as a stranger would get it: built, installed outside the checkout, and used.

    python scripts/release_check.py [STEP ...] [--work DIR] [--again] [--list]

Each step prints what it does and what came of it. Steps that have passed are not repeated for the same sources, so that
a check that was stopped goes on. Once all have passed, the versions of Python and torch that ran are written into
evidence/release.json, with which those that pyproject.toml calls supported are compared. It takes up to an hour, much
of it pip's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
import tomllib
import urllib.request
import venv
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "evidence" / "release.json"

# What needs an extra, run without it: code, and the extra that the error has to name.
NEEDS = {
    "plot": "import counterflow as cf, torch\nm = torch.nn.Sequential(torch.nn.Linear(2, 2))\n"
    "with cf.probe(m) as seen: m(torch.randn(4, 2)).sum().backward()\nseen.plot('error.png')",
    "audio": "from counterflow.audio import read\nread('a.wav')",
    "lab": "from counterflow.lab.data import digits\ndigits()",
    "cluster": "from counterflow.cli.reproduce import reproduce_command\n"
    "reproduce_command('bptt', cluster='tcp://127.0.0.1:1')",
    **{name: f"import counterflow.integrations.{name}" for name in ("lightning", "transformers", "accelerate")},
}
# The same for the command line, which has to end with exit status 2.
COMMANDS = {
    "audio": "identify train voices --out voices-model",
    "lab": "reproduce bptt",
}
# What each extra is for, run with it alone.
USES = {
    "plot": NEEDS["plot"],
    "audio": """
        import numpy as np, soundfile, torch
        from counterflow.audio import read
        from counterflow.cli import main
        sources = np.random.default_rng(0).laplace(size=(16000, 2))
        soundfile.write("two.wav", 0.02 * sources @ [[1, 0.5], [0.5, 1]], 16000)
        assert main(["separate", "run", "two.wav", "--out", "sources"]) == 0
    """,
    "lab": """
        from counterflow.cli import main
        assert main(["data", "list"]) == 0
        assert main(["list"]) == 0
        from counterflow.lab.data import digits
        digits()
    """,
    "cluster": "import distributed",
    **{name: f"import counterflow.integrations.{name}" for name in ("lightning", "transformers", "accelerate")},
    "tensorboard": "from torch.utils.tensorboard import SummaryWriter\nSummaryWriter('log').close()",
    "wandb": "import wandb",
    "docs": "import sphinx, furo, sphinxcontrib.bibtex",
}
QUICK = """
    import importlib, torch, counterflow as cf
    from counterflow import backward
    for name in cf.__all__: getattr(cf, name)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    h = cf.attach(model, {"*": backward.scale(0.5)})
    with cf.probe(model) as seen:
        model(torch.randn(16, 8)).square().sum().backward()
    print(seen.table())
    h.undo()
    print("from", cf.__file__)
"""
TYPED = """
    import torch
    import counterflow as cf
    from counterflow import backward

    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    handle = cf.attach(model, {"*": backward.scale(0.5)})
    text: str = str(handle.table())
    handle.undo()
    ensemble = cf.MultipleChoice([torch.nn.Linear(2, 2)])
    options: float = cf.bptt.plan(1000, 50, "internal").forwards
"""


class StepError(Exception):
    """A step did not come out as it should."""


@dataclass
class Place:
    """Where the check works: builds and environments; and which versions of Python and torch a step ran."""

    work: Path
    ran: list[dict[str, str]] = field(default_factory=list)

    @property
    def dist(self) -> Path:
        return self.work / "dist"

    @property
    def wheel(self) -> Path:
        found = sorted(self.dist.glob("counterflow-*.whl"))
        if not found:
            raise StepError("there is no wheel; run the step build first")
        return found[-1]

    def python(self, name: str) -> Path:
        return self.work / name / "bin" / "python"

    @property
    def site(self) -> Path:
        """Where the core environment keeps its packages."""
        return next((self.work / "core" / "lib").glob("python*/site-packages"))

    def environment(self, name: str, on_core: bool = False) -> Path:
        """A virtual environment's Python; ``on_core`` sees what the core environment has, too."""
        if not self.python(name).exists():
            venv.create(self.work / name, with_pip=True)
            if on_core:
                own = next((self.work / name / "lib").glob("python*/site-packages"))
                (own / "core.pth").write_text(f"{self.site}\n")
        return self.python(name)


def call(command: Sequence[str | Path], *, cwd: Path, expect: int = 0, **variables: str) -> str:
    """Run a command, show it, and return what it printed.

    Raises:
        StepError: Its exit status is another.
    """
    shown = " ".join(str(word) if len(str(word)) < 80 else "..." for word in command)
    print(f"    $ {shown}", flush=True)
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COUNTERFLOW_DATA")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
    ran = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != expect:
        tail = "\n".join((ran.stdout + ran.stderr).strip().splitlines()[-25:])
        raise StepError(f"{shown}: exit status {ran.returncode}, not {expect}\n{tail}")
    return ran.stdout + ran.stderr


def install(python: Path, *what: str, constrained: bool = True) -> None:
    """Install into an environment, by the pins of the checkout."""
    pins = ["-c", str(ROOT / "constraints.txt")] if constrained else []
    call([python, "-m", "pip", "install", "-q", *pins, *what], cwd=python.parent)


def renew(python: Path, at: Place) -> None:
    """Exchange the package for the wheel of now: pip takes an older build of one version for the same."""
    install(python, "--force-reinstall", "--no-deps", str(at.wheel))


def build(at: Place) -> str:
    """Build wheel and sdist, and look into both."""
    tools = at.environment("tools")
    install(tools, "build", constrained=False)
    shutil.rmtree(at.dist, ignore_errors=True)
    call([tools, "-m", "build", "--outdir", at.dist, ROOT], cwd=at.work)
    names = zipfile.ZipFile(at.wheel).namelist()
    needed = ("py.typed", "lab/papers/bptt/published.toml", "lab/report/templates/page.js")
    missing = [name for name in needed if f"counterflow/{name}" not in names]
    foreign = [name for name in names if not re.match(r"counterflow(/|-[^/]+\.dist-info/)", name)]
    if missing or foreign:
        raise StepError(f"the wheel lacks {missing} and holds {foreign[:5]} that is not the package")
    with tarfile.open(next(at.dist.glob("*.tar.gz"))) as packed:
        held = {name.partition("/")[2] for name in packed.getnames()}
    lacks = [name for name in ("tests/conftest.py", "constraints.txt", "Makefile", "docs/conf.py") if name not in held]
    if lacks:
        raise StepError(f"the sdist lacks {lacks}")
    return f"{at.wheel.name}: {len(names)} files; the sdist: {len(held)}"


def core(at: Place) -> str:
    """Install the wheel without extras into a clean environment, and use it from outside the checkout."""
    python = at.environment("core")
    install(python, str(at.wheel))
    renew(python, at)
    found = run_code(python, QUICK, at)
    if str(ROOT) in found:
        raise StepError("the package was found in the checkout")
    call([python.with_name("counterflow"), "--version"], cwd=at.work)
    call([python.with_name("counterflow"), "--help"], cwd=at.work)
    return found.strip().splitlines()[-1]


def run_code(python: Path, code: str, at: Place, expect: int = 0) -> str:
    """Run code in an empty folder."""
    with tempfile.TemporaryDirectory(dir=at.work) as folder:
        return call([python, "-c", textwrap.dedent(code)], cwd=Path(folder), expect=expect)


def without(at: Place) -> str:
    """Without an extra, what needs it says in one line which it is."""
    python = at.environment("core")
    for extra, code in NEEDS.items():
        # The cluster is one of the lab's, so that the lab is missed first.
        named = "lab" if extra == "cluster" else extra
        said = run_code(python, code, at, expect=1).strip().splitlines()[-1]
        if f"pip install 'counterflow[{named}]'" not in said:
            raise StepError(f"without [{extra}]: {said!r} does not name the extra")
        print(f"      {said}")
    for extra, words in COMMANDS.items():
        with tempfile.TemporaryDirectory(dir=at.work) as folder:
            for name in ("a/1", "a/2", "a/3", "b/1", "b/2", "b/3"):
                recording = Path(folder, "voices", f"{name}.wav")
                recording.parent.mkdir(parents=True, exist_ok=True)
                recording.write_bytes(b"RIFF")
            said = call([python.with_name("counterflow"), *words.split()], cwd=Path(folder), expect=2).strip()
        if len(said.splitlines()) != 1 or f"counterflow[{extra}]" not in said:
            raise StepError(f"counterflow {words}, without [{extra}]: not one line that names it: {said!r}")
        print(f"      {said}")
    return f"{len(NEEDS) + len(COMMANDS)} errors, each of one line"


def extras(at: Place) -> str:
    """Each extra alone, on top of the core, does what it is for."""
    for extra, code in USES.items():
        python = at.environment(f"with-{extra}", on_core=True)
        install(python, f"{at.wheel}[{extra}]")
        run_code(python, code, at)
        print(f"      [{extra}] works alone")
    said = run_code(at.python("with-lab"), NEEDS["cluster"], at, expect=1).strip().splitlines()[-1]
    if "counterflow[cluster]" not in said:
        raise StepError(f"--cluster with [lab] alone: {said!r}")
    return ", ".join(USES)


def typing(at: Place) -> str:
    """A script from outside is checked against the package's types, and a mistake in it is found."""
    python = at.environment("typing", on_core=True)
    install(python, "mypy", constrained=False)
    script = at.work / "typed.py"
    command = [python, "-m", "mypy", "--strict", "--cache-dir", at.work / "mypy", script]
    for code, status in ((TYPED, 0), (f"{TYPED}\n    wrong: int = cf.attach(model, 3)\n", 1)):
        script.write_text(textwrap.dedent(code))
        said = call(command, cwd=at.work, expect=status)
    errors = [line for line in said.splitlines() if "error:" in line]
    if len(errors) != 2:
        raise StepError(f"one wrong line should give two errors, not {errors}")
    return "mypy --strict sees py.typed"


def tested(*words: str, **variables: str) -> str:
    """Run tests of the checkout in its own environment; how many passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    said = call(command, cwd=ROOT, PYTHONPATH=str(ROOT / "src"), **variables)
    return said.strip().splitlines()[-1]


def integrations(at: Place) -> str:
    """The tests with the real libraries of other people."""
    there = [path for path in ("tests/integrations", "tests/whitening/test_frameworks.py") if (ROOT / path).exists()]
    return tested(*there, CI="true")


def fuzz(at: Place) -> str:
    """Every reader of a user's file, with ten times as many examples, drawn anew."""
    return tested("tests/test_fuzz.py", COUNTERFLOW_EXAMPLES="300")


def examples(at: Place) -> str:
    """Examples from the sdist that need no extra, by the installed package; all of the checkout, cut short."""
    folder = at.work / "sdist"
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(next(at.dist.glob("*.tar.gz"))) as packed:
        packed.extractall(folder, filter="data")
    [source] = folder.iterdir()
    ran = []
    for name in ("own_transform", "three_architectures"):  # those that need no extra
        call([at.environment("core"), f"examples/{name}.py"], cwd=source)
        ran.append(name)
    return f"{', '.join(ran)}; {tested('tests/test_docs.py', '-k', 'examples')}"


def tutorials(at: Place) -> str:
    """The tutorials, and the page on adding a method."""
    return tested("tests/test_tutorials.py", "tests/test_add_a_method.py", CI="true", COUNTERFLOW_LITERAL="1")


def docs(at: Place) -> str:
    """The documentation builds without a warning, and its gallery shows what the examples that are here have made."""
    pages = at.work / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", pages]
    call(command, cwd=ROOT, PYTHONPATH=str(ROOT / "src"))
    return f"{len([*pages.rglob('*.html')])} pages; the gallery: {tested('tests/test_gallery.py')}"


def links(at: Place) -> str:
    """Every address outside that the documentation names is there; left out where no such address can be reached."""
    try:
        urllib.request.urlopen("https://github.com", timeout=20).close()
    except OSError as error:
        return f"left out: github.com cannot be reached ({error})"  # a package registry may be, without it
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "linkcheck", "docs", at.work / "links"]
    call(command, cwd=ROOT, PYTHONPATH=str(ROOT / "src"))
    return "all are there"


def newest(at: Place) -> str:
    """The contract suite with the torch that constraints.txt pins."""
    return contracts(at, at.environment("newest", on_core=True))


def oldest(at: Place) -> str:
    """The contract suite with the oldest torch that is called supported."""
    python = at.environment("oldest")
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    bound = next(match[1] for need in needs if (match := re.fullmatch(r"torch>=(\S+)", need)))
    if f"torch=={bound}." in (ROOT / "constraints.txt").read_text("utf-8"):
        return f"torch {bound} is the one that constraints.txt pins: see newest"
    # Where pip finds no build for the processor alone, this takes that for CUDA, of several gigabytes.
    install(python, f"torch=={bound}.*", str(at.wheel), constrained=False)
    renew(python, at)
    return contracts(at, python)


def contracts(at: Place, python: Path) -> str:
    """All contracts of all methods, by the installed package."""
    # Separation hears mel features, whose filters come with an extra.
    install(python, f"{at.wheel}[audio]")
    install(python, "pytest", "hypothesis", constrained=False)
    folder = at.work / f"suite-{python.parents[1].name}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "tests" / "contracts", folder / "tests" / "contracts")
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)
    versions = run_code(
        python,
        "import json, platform, torch\nprint(json.dumps([platform.python_version(), torch.__version__]))",
        at,
    )
    ran, torch_version = json.loads(versions.strip().splitlines()[-1])
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contracts/test_contracts.py"]
    said = call(command, cwd=folder).strip().splitlines()[-1]
    at.ran.append({"python": ".".join(ran.split(".")[:2]), "torch": torch_version.partition("+")[0]})
    return f"Python {ran}, torch {torch_version}: {said}"


def remember(ran: Sequence[dict[str, str]]) -> None:
    """Write down which versions a release has passed with."""
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {"ran": []}
    known["ran"] += [each for each in ran if each not in known["ran"]]
    known["ran"].sort(key=lambda each: (each["torch"], each["python"]))
    write(RECORD, known)


def write(path: Path, content: Any) -> None:
    """Replace a JSON file whole."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(new, path)


STEPS: dict[str, Callable[[Place], str]] = {
    step.__name__: step
    for step in (
        build,
        core,
        without,
        extras,
        typing,
        newest,
        oldest,
        integrations,
        fuzz,
        examples,
        tutorials,
        docs,
        links,
    )
}


def sources() -> str:
    """A hash of what a release is made of, and of what the steps run: tests, examples and pages."""
    found = hashlib.sha256()
    folders = [path for name in ("src", "tests", "docs", "examples") for path in ROOT.glob(f"{name}/**/*")]
    files = [ROOT / name for name in ("pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE")]
    for path in sorted([*folders, *files, Path(__file__)]):
        if path.is_file() and not {"__pycache__", "_build"} & {*path.parts}:
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"these alone, of {', '.join(STEPS)}")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "counterflow-release")
    parser.add_argument("--again", action="store_true", help="steps that have passed, too")
    parser.add_argument("--list", action="store_true", help="say what the steps are")
    arguments = parser.parse_args()
    if arguments.list:
        for name, step in STEPS.items():
            print(f"{name:13} {(step.__doc__ or '').splitlines()[0]}")
        return 0
    unknown = [name for name in arguments.steps if name not in STEPS]
    if unknown:
        parser.error(f"there is no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    at = Place(arguments.work.resolve())
    if at.work.is_relative_to(ROOT):
        parser.error(f"--work {at.work}: it has to be outside the checkout, or the checkout is what is tried")
    at.work.mkdir(parents=True, exist_ok=True)
    state = at.work / "passed.json"
    passed = json.loads(state.read_text()) if state.exists() else {}
    now = sources()
    failed = []
    for name in arguments.steps or STEPS:
        print(f"{name}: {(STEPS[name].__doc__ or '').splitlines()[0]}", flush=True)
        if passed.get(name, {}).get("sources") == now and not arguments.again:
            print(f"  passed before: {passed[name]['said']}")
            continue
        began = time.monotonic()
        at.ran.clear()
        try:
            said = STEPS[name](at)
        except StepError as error:
            failed.append(name)
            print(f"  FAILED after {time.monotonic() - began:.0f} s: {error}", flush=True)
            continue
        took = time.monotonic() - began
        print(f"  passed in {took:.0f} s: {said}", flush=True)
        passed[name] = {"sources": now, "said": said, "seconds": round(took), "ran": [*at.ran]}
        write(state, passed)
    if not failed and all(passed.get(name, {}).get("sources") == now for name in STEPS):
        remember([each for name in STEPS for each in passed[name].get("ran", ())])
    print(f"failed: {', '.join(failed)}" if failed else "all steps passed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
