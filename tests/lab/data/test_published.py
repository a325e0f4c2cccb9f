"""From small files in the publishers' formats, downloaded from a server on this machine, to arrays."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import wave
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from counterflow.exceptions import ChecksumError, DataError, DataNotFoundError, InputError, MissingExtraError
from counterflow.lab import data
from counterflow.lab.data import archives
from counterflow.lab.data.spoken import emodb_phones
from counterflow.lab.data.transcribed import prompt_words

from ...damage import EXAMPLES, damaged, fuzzed, read_or_refused

if TYPE_CHECKING:
    from .conftest import Machine, Publisher

RNG = np.random.default_rng(3)
PINNED = [4, 6, 10, 14, 17, 25, 34, 35, 36, 38]


def _tar(files: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _zip(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _wav(samples: NDArray[np.int16], rate: int, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return stream.getvalue()


def _samples(length: int) -> NDArray[np.int16]:
    return RNG.integers(-32768, 32768, length, dtype=np.int16)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def _line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    line = str(caught.value)
    assert "\n" not in line
    return line


# CIFAR-10


def _cifar(records: int = 3) -> tuple[dict[str, bytes], dict[str, NDArray[np.uint8]], dict[str, NDArray[np.uint8]]]:
    files, labels, pictures = {}, {}, {}
    for batch in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        labels[batch] = RNG.integers(0, 10, records, dtype=np.uint8)
        pictures[batch] = RNG.integers(0, 256, (records, 32, 32, 3), dtype=np.uint8)
        rows = [
            bytes([k]) + p.transpose(2, 0, 1).tobytes() for k, p in zip(labels[batch], pictures[batch], strict=True)
        ]
        files[f"cifar-10-batches-bin/{batch}.bin"] = b"".join(rows)
    files["cifar-10-batches-bin/readme.html"] = b"<html></html>"
    return files, labels, pictures


def test_cifar10(publisher: Publisher) -> None:
    files, labels, pictures = _cifar()
    form = publisher.publish("cifar10", "binary", _tar(files))
    cifar = data.cifar10()
    assert len(publisher.server.asked) == 1
    assert (len(cifar.train), len(cifar.test)) == (15, 3)
    together = np.concatenate([pictures[f"data_batch_{i}"] for i in range(1, 6)])
    np.testing.assert_array_equal(cifar.train.images(), together)
    np.testing.assert_array_equal(cifar.train.images([7, 2]), together[[7, 2]])
    np.testing.assert_array_equal(cifar.train.images(slice(10, None)), together[10:])
    np.testing.assert_array_equal(cifar.test.labels, labels["test_batch"])
    assert cifar.train.files[4] == "data_batch_2.bin/1"
    # Its content is not in the catalog: its files' checksums name it.
    assert data.check("cifar10")
    assert data.checksum("cifar10") == form.identity
    with pytest.raises(InputError, match="there are 3 pictures"):
        cifar.test.images([3])


def test_cifar10_is_not_unpickled(publisher: Publisher) -> None:
    publisher.publish("cifar10", "binary", _tar({"cifar-10-batches-py/data_batch_1": b"cos\nsystem\n(S'exit 1'\ntR."}))
    with pytest.raises(DataError, match=r"not CIFAR-10's binary version: it holds no data_batch_1\.bin"):
        data.cifar10()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"x" * 3072, "has 3072 bytes, which are not records of 3073"), (b"\x0a" + b"x" * 3072, "labels above 9")],
)
def test_cifar10_refuses(publisher: Publisher, content: bytes, message: str) -> None:
    files, *_ = _cifar(1)
    publisher.publish("cifar10", "binary", _tar({**files, "cifar-10-batches-bin/test_batch.bin": content}))
    with pytest.raises(DataError, match=message) as caught:
        data.cifar10()
    _line(caught)


# CamVid

SCENES = ("0001TP_006690", "0001TP_010380", "0006R0_f00930", "0016E5_00390", "0016E5_07959", "Seq05VD_f00000")


def _camvid() -> tuple[bytes, bytes, NDArray[np.uint8]]:
    stills, labels = {"701_StillsRaw_full/": b""}, {"label_colors.txt": b"64 128 64\tAnimal\n"}
    stills["__MACOSX/701_StillsRaw_full/._0001TP_006720.png"] = b"what macOS adds"
    picture = np.zeros((240, 320, 3), np.uint8)
    picture[::2, ::2] = 200  # each of the small pixels covers four, one of them lit
    colors = np.zeros((240, 320, 3), np.uint8)
    colors[:120] = (128, 128, 128)  # sky
    colors[120:, :160] = (128, 0, 192)  # lane markings, which are road
    for scene in SCENES:
        stills[f"701_StillsRaw_full/{scene}.png"] = _png(picture)
        labels[f"{scene}_L.png"] = _png(colors)
    return _zip(stills), _zip(labels), colors


def test_camvid(publisher: Publisher) -> None:
    stills, labels, _ = _camvid()
    publisher.publish("camvid", "png archives", stills, labels)
    scenes = data.camvid()
    assert scenes.train.names == ("0001TP_006690.png", "0006R0_f00930.png", "0016E5_00390.png")
    assert scenes.val.names == ("0016E5_07959.png",)
    assert scenes.test.names == ("0001TP_010380.png", "Seq05VD_f00000.png")
    assert scenes.train.images.shape == (3, 120, 160, 3)
    assert np.unique(scenes.train.images).tolist() == [50]
    mask = scenes.test.masks[1]
    assert {scenes.class_names[i] for i in np.unique(mask[:60])} == {"Sky"}
    assert {scenes.class_names[i] for i in np.unique(mask[60:, :80])} == {"Road"}
    assert {scenes.class_names[i] for i in np.unique(mask[60:, 80:])} == {"Unlabelled"}
    assert not mask.flags.writeable


def test_camvid_reads_a_split_when_it_is_asked_for_and_once(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    stills, labels, _ = _camvid()
    publisher.publish("camvid", "png archives", stills, labels)
    scenes = data.camvid()
    read: list[int] = []
    monkeypatch.setattr(archives.zipfile.ZipFile, "read", lambda self, info: read.append(1) or self.open(info).read())
    assert len(scenes.val) == 1
    assert read == []
    assert scenes.val.images is scenes.val.images
    assert scenes.val.masks.shape == (1, 120, 160)
    assert len(read) == 2  # one picture and its labels


def test_camvid_refuses(publisher: Publisher) -> None:
    stills, _, colors = _camvid()
    publisher.publish("camvid", "png archives", stills, _zip({f"{SCENES[1]}_L.png": _png(colors)}))
    with pytest.raises(DataError, match=r"holds no labels of 0001TP_006690\.png"):
        data.camvid()
    strange = {f"{scene}_L.png": _png(colors + np.uint8(1)) for scene in SCENES}
    publisher.publish("camvid", "png archives", stills, _zip(strange))
    with pytest.raises(ChecksumError):  # the cache holds the first one
        data.camvid()
    (publisher.machine.cache / "camvid" / "LabeledApproved_full.zip").unlink()
    with pytest.raises(DataError, match=r"_L\.png is not one of CamVid's labels: it has the color \(129, 129, 129\)"):
        _ = data.camvid().train.masks


# texts

TOKENS = b"b.jpg#1\tA cat .\nb.jpg#0\tThe cat sits .\na.jpg#0\tA dog runs .\nc.jpg.1#0\tNobody .\n"


def _captions(**changed: bytes) -> bytes:
    files = {
        "Flickr8k.token.txt": TOKENS,
        "__MACOSX/._Flickr8k.token.txt": b"\0\5\x16",
        "Flickr8k.lemma.txt": b"a.jpg#0\tbe\n",
        "Flickr_8k.trainImages.txt": b"b.jpg\n",
        "Flickr_8k.devImages.txt": b"a.jpg\r\n",
        "Flickr_8k.testImages.txt": b"",
    }
    return _zip({**files, **{name.replace("__", "."): content for name, content in changed.items()}})


def test_captions(publisher: Publisher) -> None:
    publisher.publish("captions", "token files", _captions())
    captions = data.captions()
    assert [image.image for image in captions.examples] == ["a.jpg", "b.jpg", "c.jpg.1"]
    assert captions[1].captions == ("The cat sits .", "A cat .")
    assert [image.split for image in captions.examples] == ["val", "train", "none"]
    assert captions.indices("val").tolist() == [0]
    with pytest.raises(InputError, match="captions has no split 'test': it has none, train, val"):
        captions.indices("test")


def test_captions_refuse(publisher: Publisher) -> None:
    publisher.put("captions", "token files", _captions(Flickr8k__token__txt=TOKENS + b"no tab\n"))
    with pytest.raises(DataError, match=r"line 5 of Flickr8k\.token\.txt is not 'image#number<tab>caption'"):
        data.captions()
    publisher.put("captions", "token files", _zip({"Flickr8k.token.txt": TOKENS}))
    with pytest.raises(DataError, match=r"holds no Flickr_8k\.devImages\.txt") as caught:
        data.captions()
    _line(caught)


def _review(number: int, rating: str = "5.0", text: str = "") -> str:
    return (
        f"<review>\n<unique_id>\nid{number}\n</unique_id>\n<unique_id>\nother\n</unique_id>\n<asin>\n1\n</asin>\n"
        f"<product_name>\nA & B: {number}\n</product_name>\n<helpful>\n4 of 9\n</helpful>\n"
        f"<rating>\n{rating}\n</rating>\n<title>\nTitle {number}\n</title>\n"
        "<reviewer_location>\n\n</reviewer_location>\n"
        f"<review_text>\n{text or f'Text <b>{number}</b>'}\n\nMore.\n</review_text>\n</review>\n"
    )


def _sentiment(positive: str = "") -> dict[str, bytes]:
    files = {}
    for i, folder in enumerate(("kitchen_&_housewares", "dvd", "books", "electronics")):
        top = f"sorted_data_acl/{folder}"
        files[f"{top}/positive.review"] = (positive or _review(10 * i) + _review(10 * i + 1)).encode()
        files[f"{top}/negative.review"] = _review(10 * i + 2, "1.0", "caf\xe9").encode("latin-1")
        files[f"{top}/unlabeled.review"] = _review(10 * i + 3).encode()
    return files


def test_sentiment(publisher: Publisher) -> None:
    publisher.publish("sentiment", "review files", _tar(_sentiment()))
    reviews = data.sentiment()
    assert len(reviews) == 12
    assert [review.domain for review in reviews.examples[::3]] == ["books", "dvd", "electronics", "kitchen"]
    assert [review.positive for review in reviews.examples[:3]] == [False, True, True]
    assert reviews[0].text == "caf\N{REPLACEMENT CHARACTER}\n\nMore."
    kitchen = reviews[10]
    assert (kitchen.id, kitchen.rating, kitchen.title) == ("id0", 5.0, "Title 0")
    assert (kitchen.product, kitchen.text) == ("A & B: 0", "Text <b>0</b>\n\nMore.")


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        (_review(1).replace("title", "caption"), r"review 1 of .*positive\.review has no <title>"),
        (_review(1) + _review(2, "many"), r"review 2 of .* has the rating 'many', which is not a number"),
        ("\n", "holds no positive reviews of books"),
    ],
)
def test_sentiment_refuses(publisher: Publisher, positive: str, message: str) -> None:
    publisher.put("sentiment", "review files", _tar(_sentiment(positive)))
    with pytest.raises(DataError, match=message) as caught:
        data.sentiment()
    _line(caught)


# audio


def test_fsdd(publisher: Publisher) -> None:
    pytest.importorskip("soundfile")
    clips = {(d, s, i): _samples(40 + d + i) for d in (1, 0) for s in ("theo", "george") for i in (0, 4, 5, 10)}
    top = "free-spoken-digit-dataset-1.0.10"
    files = {f"{top}/recordings/{d}_{s}_{i}.wav": _wav(x, 8000) for (d, s, i), x in clips.items()}
    publisher.publish("fsdd", "wav archive", _tar({f"{top}/README.md": b"# FSDD", **files}))
    fsdd = data.fsdd()
    assert (fsdd.rate, len(fsdd)) == (8000, 16)
    assert [clip.id for clip in fsdd.clips[:5]] == ["0_george_0", "0_george_4", "0_george_5", "0_george_10", "0_theo_0"]
    assert [clip.split for clip in fsdd.clips[:4]] == ["test", "test", "train", "train"]
    assert (fsdd.clips[-1].label, fsdd.clips[-1].speaker) == ("1", "theo")
    heard = fsdd[3]
    assert heard.dtype == np.float32
    np.testing.assert_array_equal(heard * 32768, clips[0, "george", 10])
    assert fsdd.seconds(3) == len(heard) / 8000


def _sphere(samples: NDArray[np.int16]) -> bytes:
    """NIST's SPHERE, from its description: a text header of 1,024 bytes, then big-endian samples."""
    fields = (
        f"sample_count -i {len(samples)}", "sample_rate -i 16000", "channel_count -i 1", "sample_n_bytes -i 2",
        "sample_byte_format -s2 10", "sample_sig_bits -i 16", "sample_coding -s3 pcm", "end_head",
    )  # fmt: skip
    return ("NIST_1A\n   1024\n" + "\n".join(fields) + "\n").encode().ljust(1024) + samples.astype(">i2").tobytes()


