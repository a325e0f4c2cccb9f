"""Sound files, and log mel features against plain lines of NumPy."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from librosa.filters import mel

from counterflow.audio import Recording, Writer, log_mel, log_mel_of, read, read_channels, read_parts, write
from counterflow.exceptions import DataError, InputError, ShapeError


def reference(wave, rate, n_mels, window, hop, a):
    size, stride = round(window * rate), round(hop * rate)
    points = 2 ** int(np.ceil(np.log2(size)))
    emphasized = np.array([wave[0], *(wave[n] - a * wave[n - 1] for n in range(1, len(wave)))])
    periodic = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(size) / size)
    rows = []
    for start in range(0, len(wave) - size + 1, stride):
        frame = np.zeros(points)
        frame[:size] = emphasized[start : start + size] * periodic
        rows.append(np.log(mel(sr=rate, n_fft=points, n_mels=n_mels) @ np.abs(np.fft.rfft(frame)) + 1e-5))
    return np.array(rows)


@pytest.mark.parametrize(("rate", "window", "hop", "a"), [(16000, 0.032, 0.01, 0.97), (8000, 0.025, 0.0125, 0.0)])
def test_log_mel_is_what_numpy_says(rate, window, hop, a):
    wave = torch.randn(rate // 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = log_mel(wave, rate, window=window, hop=hop, preemphasis=a)
    np.testing.assert_allclose(found, reference(wave.numpy(), rate, 24, window, hop, a), atol=1e-6)


def test_log_mel_is_differentiable_and_finite_in_silence():
    wave = (0.1 * torch.randn(300, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: log_mel(w, 8000, 8, window=0.016), wave)
    assert bool(log_mel(torch.zeros(1000), 8000).isfinite().all())


@pytest.mark.parametrize(
    ("wave", "options", "complaint"),
    [
        (torch.zeros(100), {}, "100 samples"),
        (torch.zeros(16000), {"n_mels": 0}, "n_mels"),
        (torch.zeros(16000), {"n_mels": 400}, "take fewer"),
        (torch.zeros(16000), {"hop": 0.0}, "hop"),
        (torch.zeros(16000), {"preemphasis": 2.0}, "preemphasis"),
        (torch.zeros(16000, dtype=torch.int16), {}, "floating point"),
    ],
)
def test_features_that_cannot_be_had_are_refused(wave, options, complaint):
    with pytest.raises((InputError, ShapeError), match=complaint):
        log_mel(wave, 16000, **options)


def test_files_are_read_and_channels_averaged(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (400, 2))
    for name in ("two.wav", "two.flac"):
        soundfile.write(tmp_path / name, samples, 8000)
        wave, rate = read(tmp_path / name)
        assert rate == 8000
        np.testing.assert_allclose(wave, samples.mean(1), atol=1e-4)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    for name, complaint in (("text", "as audio"), ("empty", "no samples"), ("nan", "finite"), ("none", "No such file")):
        with pytest.raises(DataError, match=f"{name}.wav .*{complaint}"):
            read(tmp_path / f"{name}.wav")


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_what_was_cut_off_is_missed_by_every_reader(form, tmp_path):
    path = tmp_path / f"cut.{form}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 60_000), 8000)
    path.write_bytes(path.read_bytes()[:-40_000])
    for reader in (read, read_channels, lambda p: list(read_parts(p)), lambda p: Recording.open(p).read()):
        with pytest.raises(DataError, match=r"cut\.\w+ (is truncated|is damaged|cannot be read as audio)"):
            reader(path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("length", [0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_length_that_says_unknown_is_no_promise(length, channels, tmp_path):
    """As SoX, arecord and others write into a pipe."""
    path = tmp_path / "piped.wav"
    wave = np.random.default_rng(0).integers(-9999, 9999, (500, channels)).astype(np.int16)
    soundfile.write(path, wave, 8000)
    whole = path.read_bytes()
    at = whole.index(b"data") + 4
    length -= length % (2 * channels)
    path.write_bytes(whole[:at] + length.to_bytes(4, "little") + whole[at + 4 :])
    np.testing.assert_array_equal(read_channels(path)[0].numpy(), wave.T / np.float32(2**15))
    assert Recording.open(path).frames == 500
    for promised in (0x7FFFF000 - 4 * channels, 0x80000000 + 2 * channels):
        path.write_bytes(whole[:at] + promised.to_bytes(4, "little") + whole[at + 4 :])
        with pytest.raises(DataError, match="is truncated"):
            read(path)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    def write_blocks(path: Path) -> None:
        with Writer(path, 8000) as file:
            for _ in range(10):
                file.write(np.zeros(10_000))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        for writer in (lambda path: write(path, torch.zeros(100_000), 8000), write_blocks):
            with pytest.raises(InputError, match=r"long\.wav cannot be written: File too large"):
                writer(tmp_path / "long.wav")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for bad in (lambda: write(tmp_path / "x.wav", torch.zeros(9), 0), lambda: Writer(tmp_path / "x.wav", 0)):
        with pytest.raises(InputError, match="at 0 Hz"):
            bad()
    with pytest.raises(InputError, match=r"shape \(1, 2, 3\)"):
        write(tmp_path / "x.wav", torch.zeros(1, 2, 3), 8000)
    assert not [*tmp_path.iterdir()]


def test_channels_stay_apart_and_come_back(tmp_path):
    wave = torch.randn(3, 500).clamp(-1, 1)
    write(tmp_path / "three.wav", wave, 8000)
    found, rate = read_channels(tmp_path / "three.wav")
    assert rate == 8000
    assert torch.equal(found, wave)
    assert [path.name for path in tmp_path.iterdir()] == ["three.wav"]
    for writer in (lambda path: write(path, wave, 8000), lambda path: Writer(path, 8000)):
        with pytest.raises(InputError, match=r"none/x\.wav cannot be written"):
            writer(tmp_path / "none" / "x.wav")


def test_log_mel_of_given_bins_is_what_log_mel_says():
    wave = torch.randn(800)
    pieces = wave.unfold(-1, 256, 80) * torch.hamming_window(256)
    found = log_mel_of(torch.fft.rfft(pieces).abs(), 8000, 20)
    torch.testing.assert_close(found, log_mel(wave, 8000, 20, preemphasis=0.0))
