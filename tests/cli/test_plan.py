"""``counterflow plan``."""

import json

import pytest

from counterflow.cli import main

SMALL = ["plan", "--steps", "100", "--width", "8", "--batch", "4"]


def test_the_plan_the_table_and_the_curve_are_printed(capsys):
    assert main([*SMALL, "--budget", "16KiB"]) == 0
    out = capsys.readouterr().out
    assert "your budget, 16KiB" in out
    assert "forwards a step" in out
    assert out.count("@") == 2  # in the curve, and where it is explained
    assert 'unroll(core, x, state, budget="16KiB")' in out


def test_json_holds_the_budgets_and_the_chosen_one(tmp_path, capsys):
    assert main([*SMALL, "--budget", "16384", "--core", "gru", "--json", str(tmp_path / "plan.json")]) == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["core"] == "GRUCell"
    assert found["chosen"] in found["options"]
    assert found["chosen"]["budget"] == 16384
    capsys.readouterr()
    assert main([*SMALL, "--budget", "16KiB", "--core", "gru", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == found
    assert "your budget" in captured.err


@pytest.mark.parametrize("core", ["lstm", "gru", "rnn"])
def test_layers_and_chunks_use_the_fused_layer(core, capsys):
    assert main([*SMALL, "--budget", "64KiB", "--core", core, "--layers", "2", "--dtype", "float64"]) == 0
    assert f"{core.upper()} over 100 time steps" in capsys.readouterr().out
    assert main([*SMALL, "--budget", "64KiB", "--core", core, "--chunk", "4", "--inputs", "3"]) == 0
    assert "25 calls of 4 time steps" in capsys.readouterr().out


def test_the_call_is_that_of_the_plan_that_is_shown(capsys):
    for options, call in (
        ([], 'budget="64KiB")'),
        (["--chunk", "4", "--strategy", "hidden"], 'budget="64KiB", strategy="hidden", chunk=4)'),
        (["--chunk", "auto"], 'budget="64KiB", chunk="auto")'),
    ):
        assert main([*SMALL, "--budget", "64KiB", *options]) == 0
        assert f"unroll(core, x, state, {call}\n" in capsys.readouterr().out


def test_many_slots_are_written_out(capsys):
    assert main([*SMALL, "--steps", "20000", "--budget", "1GiB", "--strategy", "internal"]) == 0
    out = capsys.readouterr().out
    assert "with 20000 slots of internal states" in out
    assert "e+0" not in out


def test_one_strategy_alone_can_be_asked_for(capsys):
    for strategy in ("hidden", "internal", "mixed"):
        assert main([*SMALL, "--budget", "16KiB", "--strategy", strategy, "--json", "-"]) == 0
        options = json.loads(capsys.readouterr().out)["options"]
        assert {option["strategy"] for option in options} == {strategy}


def test_measured_times_are_said_to_be_measured(capsys):
    assert main([*SMALL, "--budget", "16KiB", "--timed"]) == 0
    assert "step times measured here" in capsys.readouterr().out


def test_one_slot_is_one(capsys):
    assert main([*SMALL, "--budget", "2176", "--strategy", "hidden"]) == 0
    assert " 1 slot of hidden states" in capsys.readouterr().out


def test_the_curve_is_drawn_into_a_file(tmp_path, capsys):
    assert main([*SMALL, "--budget", "16KiB", "--plot", str(tmp_path / "curve.png")]) == 0
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert "@" not in capsys.readouterr().out
    assert main([*SMALL, "--budget", "16KiB", "--plot", str(tmp_path / "curve.svg")]) == 0
    assert "<!-- your budget: " in (tmp_path / "curve.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--budget", "1KiB"], "give at least"),
        (["--budget", "64 parsecs"], "64 parsecs"),
        (["--budget", "-3"], "budget"),
        (["--budget", "16KiB", "--steps", "0"], "--steps 0"),
        (["--budget", "16KiB", "--width", "-1"], "--width -1"),
        (["--budget", "16KiB", "--chunk", "some"], "--chunk some"),
        (["--budget", "16KiB", "--chunk", "0"], "--chunk 0"),
        (["--budget", "16KiB", "--core", "transformer"], "transformer"),
        (["--budget", "16KiB", "--plot", "/nowhere/at/all/curve.png"], "no folder"),
        (["--budget", "16KiB", "--plot", "curve.xyz"], "suffix"),
        (["--budget", "16KiB", "--json", "/nowhere/at/all/plan.json"], "no folder"),
        ([], "budget"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(arguments, complaint, capsys):
    assert main([*SMALL, *arguments]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    out = capsys.readouterr().out
    assert "counterflow plan --steps 1000 --budget 64MiB" in out
    assert "hidden states" in out