def _an4(suffix: str, write: Callable[[NDArray[np.int16]], bytes]) -> tuple[dict[str, bytes], list[NDArray[np.int16]]]:
    audio = [_samples(50), _samples(60), _samples(70)]
    wav = [f"an4/wav/{p}.{suffix}" for p in ("an4_clstk/fash/an251-fash-b", "an4_clstk/mblw/cen1-mblw-b")]
    wav.append(f"an4/wav/an4test_clstk/mjgm/an34-mjgm-b.{suffix}")
    files = {
        "an4/etc/an4.dic": b"A                    AH\nA(2)                 EY\nYES                  Y EH S\n",
        "an4/etc/an4.phone": b"AH\nEH\nEY\nS\nY\n",
        "an4/etc/an4_train.fileids": b"an4_clstk/fash/an251-fash-b\nan4_clstk/mblw/cen1-mblw-b\n",
        "an4/etc/an4_train.transcription": b"<s> YES </s> (an251-fash-b)\n<s> A YES </s> (cen1-mblw-b)\n",
        "an4/etc/an4_test.fileids": b"an4test_clstk/mjgm/an34-mjgm-b\n",
        "an4/etc/an4_test.transcription": b"YES A (an34-mjgm-b)\n",
    }
    return {**files, **{name: write(samples) for name, samples in zip(wav, audio, strict=True)}}, audio


