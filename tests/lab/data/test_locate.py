from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from counterflow.exceptions import (
    ChecksumError,
    DataError,
    DataNotFoundError,
    InputError,
)
from counterflow.lab import data
from counterflow.lab.data import locate

if TYPE_CHECKING:
    from .conftest import Machine, SmallMnist

LABELS = ("COUNTERFLOW_DATA", "beside the checkout", "cache")


def _line(error: pytest.ExceptionInfo[BaseException]) -> str:
    line = str(error.value)
    assert "\n" not in line
    return line


# the catalog


def test_every_set_of_the_catalog_has_a_loader() -> None:
    assert list(data.LOADERS) == list(data.names())


@pytest.mark.parametrize("name", data.names())
def test_entries_are_complete(name: str) -> None:
    entry = data.dataset(name)
    assert entry.name == name
    assert entry.title
    assert entry.description
    assert entry.license
    assert entry.citation
    assert entry.splits
    assert entry.forms
    assert len(entry.forms[0].sha256) == 64
    assert all(len(form.sha256) in (0, 64) for form in entry.forms)
    if entry.provided == "files":
        assert all(form.files for form in entry.forms)
        paths = [file.path for form in entry.forms for file in form.files]
        assert len(paths) == len(set(paths))
        assert all(len(file.sha256) == 64 and file.size for file in entry.forms[0].files)
        # Nothing is downloaded that cannot be held to a checksum; what is not, a person can get.
        for form in entry.forms[1:]:
            assert form.downloadable or (form.source and not any(file.urls for file in form.files))
    else:
        assert not any(form.files for form in entry.forms)


@pytest.mark.parametrize("function", [data.dataset, data.find, data.provide, data.checksum])
def test_unknown_name(function: object) -> None:
    with pytest.raises(InputError, match=r"'emnist'.*family_relations, digits, mnist"):
        function("emnist")  # type: ignore[operator]


# the search order


def test_order(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.named.mkdir()
    monkeypatch.setenv("COUNTERFLOW_DATA", str(machine.named))
    assert [(place.label, place.folder) for place in data.search_order()] == [
        (label, machine.folder(label)) for label in LABELS
    ]


@pytest.mark.parametrize("present", [c for n in range(4) for c in itertools.combinations(LABELS, n)])
def test_the_first_place_that_holds_it_wins(
    machine: Machine, small_mnist: SmallMnist, monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...]
) -> None:
    machine.named.mkdir()
    monkeypatch.setenv("COUNTERFLOW_DATA", str(machine.named))
    for label in present:
        small_mnist.put(machine.folder(label), "mnist/mnist.npz")
    found = data.find("mnist")
    if present:
        assert found is not None
        assert found.place.label == present[0]
        assert found.paths == (machine.folder(present[0]) / "mnist" / "mnist.npz",)
    else:
        assert found is None


