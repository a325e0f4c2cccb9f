"""Whatever a user's file holds, it is read or refused in one line, and no memory is taken on its word."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as deserialized
from safetensors.torch import save as serialized

import counterflow as cf
from counterflow import audio, persist
from counterflow.cli import identify, main, speech
from counterflow.exceptions import DataError, InputError, RecordError
from counterflow.lab.data.audio import read_audio
from counterflow.lab.trials import pack, read_record, unpack
from counterflow.speech import GaussianStates, Grammar, Lexicon, Phoneme, Recognizer
from counterflow.speech.acoustics import ALIGNMENTS, read_ready

from .damage import EXAMPLES, damaged, fuzzed, read_or_refused


def sound(folder: Path, name: str, channels: int = 1) -> bytes:
    wave = 0.1 * np.sin(np.arange(800 * channels) / 5).reshape(-1, channels)
    soundfile.write(folder / name, wave, 8000)
    return (folder / name).read_bytes()


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
@fuzzed
@given(data=st.data())
def test_sound(tmp_path: Path, name: str, data: st.DataObject) -> None:
    whole = sound(tmp_path, name)
    (tmp_path / "damaged").write_bytes(data.draw(damaged(whole)))
    read_or_refused(lambda: audio.read(tmp_path / "damaged"))


def ready(folder: Path) -> bytes:
    np.save(folder / "a.npy", np.arange(12, dtype=np.float32).reshape(4, 3))
    return (folder / "a.npy").read_bytes()


@fuzzed
@given(data=st.data())
def test_ready_features(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "damaged.npy").write_bytes(data.draw(damaged(ready(tmp_path))))
    read_or_refused(lambda: read_ready(tmp_path / "damaged.npy"))


def headed(header: str, version: bytes = b"\x01\x00") -> bytes:
    """A NumPy file of this header and 48 bytes."""
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + header.encode("latin-1") + bytes(48)


HEADER = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}".format


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04junk",
        b"\x80\x04N.",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        headed(HEADER("'<f4'", "(4, 3)"), b"\x09\x00"),
        headed("{'descr'"),
        headed("-" * 9000 + "1"),
        headed("[" * 9000),
        headed(HEADER("'<f4'", "(4, 3)")[:-1] + ", 1: 2}"),
        headed(HEADER("'f4,('", "(4, 3)")),
        headed(HEADER("[(1, 2, 3)]", "(4, 3)")),
        headed(HEADER("'|O'", "(4, 3)")),
        headed(HEADER("'<f4'", "(4, 4)")),
        headed(HEADER("'<f4'", f"({1 << 40}, {1 << 40})")),
        headed(HEADER("'<f4'", f"(0x1{'0' * 9000}, 1)")),
        headed(HEADER("'<f4'", "(-4, -3)")),
        headed(HEADER("'<f4'", "(4, 0)")),
        headed(HEADER("'<f4'", "(12,)")),
        headed(HEADER("'<f4'", "(12L,)")),
    ],
    ids=range(19),
)
def test_what_is_no_file_of_features_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with at_most(64 << 20), pytest.raises(DataError) as caught:
        read_ready(tmp_path / "a.npy")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


AUTOMATON = b"0 1 call 0.5\n1 2 home\n1 2 bob 0.7\n2 3 <eps> 0.1\n3 0.25\n"


@fuzzed
@given(content=damaged(AUTOMATON))
def test_automata(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "calls.fst").write_bytes(content)
    read_or_refused(lambda: Grammar.read(tmp_path / "calls.fst"))


LEXICON = b";;; words\nYES  Y EH1 S\nYES(2)  Y EH1\nNO  N OW1\n"


@fuzzed
@given(content=damaged(LEXICON))
def test_lexicons(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "words.dic").write_bytes(content)
    read_or_refused(lambda: Lexicon.read(tmp_path / "words.dic"))


TABLES = {
    "transcripts.csv": b'file,text\na.wav,"yes, no"\na.wav,no\n',
    "transcripts.tsv": b"file\ttext\na.wav\tyes no\n",
    "wav.scp": b"u1 a.wav\nu2 a.wav\n",
}


@pytest.mark.parametrize("name", list(TABLES))
@fuzzed
@given(data=st.data())
def test_transcripts(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: st.DataObject) -> None:
    sound(tmp_path, "a.wav")
    (tmp_path / name).write_bytes(data.draw(damaged(TABLES[name])))
    (tmp_path / "text").write_bytes(data.draw(damaged(b"u1 yes\nu2 no\n")))
    (tmp_path / "words.dic").write_bytes(LEXICON)
    status = main(["speech", "check", str(tmp_path), "--lexicon", str(tmp_path / "words.dic")])
    assert status in (0, 1, 2)
    if status == 2:
        assert len(capsys.readouterr().err.splitlines()) == 1


@fuzzed
@given(content=damaged("yes\nno, yes!\n\nno caf\u00e9\n".encode()))
def test_texts_of_a_grammar(models: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "texts").write_bytes(content)
    read_or_refused(lambda: speech._load(models / "speech", str(tmp_path / "texts"), "skip"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One saved model of each kind, and a trace."""
    folder = tmp_path_factory.mktemp("models")
    draw = torch.Generator().manual_seed(0)
    sequences = [torch.randn(12, 3, generator=draw) for _ in range(4)]
    classifier = cf.density.RelativeDensityClassifier(n_models=2, n_states=2, iterations=1)
    classifier.fit(sequences, [0, 1, 0, 1]).save(folder / "density")
    config, tensors = classifier._stored()
    about = {"classifier": config, "features": identify.FEATURES, "rate": 8000, "n_mels": 3, "threshold": 0.5}
    persist.save(folder / "identify", identify.KIND, about, tensors)
    lexicon = Lexicon({"yes": [("Y", "EH", "S")], "no": [("N", "OW")]})
    phoneme = Phoneme()
    states = GaussianStates(len(lexicon.phones) * phoneme.predictors, 4)
    Recognizer(states, lexicon, Grammar.loop(["yes", "no"]), phoneme, rate=8000, spread=torch.ones(4)).save(
        folder / "speech"
    )
    words = cf.separation.WordClassifier(["yes", "no"], 8000, audio.ShortTime(64, 16), n_mels=4, frames=2, hidden=3)
    words.save(folder / "word classifier")
    recorder = cf.analog.Recorder(cf.analog.Board(2, 3, 1))
    cf.analog.learn(recorder, [[0.1, 0.2], [0.3, 0.4]], [[0.5], [0.6]], 0.1)
    recorder.save(folder / "trace")
    return folder