@pytest.mark.parametrize("kind", ["raw", "sphere"])
def test_an4(publisher: Publisher, kind: str) -> None:
    if kind == "sphere":
        pytest.importorskip("soundfile")
        files, audio = _an4("sph", _sphere)
    else:
        files, audio = _an4("raw", lambda samples: samples.astype(">i2").tobytes())
    publisher.publish("an4", f"{kind} archive", _tar(files))
    an4 = data.an4()
    assert an4.frames is None
    assert an4.audio.rate == 16000
    for heard, said in zip(an4.audio, audio, strict=True):
        np.testing.assert_array_equal(heard * 32768, said)
    facts = [(c.id, c.split, c.speaker, c.gender, c.words) for c in an4.audio.clips]
    assert facts[1] == ("cen1-mblw-b", "train", "mblw", "m", ("A", "YES"))
    assert facts[2] == ("an34-mjgm-b", "test", "mjgm", "m", ("YES", "A"))
    assert an4.lexicon["A"] == (("AH",), ("EY",))
    assert an4.phones == ("AH", "EH", "EY", "S", "Y")


def test_an4_refuses(publisher: Publisher) -> None:
    files, _ = _an4("raw", lambda samples: samples.astype(">i2").tobytes())
    short = {name: content for name, content in files.items() if "cen1" not in name}
    publisher.put("an4", "raw archive", _tar(short))
    with pytest.raises(DataError, match="an4_clstk/mblw/cen1-mblw-b has no audio or no transcript"):
        data.an4()
    publisher.put("an4", "raw archive", _tar({**files, "an4/wav/x/odd.raw": b"123"}))
    with pytest.raises(DataError, match=r"odd\.raw is not 16-bit audio: it has 3 bytes") as caught:
        data.an4()
    _line(caught)


