"""Files as ffmpeg makes them: read right, or refused in one line."""

from __future__ import annotations

import importlib
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterflow.audio import read, read_channels
from counterflow.exceptions import DataError

RATE, SAMPLES = 8000, 2000

# By the file's name: what ffmpeg is told, and by how much a sample may differ.
FORMS: dict[str, tuple[str, float]] = {
    "u8.wav": ("-c:a pcm_u8", 2**-6),
    "s16.wav": ("-c:a pcm_s16le", 2**-14),
    "s24.wav": ("-c:a pcm_s24le", 2**-22),
    "s32.wav": ("-c:a pcm_s32le", 2**-22),
    "f32.wav": ("-c:a pcm_f32le", 0.0),
    "f64.wav": ("-c:a pcm_f64le", 0.0),
    "mulaw.wav": ("-c:a pcm_mulaw", 0.02),
    "alaw.wav": ("-c:a pcm_alaw", 0.02),
    "big.wav": ("-c:a pcm_s16le -rf64 always", 2**-14),
    "s16.flac": ("-c:a flac -sample_fmt s16", 2**-14),
    "s24.flac": ("-c:a flac -sample_fmt s32", 2**-22),
    "s16.aiff": ("-c:a pcm_s16be", 2**-14),
    "s16.au": ("-c:a pcm_s16be", 2**-14),
    "s24.caf": ("-c:a pcm_s24be", 2**-22),
    "s16.w64": ("-c:a pcm_s16le", 2**-14),
}
LOSSY = {"a.ogg": "-c:a libvorbis", "a.mp3": "-c:a libmp3lame", "a.opus": "-c:a libopus"}
REFUSED = {"a.m4a": "-c:a aac", "a.mka": "-c:a pcm_s16le", "a.ac3": "-c:a ac3 -ar 32000"}


def needed(name: str) -> Any:
    if os.environ.get("CI") == "true":  # where it must not be skipped
        return importlib.import_module(name)
    return pytest.importorskip(name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder with all forms of a sound of two channels, and its samples (channels, samples)."""
    folder = tmp_path_factory.mktemp("forms")
    time = np.arange(SAMPLES) / RATE
    wave = 0.5 * np.stack([np.sin(2 * np.pi * 440 * time), np.cos(2 * np.pi * 300 * time)]).astype(np.float32)
    (folder / "raw").write_bytes(wave.T.copy().tobytes())
    ffmpeg = needed("imageio_ffmpeg").get_ffmpeg_exe()
    command = [ffmpeg, "-v", "error", "-f", "f32le", "-ar", str(RATE), "-ac", "2", "-i", "raw"]
    for name, options in ({name: form for name, (form, _) in FORMS.items()} | LOSSY | REFUSED).items():
        command += [*options.split(), name]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    # Into a pipe it cannot go back and write how long the file became.
    piped = subprocess.run([*command[:11], "-f", "wav", "pipe:1"], cwd=folder, check=True, capture_output=True)
    (folder / "piped.wav").write_bytes(piped.stdout)
    return folder, wave


@pytest.mark.parametrize("name", [*FORMS, "piped.wav"])
def test_it_is_read_right(name: str, made: tuple[Path, np.ndarray]) -> None:
    folder, wave = made
    found, rate = read_channels(folder / name)
    assert rate == RATE
    assert found.shape == (2, SAMPLES)
    tolerance = FORMS[name][1] if name in FORMS else 2**-14
    np.testing.assert_allclose(found.numpy(), wave, atol=tolerance, rtol=1e-6)
    np.testing.assert_allclose(read(folder / name)[0], wave.mean(0), atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSY)
def test_what_is_lossy_sounds_the_same(name: str, made: tuple[Path, np.ndarray]) -> None:
    folder, wave = made
    found, rate = read_channels(folder / name)
    assert rate in (RATE, 48000)  # Opus knows no other
    seconds = found.shape[1] / rate
    assert SAMPLES / RATE - 1e-3 <= seconds < SAMPLES / RATE + 0.3
    peaks = [np.abs(np.fft.rfft(each)).argmax() * rate / found.shape[1] for each in found.numpy()]
    np.testing.assert_allclose(peaks, [440, 300], atol=1 / seconds)
    assert found.square().mean().sqrt().item() == pytest.approx(np.sqrt(np.mean(wave**2)), rel=0.3)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_line(name: str, made: tuple[Path, np.ndarray]) -> None:
    with pytest.raises(DataError, match=rf"{name} cannot be read as audio: ") as caught:
        read(made[0] / name)
    assert "\n" not in str(caught.value)