LOADERS: dict[str, Callable[[Path], object]] = {
    "density": cf.density.RelativeDensityClassifier.load,
    "identify": identify._load,
    "speech": Recognizer.load,
    "word classifier": cf.separation.WordClassifier.load,
    "trace": cf.analog.Replay.load,
}


@contextlib.contextmanager
def at_most(memory: int) -> Iterator[None]:
    """No more address space than this above what the process has now; beyond it an allocation fails."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("kind", list(LOADERS))
@fuzzed
@given(data=st.data())
def test_damaged_models(models: Path, tmp_path: Path, kind: str, data: st.DataObject) -> None:
    for name in ("model.json", "model.safetensors"):
        whole = (models / kind / name).read_bytes()
        (tmp_path / name).write_bytes(data.draw(damaged(whole)) if data.draw(st.booleans()) else whole)
    read_or_refused(lambda: LOADERS[kind](tmp_path))


def places(told: Any, kind: type, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Where a ``kind`` is in what JSON holds."""
    if path and isinstance(told, kind):
        yield path
    if isinstance(told, dict | list):
        for key, value in told.items() if isinstance(told, dict) else enumerate(told):
            yield from places(value, kind, *path, key)


def altered(text: str, values: Iterable[Any], kind: type = object) -> Iterator[str]:
    """A model's JSON, each time with another thing in one place of its configuration that holds a ``kind``."""
    for *parents, last in places(json.loads(text)["config"], kind):
        for value in values:
            told = json.loads(text)
            inner = told["config"]
            for key in parents:
                inner = inner[key]
            inner[last] = value
            yield json.dumps(told)