LABLAUT = (
    "signal 03a01Fa\ntype 0\ncolor 121\ncomment created using xlabel\nseparator ;\nnfields 1\n#\n"
    "    0.001000  121 (\n    0.002000  121 _t\n    0.002500  121 !t +asp\n    0.003000  121 tasp\n"
    "    0.003500  121 a 2\n    0.003750  121 -lar\n    0.004000  121 .\n"
)


def test_emodb(publisher: Publisher) -> None:
    pytest.importorskip("soundfile")
    audio = {"03a01Fa": _samples(80), "03a02Wb": _samples(90), "08b10Na": _samples(70)}
    files = {f"wav/{id}.wav": _wav(samples, 16000) for id, samples in audio.items()}
    files["lablaut/03a01Faxx.lablaut"] = LABLAUT.encode()
    files["lablaut/08b10Naxx.lablaut"] = LABLAUT.replace("\n", "\r\n").encode()
    files["erkennung.txt"] = b"Satz\tErk"
    publisher.publish("emodb", "wav archive", _zip(files))
    emodb = data.emodb()
    assert [clip.id for clip in emodb.clips] == sorted(audio)
    for heard, clip in zip(emodb, emodb.clips, strict=True):
        np.testing.assert_array_equal(heard * 32768, audio[clip.id])
    happy, angry, neutral = emodb.clips
    assert (happy.speaker, happy.gender, happy.label) == ("03", "m", "happiness")
    assert (angry.label, angry.text) == ("anger", "Das will sie am Mittwoch abgeben.")
    assert (neutral.gender, neutral.label, neutral.complete) == ("f", "neutral", True)
    assert happy.phones is not None
    assert [phone.symbol for phone in happy.phones] == ["sil", "pau", "t", "a", "sil"]
    assert happy.phones[2] == data.Phone(0.002, 0.0035, "t")
    assert happy.phones[-1].end == 80 / 16000
    assert neutral.phones is not None
    assert neutral.phones[-1].end == 70 / 16000
    assert angry.phones is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"lablaut/03a01Faxx.lablaut": b"0.1 121 a\n"}, "its header does not end with a line '#'"),
        ({"lablaut/03a01Faxx.lablaut": b"type 0\n#\n soon 121 a\n"}, "'soon 121 a' is not 'seconds color label'"),
        ({"wav/03a01Fa.wav": b"RIFF"}, r"03a01Fa\.wav cannot be read as audio"),
        ({"wav/03a01Fa.wav": _wav(np.zeros(9, np.int16), 8000)}, "8000 samples a second and 1 channels: 16000 and 1"),
        ({"wav/03a01Fa.wav": _wav(np.zeros(8, np.int16), 16000, 2)}, "16000 samples a second and 2 channels"),
        ({"wav/99a01Fa.wav": _wav(np.zeros(8, np.int16), 16000)}, "99a01Fa does not name a speaker"),
        ({"README": b""}, r"holds no wav/03a01Fa\.wav"),
    ],
)
def test_emodb_refuses(publisher: Publisher, files: dict[str, bytes], message: str) -> None:
    pytest.importorskip("soundfile")
    publisher.put("emodb", "wav archive", _zip(files))
    with pytest.raises(DataError, match=message) as caught:
        data.emodb()
    assert "download.zip" in _line(caught) or "99a01Fa" in _line(caught)


