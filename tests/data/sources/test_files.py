"""Where the files of a named data set are looked for."""

from pathlib import Path

import pytest

from dualcaps import DataError
from dualcaps.config import DataConfig
from dualcaps.data.sources import DataSet, data_set
from dualcaps.data.sources import files as catalog

MNIST = data_set("mnist")
FILES = MNIST.layouts[0].files


def found(data_set: DataSet, folder: Path) -> tuple[Path, ...]:
    files = catalog.find_files(data_set, DataConfig("mnist", data_dir=str(folder)))
    assert files is not None
    return files.paths


def put(folder: Path, suffix: str = "") -> Path:
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / (name + suffix)).touch()
    return folder


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The four places, in the order they are looked into."""
    monkeypatch.setenv("DUALCAPS_DATA", str(tmp_path / "environment"))
    monkeypatch.setattr(catalog, "_SYSTEM_FOLDER", tmp_path / "system")
    for name in ("named", "environment"):
        (tmp_path / name).mkdir()
    return [tmp_path / name for name in ("named", "environment", "cache/dualcaps", "system")]


def test_the_first_place_that_holds_all_files_is_taken(places: list[Path]):
    for place in reversed(places):
        folder = put(place / "mnist")
        assert found(MNIST, places[0]) == tuple(folder / name for name in FILES)


def test_an_environment_that_names_no_folder_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DUALCAPS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"DUALCAPS_DATA=.*nowhere: no such folder: correct or unset it"):
        catalog.find_files(MNIST, DataConfig("mnist"))


def test_a_folder_that_holds_some_of_the_files_is_skipped(places: list[Path]):
    whole = put(places[3] / "mnist")
    (put(places[0] / "mnist") / FILES[2]).unlink()
    assert found(MNIST, places[0])[0].parent == whole


@pytest.mark.parametrize("where", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_common_layouts_are_understood(places: list[Path], where: str, suffix: str):
    if where == "":
        places[0].rmdir()
    folder = put(places[0] / where, suffix)
    assert found(MNIST, places[0])[0] == folder / (FILES[0] + suffix)


def test_the_folder_of_another_data_set_is_not_taken_for_it(places: list[Path]):
    folder = put(places[0] / "fashion-mnist")
    assert catalog.find_files(MNIST, DataConfig("mnist", data_dir=str(folder))) is None
    assert found(data_set("fashion-mnist"), folder)[0].parent == folder


def test_the_error_for_a_missing_data_set_says_where_to_put_it(places: list[Path]):
    assert catalog.find_files(MNIST, DataConfig("mnist", data_dir=str(places[0]))) is None
    message = str(catalog.missing(MNIST, DataConfig("mnist", data_dir=str(places[0]))))
    assert "\n" not in message
    for wanted in (*FILES, MNIST.downloads[0].addresses[0][:40], *(str(place / "mnist") for place in places)):
        assert wanted in message


def test_a_data_folder_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"--data-dir .*nowhere: no such folder"):
        catalog.find_files(MNIST, DataConfig("mnist", data_dir=str(tmp_path / "nowhere")))
