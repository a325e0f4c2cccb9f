"""The data sets themselves, where they are on this machine; nothing is downloaded."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counterflow.exceptions import ChecksumError, DataError
from counterflow.lab import data
from counterflow.lab.data.spoken import emodb_phones
from counterflow.lab.data.street import camvid_split
from counterflow.lab.data.transcribed import prompt_words

from .conftest import without_data

if TYPE_CHECKING:
    from .conftest import Machine

pytestmark = pytest.mark.data

SETS = ("cifar10", "camvid", "captions", "sentiment", "fsdd", "an4", "emodb", "prompts", "noise")
# Found before a test puts an empty machine in the place of this one.
FOLDERS = {name: found.place.folder for name in SETS if (found := data.find(name)) is not None}
_loaded: dict[str, Any] = {}


def _load(name: str) -> Any:
    """A set in its preferred form, loaded once for all tests."""
    found = data.find(name)
    if found is None or found.form != data.dataset(name).forms[0]:
        without_data(f"{name} is not on this machine: `counterflow data where` shows where it is looked for")
    if name in ("emodb", "prompts", "noise"):
        pytest.importorskip("soundfile")
    if name not in _loaded:
        _loaded[name] = data.LOADERS[name]()
    return _loaded[name]


def _splits(loaded: Any) -> dict[str, int]:
    if isinstance(loaded, data.EncodedImages):
        return {"train": len(loaded.train), "test": len(loaded.test)}
    if isinstance(loaded, data.SegmentedImages):
        return {"train": len(loaded.train), "val": len(loaded.val), "test": len(loaded.test)}
    if isinstance(loaded, data.Speech):
        loaded = loaded.frames or loaded.audio
    examples = loaded.examples if isinstance(loaded, data.Texts) else loaded.clips
    return dict(Counter(example.split for example in examples))


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_what_the_catalog_says(name: str) -> None:
    loaded = _load(name)
    entry = data.dataset(name)
    assert _splits(loaded) == dict(entry.splits)
    arrays = loaded.arrays()
    assert data.arrays_sha256(arrays) == entry.forms[0].sha256 == data.checksum(name)
    kept = [key for key in arrays if key.endswith(("values", "offsets", "labels", "images", "masks"))]
    assert not any(arrays[key].flags.writeable for key in kept)


def test_files_are_those_of_the_manifest(manifest: dict[str, str]) -> None:
    for name in SETS:
        for file in data.dataset(name).forms[0].files:
            assert manifest[file.path] == file.sha256


def test_cifar10() -> None:
    cifar = _load("cifar10")
    assert np.bincount(cifar.train.labels).tolist() == [5000] * 10
    assert np.bincount(cifar.test.labels).tolist() == [1000] * 10
    assert cifar.train.files[1] == "automobile/0000.jpg"
    batch = cifar.train.images([5, 0, 49_999])
    assert batch.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(batch[1], cifar.train.images(slice(1))[0])
    # As is known of the pictures: the channels' means are .491, .482 and .447 of 255.
    mean = cifar.train.images(slice(0, 50_000, 97)).mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.491, 0.482, 0.447], atol=0.02)


def test_camvid() -> None:
    scenes = _load("camvid")
    for split in ("train", "val", "test"):
        of = getattr(scenes, split)
        assert {camvid_split(name) for name in of.names} == {split}
        assert of.images.shape == (len(of), 120, 160, 3)
        assert of.masks.shape == (len(of), 120, 160)
        assert of.masks.max() == 11
        assert of.images is of.images
    # Skies are bright, roads are not.
    sky, road = (scenes.val.images[scenes.val.masks == scenes.class_names.index(k)].mean() for k in ("Sky", "Road"))
    assert sky > 1.5 * road


def test_camvid_is_read_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _load("camvid")
    read: list[str] = []
    original = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda self, key: read.append(key) or original(self, key))
    scenes = data.camvid()
    assert read == ["names"] * 3
    for _ in range(3):
        assert len(scenes.val.images) == len(scenes.val.masks)
    assert read == ["names"] * 3 + ["images", "masks"]


@pytest.mark.parametrize(("name", "file"), [("fsdd", "fsdd.npz"), ("an4", "features.npz")])
def test_each_key_is_read_once(monkeypatch: pytest.MonkeyPatch, name: str, file: str) -> None:
    _load(name)
    read: list[tuple[str, str]] = []
    original = np.lib.npyio.NpzFile.__getitem__

    def note(self: Any, key: str) -> Any:
        read.append((self.zip.filename or str(id(self)), key))
        return original(self, key)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", note)
    data.LOADERS[name]()
    assert read
    assert max(Counter(read).values()) == 1


def test_captions() -> None:
    captions = _load("captions")
    assert len(captions) == 8092
    assert {len(image.captions) for image in captions.examples} == {5}
    assert captions[0].captions[1] == "A girl going into a wooden building ."


def test_sentiment() -> None:
    reviews = _load("sentiment")
    assert set(Counter((r.domain, r.positive, r.split) for r in reviews.examples).values()) == {200, 800}
    assert all((r.rating > 3) == r.positive for r in reviews.examples)
    parts = [{r.text for r in reviews.examples if r.split == split} for split in ("train", "test")]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 8000 - 147


def test_fsdd() -> None:
    digits = _load("fsdd")
    assert digits.rate == 8000
    assert set(Counter((c.speaker, c.label) for c in digits.clips).values()) == {50}
    clip = digits[1234]
    assert clip.dtype == np.float32
    assert 0.01 < np.abs(clip).max() <= 1
    assert sum(map(digits.seconds, range(len(digits)))) == pytest.approx(len(digits.values) / 8000)
    assert digits[-1].tolist() == digits[2999].tolist()
    with pytest.raises(IndexError):
        digits[3000]


def test_an4() -> None:
    an4 = _load("an4")
    assert an4.frames.values.shape[1] == 13
    assert (an4.frames.rate, an4.audio.rate) == (100, 16000)
    speakers = {s: {c.speaker for c in an4.frames.clips if c.split == s} for s in ("train", "test")}
    assert {s: len(of) for s, of in speakers.items()} == {"train": 64, "test": 10}
    assert not speakers["train"] & speakers["test"]
    assert all(map(an4.covered, an4.frames.clips))
    assert {phone for of in an4.lexicon.values() for one in of for phone in one} <= set(an4.phones)
    number = {clip.id: i for i, clip in enumerate(an4.frames.clips)}
    for i, clip in enumerate(an4.audio.clips):
        assert clip == an4.frames.clips[number[clip.id]]
        assert an4.frames.seconds(number[clip.id]) == pytest.approx(an4.audio.seconds(i), abs=0.05)


def test_emodb() -> None:
    emodb = _load("emodb")
    speakers = {s: {(c.speaker, c.gender) for c in emodb.clips if c.split == s} for s in ("train", "test")}
    assert sorted(gender for _, gender in speakers["test"]) == ["f", "m"]
    assert not speakers["train"] & speakers["test"]
    assert Counter(c.complete for c in emodb.clips) == {True: 123, False: 331}
    assert sum(c.phones is None for c in emodb.clips) == 2
    for i, clip in enumerate(emodb.clips):
        assert emodb.seconds(i) <= 2.0
        if clip.phones:
            assert [p.end for p in clip.phones[:-1]] == [p.start for p in clip.phones[1:]]
            assert clip.phones[-1].end == pytest.approx(emodb.seconds(i))


def test_what_is_said_of_emodb_beside_its_audio() -> None:
    """The facts that the publisher's files only name are those that were written out for ours."""
    emodb = _load("emodb")
    found = data.find("emodb")
    assert found is not None
    (table,) = (path for path in found.paths if path.suffix == ".jsonl")
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    for row, clip in zip(rows, emodb.clips, strict=True):
        facts = (clip.id, clip.speaker, clip.gender, clip.text, clip.label, clip.complete)
        assert facts == tuple(row[k] for k in ("id", "speaker", "gender", "text", "emotion", "complete"))
    labeled = [row for row in rows if row["phones"]]
    same = [[list(p) for p in emodb_phones(row["raw_labels"], 2.0)] == row["phones"] for row in labeled]
    # Three slips of the transcribers are read otherwise: a mark set twice, two releases after a joined mark.
    assert (sum(same), len(same)) == (449, 452)