def test_phones_begin_at_marks_of_sounds() -> None:
    marks = [(0.1, "!t"), (0.2, "I6 2"), (0.3, "g-sth"), (0.4, "gasp +hoe"), (0.5, "!"), (0.6, "+lar"), (0.7, ". -ges")]
    assert [(p.start, p.symbol) for p in emodb_phones(marks, 1.0)] == [
        (0.0, "sil"), (0.1, "t"), (0.2, "i6"), (0.3, "g"), (0.7, "sil"),
    ]  # fmt: skip
    assert emodb_phones([], 1.0) == ()
    # The same sound twice is two sounds, if both have marks of their own.
    assert [p.start for p in emodb_phones([(0.0, "n"), (0.2, "_n"), (0.3, ".")], 1.0)] == [0.0, 0.2, 0.3]


def test_prompts(publisher: Publisher) -> None:
    pytest.importorskip("soundfile")
    audio = {"vm-press": _samples(30), "digits/14": _samples(40), "silence/1": _samples(8), "beep": _samples(9)}
    files = {f"{id}.wav": _wav(samples, 8000) for id, samples in audio.items()}
    files["core-sounds-en.txt"] = (
        b"; Core sounds: all\n;vm-press: old\n\nvm-press: press 1, please.\n"
        b"digits/14: fourteen\nbeep: ...\nlost: Lost.\n"
    )
    files["._beep.wav"] = b"\0\5\x16\7"  # what macOS adds
    publisher.publish("prompts", "wav archive", _tar(files))
    prompts = data.prompts()
    assert [clip.id for clip in prompts.audio.clips] == ["digits/14", "vm-press"]
    assert prompts.audio.clips[1].words == ("PRESS", "ONE", "PLEASE")
    assert prompts.audio.clips[1].text == "press 1, please."
    np.testing.assert_array_equal(prompts.audio[0] * 32768, audio["digits/14"])
    assert (prompts.audio.rate, dict(prompts.lexicon), prompts.phones) == (8000, {}, ())
    assert not prompts.covered(prompts.audio.clips[0])


