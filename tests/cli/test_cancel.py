"""``counterflow cancel``."""

import json
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile

from counterflow.analog import DeviceModel
from counterflow.cli import cancel, main
from counterflow.noise_control import FiniteResponse, noise_reduction

RATE = 8000


def write(path, samples, subtype="PCM_16", rate=RATE, **options):
    soundfile.write(path, samples, rate, subtype=subtype, **options)
    return str(path)


def noise(samples=6000, seed=0):
    return 0.5 * np.random.default_rng(seed).uniform(-1, 1, samples)


@pytest.fixture
def wav(tmp_path):
    return write(tmp_path / "noise.wav", noise())


FAST = ["--controller", "lms", "--step", "0.05"]


def test_residual_and_anti_noise_are_written_and_the_reduction_is_theirs(wav, tmp_path, capsys):
    out, anti, json_file = tmp_path / "left.wav", tmp_path / "anti.wav", tmp_path / "all.json"
    options = [
        "--channel",
        "H1",
        "--distortion",
        "10dB",
        "--out",
        str(out),
        "--anti",
        str(anti),
        "--json",
        str(json_file),
    ]
    assert main(["cancel", wav, *FAST, *options]) == 0
    found = json.loads(json_file.read_text())
    left, _ = soundfile.read(out)
    made, rate = soundfile.read(anti)
    assert rate == RATE
    x, _ = soundfile.read(wav)
    heard = left + made
    reduction = found["controllers"]["lms"]["reduction_db"]
    assert reduction == pytest.approx(noise_reduction(heard[3000:], left[3000:]), abs=0.01)
    u = FiniteResponse("H1").run(x)
    distortion = heard - u
    assert 10 * np.log10(np.mean(u**2) / np.mean(distortion**2)) == pytest.approx(10, abs=0.01)
    printed = capsys.readouterr().out
    assert f"overall{reduction:>23.1f}" in printed
    assert "A-weighted" in printed
    assert "1000 Hz" in printed
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_U8"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.flac", "PCM_16"), ("a.flac", "PCM_24")],
)
def test_all_kinds_of_files_give_nearly_the_same(name, subtype, tmp_path, capsys):
    path = write(tmp_path / name, noise(), subtype)
    assert main(["cancel", path, *FAST, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["warnings"] == []
    assert found["controllers"]["lms"]["reduction_db"] > 15


def test_stereo_is_averaged_and_said(tmp_path, capsys):
    both = np.stack([noise(seed=1), noise(seed=2)], 1)
    assert main(["cancel", write(tmp_path / "two.wav", both), *FAST]) == 0
    assert "has 2 channels; their mean is used" in capsys.readouterr().err


def test_clipping_is_warned_of(tmp_path, capsys):
    loud = np.clip(3 * noise(), -1, 1)
    for subtype in ("PCM_U8", "PCM_16"):
        assert main(["cancel", write(tmp_path / "loud.wav", loud, subtype), *FAST]) == 0
        assert "samples are at full scale: the recording is clipped" in capsys.readouterr().err


def test_what_is_clipped_in_one_channel_alone_is_warned_of(tmp_path, capsys):
    both = np.stack([np.clip(3 * noise(), -1, 1), 0.1 * noise(seed=1)], 1)
    assert main(["cancel", write(tmp_path / "two.wav", both), *FAST]) == 0
    assert "samples are at full scale: the recording is clipped" in capsys.readouterr().err


def test_a_chip_reports_the_step_that_it_takes(wav, tmp_path):
    found, weights = tmp_path / "all.json", tmp_path / "w.json"
    given = ["--controller", "chip", "--step", "1e-9", "--json", str(found), "--coefficients", str(weights)]
    assert main(["cancel", wav, *given]) == 0
    least = DeviceModel.paper().rate_resolution
    assert json.loads(found.read_text())["controllers"]["chip"]["step"] == least
    assert json.loads(weights.read_text())["step"] == least


def test_controllers_are_compared_drawn_and_exported(wav, tmp_path, capsys):
    picture, weights = tmp_path / "six.png", tmp_path / "weights.json"
    options = ["--compare", "lms,nlms,perceptron", "--controller", "nlms", "--budget", "3", "--distortion", "3"]
    assert main(["cancel", wav, *options, "--plot", str(picture), "--coefficients", str(weights), "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert list(json.loads(captured.out)["controllers"]) == ["lms", "nlms", "perceptron"]
    assert "perceptron" in captured.err
    assert picture.stat().st_size > 20_000
    saved = json.loads(weights.read_text())
    assert saved["controller"] == "nlms"
    assert len(saved["weights"]["weights"]) == saved["taps"] == 25


def test_a_picture_says_whose_signals_it_shows_and_in_what_unit(wav, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("counterflow.noise_control.pictures.write_picture", lambda figure, *_: drawn.append(figure))
    for compare, controller, of in (("lms,nlms", "nlms", "nlms"), ("lms,nlms", "rls", "lms")):
        options = ["--compare", compare, "--controller", controller, "--budget", "1"]
        assert main(["cancel", wav, *options, "--plot", str(tmp_path / "six.png")]) == 0
        *signals, curves = drawn.pop().axes
        titles = [axes.get_title(loc="left") for axes in signals]
        assert titles == ["noise", f"negated speaker signal of {of}", f"residual of {of}"]
        assert {axes.get_ylabel() for axes in signals} == {"amplitude (full scale = 1)"}
        assert [line.get_label() for line in curves.lines[:2]] == ["lms", "nlms"]


def test_bands_have_their_nominal_names(wav, tmp_path, capsys):
    found = tmp_path / "all.json"
    assert main(["cancel", wav, *FAST, "--json", str(found)]) == 0
    bands = list(json.loads(found.read_text())["controllers"]["lms"]["third_octaves_db"])
    assert {"125", "315", "1600"} <= {*bands}
    assert "\n315 Hz" in capsys.readouterr().out


def test_measured_paths_are_used_and_a_late_loudspeaker_is_warned_of(wav, tmp_path, capsys):
    primary = write(tmp_path / "p.wav", [0, 0, 0, 0.5, 0.2], "FLOAT")
    secondary = write(tmp_path / "s.wav", [0, 0.8, 0.1], "FLOAT")
    common = ["cancel", wav, "--controller", "fxlms", "--step", "0.1", "--json", "-"]
    assert main([*common, "--primary", primary, "--secondary", secondary]) == 0
    early = json.loads(capsys.readouterr().out)
    assert early["warnings"] == []
    assert early["controllers"]["fxlms"]["reduction_db"] > 15
    assert main([*common, "--primary", secondary, "--secondary", primary]) == 0
    captured = capsys.readouterr()
    assert "no causal margin" in captured.err
    assert json.loads(captured.out)["controllers"]["fxlms"]["reduction_db"] < 3  # white noise cannot be predicted
    assert main(["cancel", wav, *FAST, "--channel", primary]) == 0


def test_a_simulated_room_has_both_paths(wav, capsys):
    options = ["--controller", "fxlms", "--step", "0.05", "--taps", "80"]
    assert main(["cancel", wav, *options, "--room", "5x4x2.7", "--reverberation", "0", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["warnings"] == []
    assert found["controllers"]["fxlms"]["reduction_db"] > 10


def test_a_long_file_streams_in_constant_memory(tmp_path, monkeypatch):
    peaks = []
    for samples in (200_000, 1_600_000):
        path = write(tmp_path / "long.wav", noise(samples))
        tracemalloc.start()
        assert main(["cancel", path, *FAST, "--out", str(tmp_path / "left.wav")]) == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000


def test_damaged_files_are_refused_in_one_line(tmp_path, capsys):
    whole = (tmp_path / "whole.wav", tmp_path / "whole.flac")
    for path in whole:
        write(path, noise())
    cases = {}
    for path in whole:
        cut = tmp_path / f"cut{path.suffix}"
        cut.write_bytes(path.read_bytes()[:5000])
        cases[cut] = ("truncated", "damaged")
    cases[tmp_path / "empty.wav"] = ("holds no samples",)
    write(tmp_path / "empty.wav", np.zeros(0))
    (tmp_path / "zero.wav").write_bytes(b"")
    cases[tmp_path / "zero.wav"] = ("cannot be read",)
    (tmp_path / "text.wav").write_text("no sound")
    cases[tmp_path / "text.wav"] = ("cannot be read as audio",)
    bad = noise()
    bad[5] = np.nan
    write(tmp_path / "nan.wav", bad, "FLOAT")
    cases[tmp_path / "nan.wav"] = ("sample 5 is nan",)
    write(tmp_path / "silent.wav", np.zeros(500))
    cases[tmp_path / "silent.wav"] = ("silent",)
    cases[tmp_path / "none.wav"] = ("cannot be read",)
    for path, complaints in cases.items():
        out = tmp_path / "out.wav"
        assert main(["cancel", str(path), *FAST, "--out", str(out)]) == 2, path
        error = capsys.readouterr().err
        assert any(each in error for each in complaints), error
        assert error.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--controller", "pid"], "pid"),
        (["--compare", "lms,pid"], "there is no controller 'pid'"),
        (["--compare", "lms,lms"], "twice"),
        (["--compare", "lms,nlms", "--step", "0.1"], "--step is of one controller"),
        (["--channel", "H7"], "--channel H7"),
        (["--channel", "H1", "--primary", "p.wav"], "give one of them"),
        (["--secondary", "s.wav"], "--secondary needs --primary"),
        (["--reverberation", "0.1"], "--reverberation needs --room"),
        (["--room", "5x4"], "--room 5x4: give length, width and height"),
        (["--room", "5x4x2", "--channel", "H1"], "--channel and --room both name the noise's path"),
        (["--room", "5x4x2", "--reverberation", "-1"], "reverberation must be 0 or more"),
        (["--primary", "missing.wav"], "missing.wav cannot be read"),
        (["--distortion", "loud"], "--distortion is 'loud'"),
        (["--quantized", "both", "--used", "2"], "used is 2"),
        (["--used", "2"], "--used does nothing without --quantized"),
        (["--bits", "2"], "--bits does nothing without --quantized"),
        (["--sign", "expanding"], "--sign does nothing without --distortion"),
        (["--place", "speaker"], "--place does nothing without --distortion"),
        (["--distortion", "10", "--slope", "one"], "--slope does nothing without --distortion and --place speaker"),
        (["--hidden", "0"], "--hidden does nothing without a perceptron or chip"),
        (["--controller", "perceptron", "--hidden", "0"], "hidden is 0"),
        (["--memory", "3"], "--memory does nothing without volterra"),
        (
            ["--compare", "nlms,volterra", "--taps", "4", "--memory", "5"],
            "--memory 5: it is some of the newest of --taps 4",
        ),
        (["--step", "0.1", "--budget", "3"], "--budget does nothing without steps to choose from"),
        (["--controller", "chip", "--step", "-1"], "--step -1: it has to be above 0"),
        (["--step", "nan"], "--step nan: it has to be above 0"),
        (["--controller", "rls", "--step", "1.5"], "--step 1.5: for rls it is the forgetting factor"),
        (["--compare", "lms,rls", "--room", "5x4x2"], "--room: rls has no secondary path in its loop; take fxlms"),
        (["--compare", "lms,chip", "--primary", "p", "--secondary", "s"], "--secondary: chip has no secondary path"),
        (["--controller", "chip", "--distortion", "9", "--place", "speaker"], "--place speaker: chip has no"),
        (
            ["--controller", "fxlms", "--distortion", "9", "--place", "speaker", "--domain", "frequency"],
            "add --slope one",
        ),
        (["--seed", "-1"], "--seed -1"),
        (["--out", "/nowhere/at/all/left.wav"], "no folder"),
        (["--out", "left.mp3"], "suffix"),
        (["--plot", "six.xyz"], "suffix"),
        (["--step", "1e9"], "LMS diverged"),
        (["--taps", "0"], "taps is 0"),
        (["--taps", "99999999"], "--taps is 99999999, and the noise has"),
        (["--block", "8"], "--block is of fxlms"),
        (["--compare", "lms,nlms", "--domain", "frequency"], "--domain is of fxlms"),
        (["--controller", "fxlms", "--block", "0"], "block is 0"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(wav, arguments, complaint, capsys):
    start = [] if "--controller" in arguments or "--compare" in arguments else ["--controller", "lms"]
    assert main(["cancel", wav, *start, *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("options", [["--block", "8"], ["--domain", "frequency"]])
def test_filtered_x_learns_in_blocks_and_in_the_frequency_domain(wav, options, tmp_path):
    path = tmp_path / "all.json"
    secondary = write(tmp_path / "secondary.wav", np.array([0.8, 0.1]))
    primary = write(tmp_path / "primary.wav", np.array([0.0, 0.0, 0.7, 0.3]))
    paths = ["--primary", primary, "--secondary", secondary]
    given = ["--controller", "fxlms", "--taps", "8", "--budget", "4", "--json", str(path), "--coefficients"]
    assert main(["cancel", wav, *paths, *given, str(tmp_path / "w.json"), *options]) == 0
    found = json.loads(path.read_text())["controllers"]["fxlms"]
    assert found["reduction_db"] > 10
    [weights] = json.loads((tmp_path / "w.json").read_text())["weights"].values()
    assert len(weights) == 8


@pytest.mark.parametrize(
    ("name", "step", "names"),
    [
        ("rls", "0.999", ["weights"]),
        ("volterra", "0.1", ["weights"]),
        ("perceptron", "0.05", ["hidden_weights", "hidden_biases", "output_weights", "output_bias"]),
    ],
)
def test_what_is_exported_is_what_was_learned(wav, name, step, names, tmp_path):
    given = ["--controller", name, "--step", step, "--taps", "4", "--place", "speaker", "--distortion", "20"]
    assert main(["cancel", wav, *given, "--coefficients", str(tmp_path / "w.json")]) == 0
    assert list(json.loads((tmp_path / "w.json").read_text())["weights"]) == names


def test_where_one_of_several_diverges_nothing_is_written(tmp_path, capsys):
    loud_at_last = write(tmp_path / "noise.wav", noise() * np.where(np.arange(6000) < 5400, 0.01, 1.9))
    out = tmp_path / "left.wav"
    assert main(["cancel", loud_at_last, "--compare", "nlms,lms", "--budget", "3", "--out", str(out)]) == 2
    assert "LMS diverged" in capsys.readouterr().err
    assert not out.exists()


def test_the_noise_itself_is_not_overwritten(wav, capsys):
    assert main(["cancel", wav, *FAST, "--out", wav]) == 2
    assert "this is what is read" in capsys.readouterr().err


def test_impulse_responses_are_not_overwritten_nor_one_output_by_another(wav, tmp_path, capsys):
    primary = write(tmp_path / "p.wav", [0, 0.5], "FLOAT")
    both = str(tmp_path / "both.wav")
    for options, complaint in (
        (["--primary", primary, "--out", primary], "this is what is read"),
        (["--channel", primary, "--anti", primary], "this is what is read"),
        (["--out", both, "--anti", both], "--out and --anti both name"),
    ):
        before = (tmp_path / "p.wav").read_bytes()
        assert main(["cancel", wav, *FAST, *options]) == 2
        assert complaint in capsys.readouterr().err
        assert (tmp_path / "p.wav").read_bytes() == before
    assert not (tmp_path / "both.wav").exists()


def test_a_missing_extra_is_told_of_before_the_work(wav, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ["--plot", str(tmp_path / "six.png"), "--out", str(tmp_path / "left.wav")]
    assert main(["cancel", wav, *FAST, *options]) == 2
    assert "needs an optional dependency" in capsys.readouterr().err
    assert not (tmp_path / "left.wav").exists()


def test_echoes_of_a_room_that_are_cut_off_are_told_of(wav, monkeypatch, capsys):
    monkeypatch.setattr(cancel, "LONGEST", 150)
    assert main(["cancel", wav, "--controller", "fxlms", "--step", "0.01", "--room", "5x4x2.7"]) == 0
    assert "the room's echoes are cut off after 150 samples, 0.019 s" in capsys.readouterr().err


def test_paths_of_another_rate_or_too_long_or_silent_are_refused(wav, tmp_path, capsys):
    for name, samples, rate, complaint in (
        ("rate.wav", [0.5], 16000, "resample it"),
        ("long.wav", np.ones(5000) * 0.1, RATE, "at most 4096"),
        ("silent.wav", np.zeros(5), RATE, "is silent"),
        ("two.wav", np.full((5, 2), 0.1), RATE, "two.wav has 2 channels; an impulse response has one"),
    ):
        path = write(tmp_path / name, samples, rate=rate)
        assert main(["cancel", wav, *FAST, "--primary", path]) == 2
        assert complaint in capsys.readouterr().err