def test_an_incomplete_form_is_passed_over(
    machine: Machine, small_mnist: SmallMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTERFLOW_DATA", str(machine.named))
    small_mnist.put(machine.named, "mnist/train-images-idx3-ubyte.gz", "mnist/train-labels-idx1-ubyte.gz")
    small_mnist.put(machine.cache, "mnist/mnist.npz")
    found = data.find("mnist")
    assert found is not None
    assert found.place.label == "cache"


def test_looking_creates_nothing(machine: Machine, small_mnist: SmallMnist) -> None:
    data.search_order()
    data.find("mnist")
    assert not machine.named.exists()
    assert not machine.cache.exists()
    assert not machine.shared.exists()


def test_an_empty_variable_is_not_set(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERFLOW_DATA", "")
    assert data.search_order()[0].folder is None


def test_a_variable_that_names_no_folder(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERFLOW_DATA", str(machine.named))
    with pytest.raises(InputError) as caught:
        data.find("mnist")
    assert _line(caught).startswith(f"COUNTERFLOW_DATA is {str(machine.named)!r}, which is not a folder")
    # What needs no file does not care.
    assert data.find("family_relations") is not None


def test_an_installed_package_looks_beside_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.shared.mkdir(parents=True)
    installed = machine.checkout / "lib" / "counterflow" / "lab" / "data" / "locate.py"
    monkeypatch.setattr(locate, "__file__", str(installed))
    assert data.search_order()[1].folder is None


def test_a_source_folder_without_a_project_is_no_checkout(machine: Machine) -> None:
    machine.shared.mkdir(parents=True)
    (machine.checkout / "pyproject.toml").unlink()
    assert data.search_order()[1].folder is None


def test_without_pooch_there_is_no_cache(
    machine: Machine, small_mnist: SmallMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert data.search_order()[2].folder is None
    small_mnist.put(machine.shared, "mnist/mnist.npz")
    assert data.mnist().maximum == 255  # what is on disk needs no pooch


def test_this_package_finds_its_own_checkout() -> None:
    root = Path(locate.__file__).resolve().parents[4]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("the package under test is installed")
    assert data.search_order()[1].folder == root.parent / "shared" / "data"


# what is wrong


def test_missing_data(machine: Machine, small_mnist: SmallMnist) -> None:
    with pytest.raises(DataNotFoundError) as caught:
        data.mnist()
    line = _line(caught)
    assert "mnist is not on this machine: put mnist/mnist.npz into a folder" in line
    assert "COUNTERFLOW_DATA" in line
    assert "yann.lecun.com" in line
    assert "counterflow data where" in line


@pytest.mark.parametrize("path", ["mnist/mnist.npz", "mnist/t10k-labels-idx1-ubyte.gz"])
def test_a_damaged_file(machine: Machine, small_mnist: SmallMnist, path: str) -> None:
    small_mnist.put(machine.shared, *(p for p in small_mnist.files if p.endswith(path[-3:])))
    damaged = bytearray(small_mnist.files[path])
    damaged[-1] ^= 1
    (machine.shared / path).write_bytes(damaged)
    with pytest.raises(ChecksumError) as caught:
        data.mnist()
    line = _line(caught)
    assert str(machine.shared / path) in line
    expected = next(f.sha256 for form in small_mnist.entry.forms for f in form.files if f.path == path)
    assert expected[:12] in line
    assert data.file_sha256(machine.shared / path)[:12] in line


def test_damage_is_not_hidden_by_a_later_place(machine: Machine, small_mnist: SmallMnist) -> None:
    small_mnist.put(machine.shared, "mnist/mnist.npz")
    small_mnist.put(machine.cache, "mnist/mnist.npz")
    (machine.shared / "mnist" / "mnist.npz").write_bytes(b"")
    with pytest.raises(ChecksumError):
        data.mnist()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory") as caught:
        data.file_sha256(tmp_path)
    _line(caught)


# checksums


def test_checksum_of_arrays_sees_everything() -> None:
    a = np.arange(6, dtype=np.int32)
    variants = [
        {"a": a},
        {"b": a},
        {"a": a.reshape(2, 3)},
        {"a": a.astype(np.int64)},
        {"a": a[::-1]},
        {"a": a, "b": a},
    ]
    assert len({data.arrays_sha256(v) for v in variants}) == len(variants)


def test_checksum_of_arrays_ignores_layout_and_byte_order() -> None:
    a = np.arange(6, dtype=np.int32).reshape(2, 3)
    b = np.ones(2)
    digest = data.arrays_sha256({"a": a, "b": b})
    assert data.arrays_sha256({"b": b, "a": np.asfortranarray(a).astype(">i4")}) == digest


def test_checksum_needs_no_data(machine: Machine, small_mnist: SmallMnist) -> None:
    assert data.find("mnist") is None
    assert data.checksum("mnist") == small_mnist.entry.forms[0].sha256


def test_checksum_of_forms_that_differ(
    machine: Machine, small_mnist: SmallMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz, idx = small_mnist.entry.forms
    idx = replace(idx, sha256="f" * 64, differs="lossy")
    monkeypatch.setitem(data.CATALOG, "mnist", replace(small_mnist.entry, forms=(npz, idx)))
    with pytest.raises(DataNotFoundError, match="counterflow data where"):
        data.checksum("mnist")
    small_mnist.put(machine.shared, *(path for path in small_mnist.files if path.endswith(".gz")))
    assert data.checksum("mnist") == "f" * 64
    small_mnist.put(machine.shared, "mnist/mnist.npz")
    assert data.checksum("mnist") == npz.sha256


def test_checksum_of_the_form_that_would_be_downloaded(
    machine: Machine, small_mnist: SmallMnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    npz, idx = small_mnist.entry.forms
    files = tuple(replace(file, urls=("http://127.0.0.1:9/",)) for file in idx.files)
    idx = replace(idx, sha256="f" * 64, files=files)
    monkeypatch.setitem(data.CATALOG, "mnist", replace(small_mnist.entry, forms=(npz, idx)))
    assert data.checksum("mnist") == "f" * 64


# lazy


def test_importing_and_asking_loads_no_library() -> None:
    code = (
        "import sys; from counterflow.lab import data; data.checksum('mnist'); data.find('digits'); "
        "late = {'sklearn', 'requests'} & set(sys.modules); assert not late, late"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


@pytest.mark.data
@pytest.mark.parametrize("folder", ["emodb", "cifar10"])
def test_other_sets_fit_the_catalog(manifest: dict[str, str], monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """A set of hundreds of files, and one of parquet, are located and verified from a manifest's lines."""
    files = tuple(data.File(p, digest, 1) for p, digest in manifest.items() if p.startswith(f"{folder}/"))
    form = data.Form("manifest", "0" * 64, files)
    monkeypatch.setitem(data.CATALOG, folder, replace(data.dataset("mnist"), name=folder, forms=(form,)))
    assert len(data.provide(folder).paths) == len(files) >= 2