def test_prompts_refuse(publisher: Publisher) -> None:
    pytest.importorskip("soundfile")
    publisher.put("prompts", "wav archive", _tar({"a.wav": _wav(_samples(9), 8000)}))
    with pytest.raises(DataError, match=r"holds no core-sounds-en\.txt, or no sound of it") as caught:
        data.prompts()
    _line(caught)


def test_prompt_words() -> None:
    assert prompt_words("letters of your party's 'first' name") == ("LETTERS", "OF", "YOUR", "PARTY'S", "FIRST", "NAME")
    assert prompt_words("Speed-dial 10") == ("SPEED", "DIAL", "10")


def test_noise(publisher: Publisher) -> None:
    pytest.importorskip("soundfile")
    audio = {"running_tap": _samples(60), "doing_the_dishes": _samples(50)}
    files = {f"./_background_noise_/{name}.wav": _wav(samples, 16000) for name, samples in audio.items()}
    publisher.publish(
        "noise", "speech commands", _tar({"./bed/a.wav": b"", "./_background_noise_/pink_noise.wav": b"", **files})
    )
    noise = data.noise()
    assert [clip.label for clip in noise.clips] == ["doing_the_dishes", "running_tap"]
    np.testing.assert_array_equal(noise[1] * 32768, audio["running_tap"])


# what is wrong, for all

BY_HAND = [
    (name, form.format) for name in data.names() for form in data.dataset(name).forms if form.source and name != "noise"
]


@pytest.mark.parametrize(("name", "format"), BY_HAND)
@pytest.mark.parametrize(
    "content",
    [b"", b"<html>sign in</html>", _tar({"a": b"b"})[:-9], _zip({"a": b"b"})[:-9]],
    ids=["empty", "page", "cut tar", "cut zip"],
)
def test_no_archive(publisher: Publisher, name: str, format: str, content: bytes) -> None:
    (form,) = (form for form in data.dataset(name).forms if form.format == format)
    paths = publisher.put(name, format, *[content] * len(form.files))
    with pytest.raises(DataError) as caught:
        data.LOADERS[name]()
    assert str(paths[0]) in _line(caught)


@pytest.mark.parametrize(("name", "format"), BY_HAND)
def test_another_archive(publisher: Publisher, name: str, format: str) -> None:
    (form,) = (form for form in data.dataset(name).forms if form.format == format)
    archives = [(_zip if file.path.endswith(".zip") else _tar)({"README": b"something else"}) for file in form.files]
    publisher.put(name, format, *archives)
    with pytest.raises(DataError, match="not") as caught:
        data.LOADERS[name]()
    assert form.files[0].path in _line(caught)


