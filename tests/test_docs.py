"""What the README and the documentation say is there, runs, and leads somewhere."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from inspect import getdoc, isfunction
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

import counterflow
from counterflow import cli
from counterflow.lab.trials import paper_keys
from counterflow.registry import Contract, Site, methods

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BIBLIOGRAPHY = ROOT / "docs" / "references.bib"
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.rst") if "_build" not in path.parts)
TEXTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]

# The command line has a page of its own, and papers are shown by the report. What begins with _ is private.
INTERNAL = ("cli", "lab.papers")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)


@pytest.fixture
def in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules are found as from the checkout's root; files are written elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


# What is shown runs


@pytest.mark.usefixtures("in_the_checkout")
@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_the_readmes_blocks_run(number: int) -> None:
    exec(compile(blocks(README, "python")[number], f"README.md, block {number + 1}", "exec"), {})


def test_the_readme_tempers_attaches_and_probes() -> None:
    code = "\n".join(blocks(README, "python"))
    assert all(f"cf.{name}(" in code for name in ("temper", "attach", "probe"))
    assert all(f"{name}()" in code for name in ("ResNet", "Transformer", "Tagger"))


# The page on adding a method shows files that tests/test_add_a_method.py makes and tries.
SHOWN = [path for path in PAGES if ">>> " in path.read_text("utf-8") and path.stem != "add-a-method"]


@pytest.mark.parametrize("page", SHOWN, ids=relative)
def test_the_pages_examples_run(page: Path) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert tried
    assert not failed


EXAMPLES = {
    "attend_with_doubt": ("", 1, 1, 1),
    "diverse_readers": ("", 1, 1, 10),
    "see_the_error": ("error.png",),
    "long_sequence": (40, "32KiB", 3),
    "own_transform": (),
    "predictors_on_a_chip": ("", 1, 1),
    "temper_density_nets": ("", 1, 1),
    "temper_family_relations": (20,),
    "three_architectures": (),
    "train_on_a_chip": (1,),
    "whiten_behind_noise": ("", 1, 1),
    "whiten_digits": (20,),
}


@pytest.mark.usefixtures("in_the_checkout")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](*EXAMPLES[name])
    assert capsys.readouterr().out
    if name == "see_the_error":
        assert Path("error.png").stat().st_size > 10_000


@pytest.mark.usefixtures("in_the_checkout")
@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        (
            "attend_with_doubt",
            ["a.png", "many"],
            "seeds many: it has to be a whole number from 1 on; it takes [picture]",
        ),
        ("attend_with_doubt", ["1", "2", "3", "4", "5"], "takes [picture] [seeds] [passes] [epochs], got 5 arguments"),
        ("long_sequence", ["forty"], "steps forty: it has to be a whole number from 1 on"),
        ("long_sequence", ["40", "64 parsecs"], "64 parsecs"),
        ("long_sequence", ["40", "1B"], "is too small"),
    ],
)
def test_wrong_arguments_of_an_example_are_one_line_and_2(
    name: str,
    arguments: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(ROOT / "examples" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(path, run_name="__main__")
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith(f"{path}: ")
    assert complaint in said
    assert said.count("\n") == 1


def test_no_example_is_left_out() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*EXAMPLES, "arguments", "comparison", "models"}


# Commands exist


def commands() -> Iterator[tuple[str, str]]:
    for path in [*TEXTS, *PAGES, ROOT / "Makefile"]:
        for line in path.read_text("utf-8").replace("$(BIN)/", "").replace("$(JOBS)", "2").splitlines():
            found = re.match(r"\s*(counterflow [a-z][^#]*|make [a-z-]+(?=\s*(?:#|$)))", line)
            if found:
                yield relative(path), found[1].strip()


@pytest.mark.parametrize(("where", "command"), dict.fromkeys(commands()))
def test_the_commands_that_are_shown_are_understood(where: str, command: str) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text("utf-8"), re.M)
    elif words[0] not in ("VERB",):
        cli._parse(words[0], words[1:])


def test_commands_are_found() -> None:
    found = [command for _, command in commands()]
    assert any("--cluster tcp://" in command for command in found)
    assert any("--markdown" in command for command in found)


# Links lead somewhere


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_links_within_the_repository_resolve(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)#]+)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    if not (ROOT / "evidence").is_dir():
        missing = [link for link in missing if link != "REPRODUCTION.md"]  # generated from the evidence
    assert not missing


@pytest.mark.parametrize("path", [*TEXTS, *PAGES], ids=relative)
def test_files_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"``?((?:src|docs|tests|examples|scripts|benchmarks)/[\w./-]+)`", path.read_text("utf-8"))
    built = "docs/_build/"  # by `make docs`, not committed
    assert [name for name in named if not name.startswith(built) and not (ROOT / name).exists()] == []


def is_page(name: Path) -> bool:
    return any(name.with_name(f"{name.name}{ending}").exists() for ending in (".rst", ".md"))


def test_references_within_the_pages_resolve() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        for target in re.findall(r":doc:`(?:[^`<]*<)?([^`>]+)>?`", text):
            assert is_page(page.parent / target), f"{relative(page)}: {target}"
        for tree in re.findall(r"^\.\. toctree::\n(.*?)(?=^\S|\Z)", text, re.M | re.S):
            for entry in re.findall(r"^   ([\w./-]+)$", tree, re.M):
                assert is_page(page.parent / entry), f"{relative(page)}: {entry}"


# The reference is complete


def public_modules() -> list[str]:
    """The packages, which name in ``__all__`` what is public in them, and the modules beside packages."""
    found = ["counterflow"]
    for module in pkgutil.walk_packages(counterflow.__path__, "counterflow."):
        name = module.name.removeprefix("counterflow.")
        inside = "._" in module.name or any(f"{name}.".startswith(f"{each}.") for each in INTERNAL)
        if name == "lab" or inside:
            continue  # the lab itself has no names
        if module.ispkg or name.removeprefix("lab.").count(".") == 0:
            found.append(module.name)
    return found


def documented() -> set[str]:
    """Dotted names of all that the pages in ``docs/api`` document; of what autodoc collects, those in ``__all__``."""
    found: set[str] = set()
    for page in sorted((ROOT / "docs" / "api").glob("*.rst")):
        text = page.read_text("utf-8")
        found |= set(re.findall(r"^\.\. auto(?:class|function|data):: (\S+)", text, re.M))
        by_hand = re.findall(r"^\.\. py:data:: (\w+)\n   :module: (\S+)", text, re.M)
        found |= {f"{module}.{name}" for name, module in by_hand}
        for name, options in re.findall(r"^\.\. automodule:: (\S+)\n((?:   :.*\n)*)", text, re.M):
            assert ":members:" in options, relative(page)
            left_out = re.findall(r":exclude-members: (.*)", options)
            excluded = set(left_out[0].split(", ")) if left_out else set()
            module = importlib.import_module(name)
            for each in set(module.__all__) - excluded:
                defined_here = getattr(getattr(module, each), "__module__", name) == name
                if ":imported-members:" in options or defined_here:
                    found.add(f"{name}.{each}")
    return found


def identities(names: set[str]) -> set[int]:
    found = set()
    for name in names:
        module, _, attribute = name.rpartition(".")
        found.add(id(getattr(importlib.import_module(module), attribute)))
    return found


@pytest.mark.parametrize("name", public_modules())
def test_every_public_name_is_in_the_reference(name: str) -> None:
    module = importlib.import_module(name)
    known = identities(documented())
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.rst"))
    missing = []
    for each in module.__all__:
        value = getattr(module, each)
        there = f".. automodule:: {name}.{each}\n" in pages if _is_module(value) else id(value) in known
        if not there:
            missing.append(each)
    assert missing == []
    assert f".. automodule:: {name}\n" in pages


def _is_module(value: object) -> bool:
    return type(value) is type(sys)


@pytest.mark.parametrize(
    "name", [name for name in public_modules() if ".lab." not in name and "integrations" not in name]
)
def test_every_public_function_has_an_example(name: str) -> None:
    """Where importing is quick: doctests run in all of these modules. What only holds results needs none."""
    module = importlib.import_module(name)
    functions = {each: getattr(module, each) for each in module.__all__}
    missing = [each for each, value in functions.items() if isfunction(value) and ">>> " not in (getdoc(value) or "")]
    assert missing == []


def test_every_method_stands_at_its_site() -> None:
    text = (ROOT / "docs" / "error-current.rst").read_text("utf-8")
    rows = dict(re.findall(r"^   \* - \*\*(\w+)\*\*\n(.*?)(?=^   \* -|^\S)", text, re.M | re.S))
    assert list(rows) == list(get_args(Site))
    for method in methods().values():
        page = method.key.partition("-")[0]
        if (ROOT / "docs" / "methods" / f"{page}.rst").exists():
            assert f"methods/{page}`" in rows[method.site], method.key


def test_every_contract_is_explained() -> None:
    text = (ROOT / "docs" / "error-current.rst").read_text("utf-8")
    assert re.findall(r"^   \* - ``(\w+)``$", text, re.M) == list(get_args(Contract))


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the documentation's tools are an extra")
def test_the_generated_parts_can_be_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    generated = importlib.import_module("generated")
    used: set[str] = set()
    for page in PAGES:
        for part, argument in re.findall(r"^\.\. generated:: (\w+) ?(\w*)$", page.read_text("utf-8"), re.M):
            text = generated.PARTS[part](*([argument] if argument else []))
            assert len(text.splitlines()) > 1, part
            used.add(part)
    assert used == set(generated.PARTS)
    assert "--cluster" in generated.PARTS["commands"]()
    waivers = generated.PARTS["waivers"]()
    assert "torch.func" in waivers
    assert "a property, not an error" in waivers
    assert "AssertionError" not in waivers  # which is a test's own
    _, _, hour = generated.PARTS["benchmark_speech_files"]().partition("an hour, in seconds")
    assert all(float(cell) > 0 for cell in re.findall(r"^     - ([\d.]+)$", hour, re.M))


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the documentation's tools are an extra")
def test_pages_of_code_lead_back_to_where_an_object_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    importlib.import_module("sphinx.application")
    lead_back = runpy.run_path(str(ROOT / "docs" / "conf.py"))["lead_back"]
    names = {"counterflow.attach": "core", "counterflow.room.attach": "room", "counterflow.Net.undo": "core"}
    objects = {name: SimpleNamespace(docname=f"api/{page}") for name, page in names.items()}
    app = SimpleNamespace(
        env=SimpleNamespace(get_domain=lambda name: SimpleNamespace(objects=objects)),
        builder=SimpleNamespace(get_relative_uri=lambda source, target: f"to/{target}.html"),
    )
    link = '<a class="viewcode-back" href="../{}">[docs]</a>'
    for before, after in (
        ("api/core.html#counterflow.backward.attach", "to/api/core.html#counterflow.attach"),
        ("api/room.html#counterflow.room.attach", "to/api/room.html#counterflow.room.attach"),
        ("api/room.html#counterflow.room.Net.undo", "to/api/core.html#counterflow.Net.undo"),
        ("api/core.html#counterflow.gone", "../api/core.html#counterflow.gone"),
    ):
        context = {"body": link.format(before)}
        lead_back(app, "_modules/counterflow/backward/tap", "page.html", context, None)
        assert context["body"] == link.replace("../{}", after)


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the documentation's tools are an extra")
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_refused_pair_shows_the_letter_of_its_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core, nodes = (importlib.import_module(f"docutils.{name}") for name in ("core", "nodes"))
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    page = core.publish_doctree(importlib.import_module("generated").PARTS["pairs"](kind))
    cells = {entry.astext() for entry in page.findall(nodes.entry)}
    lines = [line.astext() for line in page.children if isinstance(line, nodes.paragraph)]
    letters = [line.partition(" ")[0] for line in lines]
    assert letters[0] == "(a)"
    assert "" not in cells  # `(a)` alone would be an empty list
    assert {cell for cell in cells if cell.startswith("(")} == set(letters)


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the documentation's tools are an extra")
def test_what_failed_is_found_with_the_p_beside_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    lab = importlib.import_module("tables.lab")
    monkeypatch.setattr(lab, "DOCS", tmp_path / "docs")
    head = f"## {lab.digest_of('bptt').title}\n\n| claim | published | measured | n | unit | setting | verdict |\n"
    verdicts = ("**not reproduced** (p = 0.97)", "**direction only**", "**reproduced** (p = 0.01)")
    rows = [f"| `c` Claim {i} | – | 2 [1, 3] | 5 | – | same | {verdict} |" for i, verdict in enumerate(verdicts)]
    (tmp_path / "REPRODUCTION.md").write_text(f"# Reproduction\n\n{head}{chr(10).join(rows)}\n", "utf-8")
    text = lab.failed_table("bptt")
    assert "not reproduced (p = 0.97)" in text
    assert [f"Claim {number}" in text for number in range(3)] == [True, True, False]


def test_the_citation_names_the_version_and_every_paper() -> None:
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"version: {project['version']}" in text
    titles = re.findall(r"@inproceedings\{(?!hinton).*?title     = \{(.*?)\},\n", BIBLIOGRAPHY.read_text("utf-8"), re.S)
    assert len(titles) == len(paper_keys())
    assert [title for title in titles if re.sub("[{}]", "", title) not in text] == []
