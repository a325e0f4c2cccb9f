"""Malformed input to any command is one readable line and exit status 2; a fault of ours keeps its traceback."""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import counterflow.lab.papers
from counterflow.cli import VERBS, _refusal, main
from counterflow.cli.console import Console

INLINE = "[[claim]]\nid = 'a'\nclaim = 'x'\nkind = 'order'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("lst", "there is no command 'lst'; did you mean 'list'?"),
        (
            "frobnicate",
            "there are speech, identify, separate, cancel, plan, list, reproduce, report, data, completion",
        ),
        ("--frob", "there is no command '--frob'"),
        ("list everything", "everything; counterflow list --help says more"),
        ("reproduce", "Missing from counterflow reproduce: KEY|all; counterflow reproduce --help says more"),
        ("reproduce nobody", "there is no paper 'nobody' here; known are "),
        ("reproduce toy --profile big", "invalid choice 'big' for argument '--profile'. Expected one of ('smoke'"),
        ("reproduce toy --jobs 0", "--jobs 0: it has to be 1 or more"),
        ("reproduce toy --jobs -3", "--jobs -3: it has to be 1 or more"),
        ("reproduce toy --jobs many", "counterflow: --jobs: 'many' is no whole number;"),
        ("plan --steps 1e3 --budget 1MiB", "counterflow: --steps: '1e3' is no whole number;"),
        ("cancel a.wav --step fast", "counterflow: --step: 'fast' is no number;"),
        ("cancel a.wav --used fast", "counterflow: --used: 'fast' is no number;"),
        ("separate run a.wav --method None", "choice 'None' for argument '--method'. Expected one of ('iva', 'ica');"),
        ("separate run a.wav --seed None", "counterflow: --seed: 'None' is no whole number;"),
        ("reproduce toy --jobs", "Missing value for argument '--jobs'"),
        ("reproduce toy --job 3", "--job, 3; perhaps you meant --jobs N"),
        ("reproduce toy --out TMP/file/below", "TMP/file/below cannot be written: Not a directory"),
        ("reproduce toy --out TMP/file", "TMP/file cannot be written: File exists"),
        ("reproduce toy --out /proc/counterflow", "/proc/counterflow cannot be written: "),
        ("reproduce toy --json TMP/none/a.json", "--json TMP/none/a.json: there is no folder TMP/none; make it"),
        ("reproduce toy --json TMP", "--json TMP: this is a folder"),
        ("reproduce toy --json /proc/a.json", "cannot be written"),
        ("reproduce toy --cluster nowhere", "--cluster nowhere: an address is like tcp://10.0.0.1:8786"),
        ("reproduce toy --cluster tcp://", "--cluster tcp://: an address is like"),
        ("report TMP/none", "TMP/none: there is no such folder"),
        ("report TMP/file", "TMP/file: this is a file; name the folder that a run wrote"),
        ("report TMP", "TMP: no records of a paper here"),
        ("report --profile big", "invalid choice 'big'"),
        ("report --markdown TMP", "--markdown TMP: this is a folder"),
        ("report --markdown TMP/none/a.md", "--markdown TMP/none/a.md: there is no folder TMP/none; make it"),
        ("report TMP/LONG", "LONG: File name too long; give it a shorter name"),
        ("list --json TMP/LONG", "LONG: File name too long; give it a shorter name"),
        ("data nothing", "invalid choice 'nothing'"),
        ("data list nothing", "nothing"),
    ],
)
def test_malformed_input_is_one_line_and_2(
    arguments: str,
    message: str,
    tmp_path: Path,
    trace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    meant = {"TMP": str(tmp_path), "LONG": "x" * 300}
    for name, value in meant.items():
        arguments, message = arguments.replace(name, value), message.replace(name, value)
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("counterflow: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not set("╭│─╯") & set(printed.err)
    assert trace.read_text() == ""  # nothing was run


def test_a_refusal_is_read_from_a_box_of_any_style() -> None:
    def colored() -> None:
        print("\x1b[31m╭─\x1b[0m Invalid choice ───╮\n│ no 'a'.  │\n│ ─── │\n│ help │\n╰───╯", file=sys.stderr)

    def plain() -> None:
        print(" Invalid choice  \n --------- \n  no 'a'.  \n  -------\n help", file=sys.stderr)
        raise SystemExit(2)

    assert _refusal(colored) == _refusal(plain) == "no 'a'"


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        (INLINE, "claim a: a: a claim of kind order needs a direction"),
        (f"title = 'Odd'\n{INLINE}direction = 'less'\n", "Object missing required field `citation`"),
    ],
)
def test_a_malformed_file_of_claims_is_found_before_the_work(
    tmp_path: Path,
    trace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    claims: str,
    message: str,
) -> None:
    folder = tmp_path / "papers" / "odd"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "published.toml").write_text(claims)
    (folder / "experiment.py").write_text(
        "import dataclasses, toy_paper; PAPER = dataclasses.replace(toy_paper.PAPER, key='odd')"
    )
    monkeypatch.setattr(counterflow.lab.papers, "__path__", [str(tmp_path / "papers")])
    assert main(["reproduce", "odd", "--out", str(tmp_path / "out")]) == 2
    assert f"published.toml: {message}" in capsys.readouterr().err
    assert trace.read_text() == ""