def _unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _published(name: str, format: str) -> list[dict[str, bytes]]:
    """The files in each archive of a set that is put there by hand, few and small."""
    if name == "camvid":
        return [_unzipped(each) for each in _camvid()[:2]]
    if name == "captions":
        return [_unzipped(_captions())]
    if name == "sentiment":
        return [_sentiment()]
    if name == "fsdd":
        return [{f"f/recordings/{digit}_theo_0.wav": _wav(_samples(9), 8000) for digit in (0, 1)}]
    if name == "an4":
        write = _sphere if format == "sphere archive" else lambda samples: samples.astype(">i2").tobytes()
        return [_an4("sph" if format == "sphere archive" else "raw", write)[0]]
    if name == "emodb":
        return [{"wav/03a01Fa.wav": _wav(_samples(80), 16000), "lablaut/03a01Faxx.lablaut": LABLAUT.encode()}]
    assert name == "prompts"
    return [{"vm-press.wav": _wav(_samples(30), 8000), "core-sounds-en.txt": b"vm-press: press 1, please.\n"}]


@pytest.mark.parametrize(("name", "format"), BY_HAND)
@settings(fuzzed, max_examples=EXAMPLES or 12)
@given(drawn=st.data())
def test_damaged_archives(publisher: Publisher, name: str, format: str, drawn: st.DataObject) -> None:
    (form,) = (form for form in data.dataset(name).forms if form.format == format)
    archives = []
    for file, files in zip(form.files, _published(name, format), strict=True):
        member = drawn.draw(st.sampled_from([None, *files]))
        if member is not None:
            files[member] = drawn.draw(damaged(files[member]))
        whole = _zip(files) if file.path.endswith(".zip") else _tar(files, "w")
        whole = whole if member is not None else drawn.draw(damaged(whole))
        archives.append(whole if file.path.endswith(".zip") else gzip.compress(whole, 1))
    publisher.put(name, format, *archives)
    read_or_refused(lambda: data.LOADERS[name]().arrays())


def test_files_without_a_known_checksum_name_themselves(publisher: Publisher) -> None:
    (path,) = publisher.put("captions", "token files", _captions())
    first = data.checksum("captions")
    assert not data.check("captions")
    assert first != data.dataset("captions").forms[0].sha256
    path.write_bytes(_captions(Flickr8k__token__txt=b"b.jpg#0\tChanged .\n"))
    assert data.checksum("captions") != first


def test_a_file_whose_checksum_names_the_data_is_read_once(publisher: Publisher) -> None:
    (path,) = publisher.put("captions", "token files", _captions())
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    publisher.monkeypatch.setattr(data.checksums, "file_sha256", counted)
    first = [data.checksum("captions") for _ in range(3)]  # of three trials
    path.write_bytes(_captions(Flickr8k__token__txt=b"b.jpg#0\tChanged .\n"))
    second = [data.checksum("captions") for _ in range(3)]
    assert read == [path, path]
    assert len({*first}) == len({*second}) == 1
    assert first[0] != second[0]


def test_nothing_is_downloaded_without_a_checksum_to_hold_it_to(publisher: Publisher) -> None:
    form = publisher.publish("captions", "token files", _captions())
    assert form.downloadable
    unknown = replace(form, files=tuple(replace(file, sha256="") for file in form.files))
    assert not unknown.downloadable
    entry = data.dataset("captions")
    publisher.monkeypatch.setitem(data.CATALOG, "captions", replace(entry, forms=(unknown,)))
    with pytest.raises(DataNotFoundError):
        data.captions()
    assert publisher.server.asked == []


def test_a_known_checksum_is_held_to(publisher: Publisher) -> None:
    publisher.put("noise", "speech commands", _tar({"_background_noise_/running_tap.wav": b""}))
    with pytest.raises(ChecksumError, match=r"speech_commands_v0\.02\.tar\.gz is damaged or not what was published"):
        data.noise()


@pytest.mark.parametrize("name", [name for name in data.names() if data.dataset(name).by_hand.source])
def test_missing(machine: Machine, name: str) -> None:
    with pytest.raises(DataNotFoundError) as caught:
        data.LOADERS[name]()
    line = _line(caught)
    form = data.dataset(name).by_hand
    assert f"the data set {name} is not on this machine: put {form.files[0].path}" in line
    assert f"(from {form.source}) into a folder and name that folder in COUNTERFLOW_DATA" in line
    with pytest.raises(DataNotFoundError):
        data.checksum(name)