def test_prompts() -> None:
    prompts = _load("prompts")
    assert sum(map(prompts.covered, prompts.audio.clips)) == 472
    assert all(prompt_words(clip.text) == clip.words for clip in prompts.audio.clips)
    assert sum(len(clip.words) for clip in prompts.audio.clips) == 1948
    assert len({word for clip in prompts.audio.clips for word in clip.words}) == 555
    parts = [{c.words for c in prompts.audio.clips if c.split == split} for split in ("train", "test")]
    assert not parts[0] & parts[1]
    assert len(prompts.audio.values) / 8000 / 60 == pytest.approx(15, abs=0.2)


def test_noise() -> None:
    noise = _load("noise")
    assert (noise.rate, len(noise)) == (16000, 10)
    assert all(17 < noise.seconds(i) <= 60 for i in range(10))
    levels = [20 * np.log10(np.sqrt(np.mean(clip**2))) for clip in noise]
    assert max(levels) - min(levels) > 30


@pytest.mark.parametrize(
    ("name", "path", "loader"),
    [("emodb", "emodb/flac/03a01Fa.flac", data.emodb), ("camvid", "camvid/val.npz", data.camvid)],
)
def test_damage(machine: Machine, name: str, path: str, loader: Callable[[], object]) -> None:
    """One damaged file among hundreds is named."""
    source = FOLDERS.get(name) or without_data(f"{name} is not on this machine")
    for file in data.dataset(name).forms[0].files:
        (machine.shared / file.path).parent.mkdir(parents=True, exist_ok=True)
        (machine.shared / file.path).symlink_to(source / file.path)
    damaged = machine.shared / path
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.unlink()
    damaged.write_bytes(content)
    with pytest.raises(ChecksumError, match=re.escape(f"{damaged} is damaged")) as caught:
        loader()
    assert "\n" not in str(caught.value)
    damaged.unlink()
    with pytest.raises(DataError, match=f"the data set {name} is not on this machine"):
        loader()