@pytest.mark.parametrize("kind", list(LOADERS))
def test_a_hostile_model_takes_no_memory_on_its_word(models: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.safetensors").write_bytes((models / kind / "model.safetensors").read_bytes())
    text = (models / kind / "model.json").read_text()
    with at_most(256 << 20):
        for each in altered(text, [30_000, 10**9, 10**30, 0, -1], int):
            (tmp_path / "model.json").write_text(each)
            read_or_refused(lambda: LOADERS[kind](tmp_path))


@pytest.mark.parametrize("kind", list(LOADERS))
def test_a_model_that_says_something_else_is_read_or_refused(models: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.safetensors").write_bytes((models / kind / "model.safetensors").read_bytes())
    text = (models / kind / "model.json").read_text()
    for each in altered(text, [None, 0.5, math.inf, 10**400, "x", [[1], 2], {"x": None}]):
        (tmp_path / "model.json").write_text(each)
        read_or_refused(lambda: LOADERS[kind](tmp_path))


def others(tensors: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Tensors of which, each time, one is missing, or has another shape or type."""
    for name, value in tensors.items():
        for other in (None, value[None], value.reshape(-1)[:0], value.to(torch.bfloat16)):
            rest = {key: each for key, each in tensors.items() if key != name}
            yield rest if other is None else {**rest, name: other}


@pytest.mark.parametrize("kind", list(LOADERS))
def test_a_model_of_other_tensors_is_read_or_refused(models: Path, tmp_path: Path, kind: str) -> None:
    told = json.loads((models / kind / "model.json").read_text())
    del told["tensors"]  # older models have no checksum
    (tmp_path / "model.json").write_text(json.dumps(told))
    for each in others(deserialized((models / kind / "model.safetensors").read_bytes())):
        (tmp_path / "model.safetensors").write_bytes(serialized(each))
        read_or_refused(lambda: LOADERS[kind](tmp_path))


def test_a_transform_without_tensors_of_its_own_is_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((models / "word classifier" / "model.safetensors").read_bytes())
    told = json.loads((models / "word classifier" / "model.json").read_text())
    told["config"]["transform"] = [10**9, 10**8, "hamming"]
    (tmp_path / "model.json").write_text(json.dumps(told))
    with at_most(64 << 20), pytest.raises(InputError, match=r"4 filters of 500000001 frequencies are too many"):
        cf.separation.WordClassifier.load(tmp_path)


def test_filters_that_the_tensors_do_not_have_are_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((models / "identify" / "model.safetensors").read_bytes())
    told = json.loads((models / "identify" / "model.json").read_text())
    told["config"]["n_mels"] = 10**9
    (tmp_path / "model.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="it hears 3 features of 1000000000; train it again"):
        identify._load(tmp_path)


@pytest.mark.parametrize("size", ["n_models", "n_states"])
def test_sizes_that_the_tensors_do_not_have_are_refused(models: Path, tmp_path: Path, size: str) -> None:
    (tmp_path / "model.safetensors").write_bytes((models / "density" / "model.safetensors").read_bytes())
    told = json.loads((models / "density" / "model.json").read_text())
    told["config"]["parameters"][size] = 30_000
    (tmp_path / "model.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="its configuration says"):
        cf.density.RelativeDensityClassifier.load(tmp_path)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    persist.save(tmp_path, "kind", {}, {})
    (tmp_path / "model.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="damaged"):
        persist.load(tmp_path, "kind")


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    persist.save(tmp_path, "kind", {}, {"a": torch.zeros(2)})
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with at_most(64 << 20), pytest.raises(InputError, match="damaged"):
        persist.load(tmp_path, "kind")


class KilledError(Exception):
    pass


def train(kind: Literal["predictors", "classifier"], state: Path, report: Callable[[int, float], None]) -> None:
    draw = torch.Generator().manual_seed(0)
    waves = [0.1 * torch.randn(2400, generator=draw) for _ in range(2)]
    lexicon = Lexicon({"HI": [["H", "I"]]})
    Recognizer.train(
        waves, ["HI", "HI"], 8000, lexicon, kind=kind, passes=2, components=1, hidden=2, n_mels=4, generator=draw,
        report=report, checkpoint=state,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["predictors", "gaussians", "classifier"])
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, bytes]:
    """A kind of model, and the state of its training after a pass in one of its stages."""
    kind, last = {"predictors": ("predictors", 0), "gaussians": ("classifier", 0)}.get(
        request.param, ("classifier", ALIGNMENTS)
    )

    def kill(number: int, cost: float) -> None:
        if number == last:
            raise KilledError

    state = tmp_path_factory.mktemp("killed") / "state"
    with pytest.raises(KilledError):
        train(kind, state, kill)
    return kind, state.read_bytes()


def resumed(kind: Any, state: Path) -> None:
    """Go on for a pass: what was read has been used then."""

    def stop(number: int, cost: float) -> None:
        raise KilledError

    with contextlib.suppress(KilledError):
        train(kind, state, stop)


@settings(fuzzed, max_examples=EXAMPLES or 10)
@given(data=st.data())
def test_states_of_training(killed: tuple[Any, bytes], tmp_path: Path, data: st.DataObject) -> None:
    kind, whole = killed
    (tmp_path / "state").write_bytes(data.draw(damaged(whole)))
    read_or_refused(lambda: resumed(kind, tmp_path / "state"))


def test_a_state_of_training_that_lacks_something_is_read_or_refused(killed: tuple[Any, bytes], tmp_path: Path) -> None:
    kind, whole = killed
    tensors = deserialized(whole)
    about = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    for each in others(tensors):
        (tmp_path / "state").write_bytes(serialized({**each, "more": torch.zeros(1)}, about))
        read_or_refused(lambda: resumed(kind, tmp_path / "state"))
    state = json.loads(about["state"])
    for name in state:
        for value in (None, 10**400, "x", [None], {"gaussians": [10**400]}, "[" * 5000):
            (tmp_path / "state").write_bytes(serialized(tensors, {"state": json.dumps({**state, name: value})}))
            read_or_refused(lambda: resumed(kind, tmp_path / "state"))
    (tmp_path / "state").write_bytes(serialized(tensors, {"state": "[" * 100_000}))
    with pytest.raises(InputError, match="is no state of a training run"):
        resumed(kind, tmp_path / "state")


ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_sound_is_no_longer_than_what_is_there(tmp_path: Path, channels: int) -> None:
    content = bytearray(sound(tmp_path, "a.flac", channels))
    told = int.from_bytes(content[18:26], "big")  # rate, channels and bits, and in the last 36 bits the samples
    content[18:26] = (told | (1 << 36) - 1).to_bytes(8, "big")
    (tmp_path / "a.flac").write_bytes(content)
    path = tmp_path / "a.flac"
    with at_most(128 << 20):
        for read in (audio.read, audio.read_channels, lambda path: [*audio.read_parts(path)]):
            with pytest.raises(DataError, match=r"truncated|cannot be read as audio"):
                read(path)
        read_or_refused(lambda: read_audio(path, 8000))


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_sound_in_several_blocks_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    sound(tmp_path, name, 3)
    whole, rate = audio.read_channels(tmp_path / name)
    for block in (1, 7, 1200, 2400):
        monkeypatch.setattr(audio.files, "BLOCK", block)
        found, again = audio.read_channels(tmp_path / name)
        assert again == rate
        assert found.is_contiguous()
        assert torch.equal(found, whole)


@fuzzed
@given(data=st.data())
def test_packed_records(tmp_path: Path, data: st.DataObject) -> None:
    packed = (ROOT / "evidence" / "bptt" / "laptop.jsonl.gz").read_bytes()
    plain = gzip.decompress(packed)[:4000].rsplit(b"\n", 1)[0] + b"\n"
    if data.draw(st.booleans()):
        content = gzip.compress(data.draw(damaged(plain)), compresslevel=1)
    else:
        content = data.draw(damaged(gzip.compress(plain, compresslevel=1)))
    (tmp_path / "laptop.jsonl.gz").write_bytes(content)
    read_or_refused(lambda: unpack(tmp_path / "laptop.jsonl.gz"))


def test_a_line_of_records_that_does_not_end_is_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "laptop.jsonl.gz", "wb", compresslevel=1) as stream:
        for _ in range(200):
            stream.write(bytes(1 << 20))
    with at_most(128 << 20), pytest.raises(RecordError, match="line 1, is damaged: it has more than 16,777,216 bytes"):
        unpack(tmp_path / "laptop.jsonl.gz")


def test_records_that_could_not_be_unpacked_are_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, environments = unpack(ROOT / "evidence" / "bptt" / "laptop.jsonl.gz")
    monkeypatch.setattr("counterflow.lab.trials.record.LONGEST", 80_000)
    with pytest.raises(RecordError, match=r"record \w+ has 8\d,\d+ bytes; 80,000 are the most"):
        pack(records, environments, tmp_path / "laptop.jsonl.gz")
    assert not [*tmp_path.iterdir()]


@fuzzed
@given(data=st.data())
def test_records(tmp_path: Path, data: st.DataObject) -> None:
    lines = gzip.decompress((ROOT / "evidence" / "bptt" / "laptop.jsonl.gz").read_bytes()).splitlines()
    line = next(each for each in lines if b'"treatment"' in each)
    path = tmp_path / f"{json.loads(line)['key']}.json"
    path.write_bytes(data.draw(damaged(line)))
    read_or_refused(lambda: read_record(path))