def test_a_cluster_that_does_not_answer_is_one_line(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Distributed:
        @staticmethod
        def Client(address: str, **options: object) -> None:  # noqa: N802
            raise OSError("Timed out trying to connect to tcp://10.255.255.1:1 after 10 s\nand more")

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda n: Distributed if n == "distributed" else real(n))
    assert main(["reproduce", "toy", "--out", str(tmp_path), "--cluster", "tcp://10.255.255.1:1"]) == 2
    error = capsys.readouterr().err
    assert "no dask scheduler answers there (Timed out" in error
    assert error.count("\n") == 1


def test_a_cluster_without_its_extra_is_one_line(
    tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["reproduce", "toy", "--out", str(tmp_path), "--cluster", "tcp://127.0.0.1:8786"]) == 2
    assert capsys.readouterr().err == (
        "counterflow: --cluster needs an optional dependency: pip install 'counterflow[cluster]'\n"
    )


def test_a_fault_of_ours_keeps_its_traceback(tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("ours")

    module = importlib.import_module("counterflow.cli.reproduce")
    monkeypatch.setattr(module, "run", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["reproduce", "toy", "--out", str(tmp_path)])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_first_page_of_help_names_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"  {name} " in text
        assert verb.summary in text
    assert "under a minute" in text
    assert "counterflow reproduce tempering --profile laptop" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: counterflow {verb}")
    assert "For example" in text
    assert f"  counterflow {verb}" in text
    if verb == "reproduce":
        for words in ("under a minute", "some hours", "counterflow reproduce tempering", "kill -9", "Ctrl-C"):
            assert words in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_action_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = VERBS[verb]
    function = getattr(importlib.import_module(f"counterflow.cli.{entry.module}"), entry.function)
    action = get_type_hints(function).get("action")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    examples = re.findall(rf"^ +counterflow {verb}\b(.*)$", text[text.index("For example") :], re.M)
    assert examples
    for each in get_args(action):
        assert any(example.split()[:1] == [each] for example in examples), f"{verb} {each}"


@pytest.mark.parametrize("verb", ["speech", "identify", "separate"])
def test_actions_stand_below_each_other(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    entry = VERBS[verb]
    function = getattr(importlib.import_module(f"counterflow.cli.{entry.module}"), entry.function)
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    listed = capsys.readouterr().out.partition("Actions:\n")[2].lstrip("\n")
    lines = listed.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == [*get_args(get_type_hints(function)["action"])]
    assert all(line.startswith("  ") and line[2] != " " for line in lines)


@pytest.mark.parametrize("verb", VERBS)
def test_help_speaks_of_no_none_and_fits_the_terminal(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert "None" not in text
    assert "(default: )" not in text
    assert "\n\n\n" not in text
    assert "[[" not in text
    assert all(len(line) <= 72 or line.startswith("  ") for line in text.splitlines())
    assert all(len(line) <= 72 or line.split()[0] == "counterflow" for line in text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "usage", "has", "lacks"),
    [
        ("data", "data [-h] [{list,check,where}] [NAME...] [--json PATH|-]", "(default: list)", "--seed"),
        ("report", "report [-h] [OPTIONS] [DIR]", "(default: counterflow-runs)", "--seed"),
        ("identify train", "identify train [-h] [OPTIONS] PATH...", "--models M", "--plot"),
        ("identify evaluate", "identify evaluate [-h] PATH... [--plot PNG] [--json PATH|-]", "--plot", "--models"),
        ("speech align", "speech align [-h] PATH...", "--oov {error,skip,spell}", "--corrective"),
        ("separate train", "separate train [-h] PATH", "--out DIR", "--attend"),
    ],
)
def test_help_of_an_action_has_its_own_options(
    arguments: str,
    usage: str,
    has: str,
    lacks: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([*arguments.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: counterflow {usage}")
    options = [line.strip(" │") for line in text.splitlines()]
    assert has in text
    assert any(line.startswith("--json") for line in options)
    assert not any(line.startswith(lacks) for line in options)


def test_help_wraps_lists_below_themselves(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    text = capsys.readouterr().out
    entry = """
  strategy         what is kept: hidden states (small, a
                   step is run again to use one), internal
                   states (large, ready to use), or a
                   mixture
  slots            how many,"""
    assert entry in text
    assert "\nBackpropagation through time keeps what every step saved.\nWithin a budget, counterflow" in text


def test_exit_codes_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.rst").read_text("utf-8")
    assert re.findall(r"^(\d+) +\S", page, re.M) == ["0", "1", "2", "130", "141"]


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Standard output and standard error are a terminal; what it was sent."""
    shown: list[str] = []
    master, slave = os.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as screen, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        patch.setattr(sys, "stderr", screen)

        def read() -> None:
            with contextlib.suppress(OSError):  # the end of a terminal
                while data := os.read(master, 4096):
                    shown.append(data.decode("utf-8", "replace"))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield shown
        finally:
            screen.flush()
    reader.join(10)
    os.close(master)


COLOR = r"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7])[;m]"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_colors_are_for_terminals_without_no_color(
    tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["reproduce", "toy", "--out", str(tmp_path / "out"), "--no-report"]
    assert main(run) == 0  # the records are there now, and the rest is printing
    assert main(["plan", "--stepps", "3"]) == 2
    printed = capsys.readouterr()
    assert "reproduced" in printed.out
    assert "\x1b" not in printed.out + printed.err
    for no_color in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TERM", "xterm-256color")
            for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
                patch.delenv(name, raising=False)
            if no_color:
                patch.setenv("NO_COLOR", "1")
            with terminal(patch) as shown:
                assert main(run) == 0
            table = "".join(shown)
            with terminal(patch) as shown:
                with contextlib.suppress(SystemExit):
                    main(["plan", "--help"])
                assert main(["plan", "--stepps", "3"]) == 2
        told = "".join(shown)
        assert "reproduced" in table
        assert "usage: counterflow plan" in re.sub(r"\x1b\[[0-9;]*m", "", told)
        assert [bool(re.search(COLOR, text)) for text in (table, told)] == [not no_color] * 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_taught_verbs_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("reproduce", "profile", "laptop", "separate"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    ask = (
        f"source {script}; f=$(complete -p counterflow | grep -oP '(?<=-F )\\S+'); "
        "COMP_WORDS=(counterflow rep); COMP_CWORD=1; COMP_LINE='counterflow rep'; COMP_POINT=15; "
        "$f counterflow rep counterflow; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False)
    assert {"report", "reproduce"} <= set(done.stdout.split()), done.stderr


def test_lists_are_json_for_a_program(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["list", "--json", "-"]) == 0
    printed = capsys.readouterr()
    listed = json.loads(printed.out)
    assert "tempering" in {each["key"] for each in listed["methods"]}
    assert {each["key"] for each in listed["papers"]} >= {"tempering", "density"}
    assert "methods" in printed.err
    target = tmp_path / "data.json"
    assert main(["data", "check", "digits", "--json", str(target)]) == 0
    (digits,) = json.loads(target.read_text())
    assert (digits["name"], digits["found"], digits["intact"]) == ("digits", True, True)
    assert main(["list", "--json", str(tmp_path)]) == 2
    assert "this is a folder" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"counterflow {importlib.metadata.version('counterflow')}\n"


def test_list_has_methods_and_papers(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from counterflow.registry import methods

    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for method in methods().values():
        assert any(line.split()[0] == method.key and method.summary in line for line in text.splitlines() if line)
    assert any(line.split() == ["toy", "A", "toy", "Nobody", "(1900)"] for line in text.splitlines())


def test_list_without_the_lab_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Without:
        """Finds no msgspec; an entry of None in sys.modules would trip tyro, which looks there."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "msgspec":
                raise ModuleNotFoundError(name)

    for name in [*sys.modules]:
        if name.startswith(("msgspec", "counterflow.lab.", "counterflow.cli.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(), *sys.meta_path])
    assert main(["list"]) == 0
    assert "the lab needs an optional dependency: pip install 'counterflow[lab]'" in capsys.readouterr().out
    assert main(["reproduce", "toy"]) == 2
    assert "pip install 'counterflow[lab]'" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\n"
        "from counterflow.cli import main\n"
        "main(['--help'])\n"
        "for verb in ('list', 'reproduce'):\n"
        "    try:\n"
        "        main([verb, '--help'])\n"
        "    except SystemExit:\n"
        "        pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


LISTED = "import sys; from counterflow.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize(
    "arguments",
    ["--help", "list", "data list", "data list --help", "data where", "completion bash", "reproduce toy --no-report"],
)
def test_a_reader_that_goes_away_gets_no_traceback(arguments: str, unread: int, tmp_path: Path, trace: Path) -> None:
    code = f"import toy_paper; toy_paper.install(); {LISTED}"
    command = [sys.executable, "-c", code, *arguments.split()]
    run = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    assert (run.returncode, run.stderr) == (141, "")


def test_a_reader_of_standard_error_goes_away(unread: int) -> None:
    command = [sys.executable, "-c", LISTED, "data", "list", "--json", "-"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=unread, check=False).returncode == 141


def test_a_live_table_that_nobody_reads_ends_without_a_word(unread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda told: ended.append(told.exc_type))
    file = open(unread, "w", closefd=False)  # noqa: SIM115
    console = Console(file=file)
    thread = threading.Thread(target=console.print, args=("a table",))
    thread.start()
    thread.join()
    assert ended == [SystemExit]  # which Python's own hook passes over
    with pytest.raises(BrokenPipeError):  # and the command hears of it
        console.print("a line")
    with contextlib.suppress(BrokenPipeError):
        file.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["list"], ["list", "--help"], ["--version"]])
def test_output_that_finds_no_room_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", LISTED, *arguments]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == "counterflow: No space left on device; free some space and give the command again\n"


def test_a_name_in_another_encoding_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8", errors="strict"))
    monkeypatch.setattr("counterflow.cli._run", lambda verb, rest: print("na\udcefve.wav") or 0)
    assert main(["list"]) == 0
    assert written.getvalue() == b"na\\udcefve.wav\n"


def test_a_closed_output_is_no_fault(tmp_path: Path) -> None:
    command = f"import os; os.close(1); os.execv({sys.executable!r}, [{sys.executable!r}, '-c', {LISTED!r}, 'list'])"
    run = subprocess.run([sys.executable, "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data/x: Permission denied; name a place"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some space"),
        (MemoryError(), "there is not memory enough for what is asked"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("counterflow.cli.data").data, "find", refused)
    assert main(["data", "list"]) == 2
    assert capsys.readouterr().err.startswith(f"counterflow: {says}")


def test_other_errors_of_the_system_are_faults_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(importlib.import_module("counterflow.cli.data").data, "find", broken)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["data", "list"])
