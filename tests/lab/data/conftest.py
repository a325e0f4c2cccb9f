"""A machine with nothing on it, a small MNIST of its own, and a server that has it."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pooch
import pytest
from numpy.typing import NDArray

from counterflow.lab import data
from counterflow.lab.data import locate

NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An array in the publisher's format, before gzip; written from its description, not from the reader."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@dataclass
class Machine:
    """The folders of the search order, all below one temporary folder; none exists at first."""

    named: Path
    checkout: Path
    shared: Path
    cache: Path

    def folder(self, label: str) -> Path:
        return {"COUNTERFLOW_DATA": self.named, "beside the checkout": self.shared, "cache": self.cache}[label]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    checkout = tmp_path / "work" / "checkout"
    here = Machine(tmp_path / "named", checkout, tmp_path / "work" / "shared" / "data", tmp_path / "cache")
    (checkout / "src" / "counterflow" / "lab" / "data").mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    monkeypatch.setattr(locate, "__file__", str(checkout / "src/counterflow/lab/data/locate.py"))
    monkeypatch.setattr(pooch, "os_cache", lambda project: here.cache)
    monkeypatch.delenv("COUNTERFLOW_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return here


@dataclass
class SmallMnist:
    """Six and three pictures in MNIST's two forms, with a catalog entry in MNIST's place."""

    arrays: dict[str, NDArray[np.uint8]]
    files: dict[str, bytes]
    entry: data.DataSet

    def put(self, folder: Path, *paths: str) -> None:
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(self.files[path])


@pytest.fixture
def small_mnist(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallMnist:
    rng = np.random.default_rng(7)
    arrays = {
        "x_train": rng.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "y_train": rng.integers(0, 10, 6, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        "y_test": rng.integers(0, 10, 3, dtype=np.uint8),
    }
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    files = {"mnist/mnist.npz": (tmp_path / "small.npz").read_bytes()}
    for name, array in zip(NAMES, arrays.values(), strict=True):
        files[f"mnist/{name}"] = gzip.compress(idx_bytes(array), mtime=0)
    content = data.arrays_sha256(
        {
            "train_images": arrays["x_train"],
            "train_labels": arrays["y_train"].astype(np.int64),
            "test_images": arrays["x_test"],
            "test_labels": arrays["y_test"].astype(np.int64),
        }
    )
    listed = {p: data.File(p, hashlib.sha256(b).hexdigest(), len(b)) for p, b in files.items()}
    npz, *idx = listed.values()
    forms = (data.Form("npz", content, (npz,)), data.Form("idx", content, tuple(idx)))
    entry = replace(data.dataset("mnist"), splits={"train": 6, "test": 3}, forms=forms)
    monkeypatch.setitem(data.CATALOG, "mnist", entry)
    return SmallMnist(arrays, files, entry)


@dataclass
class Server:
    """A server on this machine and what it was asked for."""

    url: str
    folder: Path
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{http.server_port}/", folder, asked)
        http.shutdown()
        thread.join()


@pytest.fixture
def downloadable(small_mnist: SmallMnist, monkeypatch: pytest.MonkeyPatch) -> Callable[..., data.DataSet]:
    """Give the publisher's files of the small MNIST addresses below some servers."""

    def give(*urls: str) -> data.DataSet:
        npz, idx = small_mnist.entry.forms
        files = tuple(replace(f, urls=tuple(url + f.path.removeprefix("mnist/") for url in urls)) for f in idx.files)
        entry = replace(small_mnist.entry, forms=(npz, replace(idx, files=files)))
        monkeypatch.setitem(data.CATALOG, "mnist", entry)
        return entry

    return give


@dataclass
class Publisher:
    """A form of a data set whose files are small ones made in a test, downloaded from a server on this machine."""

    machine: Machine
    server: Server
    monkeypatch: pytest.MonkeyPatch

    def publish(self, name: str, format: str, *contents: bytes) -> data.Form:
        """Serve the files of one form, and make it the only one of its set."""
        entry = data.dataset(name)
        (form,) = (form for form in entry.forms if form.format == format)
        files = []
        for file, content in zip(form.files, contents, strict=True):
            (self.server.folder / Path(file.path).name).write_bytes(content)
            url = self.server.url + Path(file.path).name
            files.append(replace(file, sha256=hashlib.sha256(content).hexdigest(), size=len(content), urls=(url,)))
        small = replace(form, sha256="", files=tuple(files))
        self.monkeypatch.setitem(data.CATALOG, name, replace(entry, forms=(small,)))
        return small

    def put(self, name: str, format: str, *contents: bytes) -> list[Path]:
        """Put the files of one form into a data folder by hand; the catalog stays as it is."""
        (form,) = (form for form in data.dataset(name).forms if form.format == format)
        paths = [self.machine.shared / file.path for file in form.files]
        for path, content in zip(paths, contents, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return paths


@pytest.fixture
def publisher(machine: Machine, server: Server, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    return Publisher(machine, server, monkeypatch)


def without_data(reason: str) -> NoReturn:
    """Skip; but where all data must be there, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def real_mnist() -> data.LabeledImages:
    """MNIST itself, where it is on this machine already; a test downloads nothing."""
    if data.find("mnist") is None:
        without_data("MNIST is not on this machine: `counterflow data where` shows where it is looked for")
    return data.mnist()


@pytest.fixture
def manifest(real_mnist: data.LabeledImages) -> dict[str, str]:
    """The checksums of other sets in the folder that holds MNIST, by path."""
    found = data.find("mnist")
    path = found.place.folder / "MANIFEST.sha256" if found and found.place.folder else None
    if path is None or not path.is_file():
        without_data("the folder that holds MNIST holds no other sets with a MANIFEST.sha256")
    lines = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return {name: digest for digest, name in lines}