@pytest.mark.parametrize(("module", "name", "extra"), [("soundfile", "fsdd", "audio"), ("pyarrow", "sentiment", "lab")])
def test_missing_extra(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, name: str, extra: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    if name == "fsdd":
        publisher.put(name, "wav archive", _tar({"f/recordings/0_theo_0.wav": _wav(_samples(9), 8000)}))
        load: Callable[[], object] = data.fsdd
    else:
        from counterflow.lab.data.parquet import parquet_columns

        load = lambda: parquet_columns(tmp_path / "x", name, ("text",))  # noqa: E731
    with pytest.raises(MissingExtraError, match=rf"pip install 'counterflow\[{extra}\]'"):
        load()


def test_a_member_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST", 10)
    for path, content in (
        (tmp_path / "a.zip", _zip({"a": b"x" * 11})),
        (tmp_path / "a.tar", _tar({"a": b"x" * 11}, "w")),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match="its file a has 11 bytes"):
            list(archives.archive_members(path, lambda name: True))
        assert list(archives.archive_members(path, lambda name: False)) == []


def test_a_zip_file_of_the_future(tmp_path: Path) -> None:
    content = bytearray(_zip({"a": b"1"}))
    content[content.index(b"PK\1\2") + 6] = 99  # the version that it needs
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip cannot be read as an archive: zip file version 9\.9"):
        list(archives.archive_members(tmp_path / "a.zip", lambda name: True))


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_what_macos_adds_is_no_member(tmp_path: Path, suffix: str) -> None:
    files = {"a/x": b"1", "a/._x": b"2", "__MACOSX/a/y": b"3"}
    path = tmp_path / f"some{suffix}"
    path.write_bytes((_zip if suffix == ".zip" else _tar)(files))
    assert [content for _, content in archives.archive_members(path, lambda name: True)] == [b"1"]


def test_nothing_is_unpacked(publisher: Publisher, tmp_path: Path) -> None:
    """Names that lead out of a folder are names and no more."""
    before = sorted(path for path in tmp_path.rglob("*"))
    publisher.put("captions", "token files", _zip({"../../Flickr8k.token.txt": TOKENS, "/etc/x": b""}))
    with pytest.raises(DataError):
        data.captions()
    new = set(tmp_path.rglob("*")) - set(before)
    assert {path.name for path in new if path.is_file()} == {"Flickr8k_text.zip"}


# splits


def test_a_drawn_split_keeps_groups_together() -> None:
    groups = [f"speaker {i % 7}" for i in range(70)]
    split = np.array(data.drawn_split(groups, 15))
    assert (split == "test").sum() == 20  # two speakers of ten
    assert not set(np.array(groups)[split == "test"]) & set(np.array(groups)[split == "train"])


def test_a_drawn_split_depends_on_the_seed_and_on_nothing_else() -> None:
    groups = [str(i) for i in range(40)]
    split = data.drawn_split(groups, 10)
    assert data.drawn_split(groups, 10) == split
    assert data.drawn_split(groups[::-1], 10) == split[::-1]
    assert data.drawn_split(groups, 10, seed=1) != split
    # Pinned: it must be the same on every machine.
    assert [i for i, side in enumerate(split) if side == "test"] == PINNED


def test_a_drawn_split_of_strata() -> None:
    groups = [str(i) for i in range(40)]
    strata = [i % 4 for i in range(40)]
    split = data.drawn_split(groups, 3, strata=strata)
    assert [sum(side == "test" for side in split[k::4]) for k in range(4)] == [3, 3, 3, 3]


def test_a_group_of_several_strata_is_never_on_both_sides() -> None:
    groups = ["a", "b", "a", "c"]
    split = data.drawn_split(groups, 1, strata=[0, 0, 1, 1])
    assert split[0] == split[2]
    assert [split[:2].count("test"), split[2:].count("test")] == [1, 1]
    mixed = [str(i % 7) for i in range(60)]
    for seed in range(20):
        sides = data.drawn_split(mixed, 5, strata=[i % 4 for i in range(60)], seed=seed)
        assert len(set(zip(mixed, sides, strict=True))) == 7
