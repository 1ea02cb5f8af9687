"""Downloading of data sets from their publishers."""

from pathlib import Path

import filelock

from dualcaps.data.sources.card import DataSet, Download
from dualcaps.data.sources.files import cache_folder
from dualcaps.errors import DataError


def fetch(data_set: DataSet, *, extra: bool = False, quiet: bool = False) -> Path:
    """Download a data set's files into the user cache and verify their checksums.

    Args:
        data_set: the data set's card.
        extra: svhn's large extra file too.
        quiet: show no progress.

    Returns:
        The folder they are in.

    Raises:
        DataError: no address provided a file with the right checksum; the message names each reason.
    """
    folder = cache_folder() / data_set.folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        for download in data_set.downloads:
            if extra or not download.extra:
                _fetch_file(download, folder, quiet)
    return folder


def _fetch_file(download: Download, folder: Path, quiet: bool) -> None:
    import pooch  # takes a while to import
    import requests

    pooch.get_logger().setLevel("ERROR")
    for leftover in folder.glob("tmp*"):  # of an earlier download that was killed
        leftover.unlink()
    reasons = []
    for address in download.addresses:
        bar = None if quiet else _Bar(f"fetching {download.file}")
        try:
            pooch.retrieve(
                address,
                known_hash=download.checksum,
                fname=download.file,
                path=folder,
                downloader=pooch.HTTPDownloader(progressbar=bar or False, timeout=(10, 60)),  # pyright: ignore[reportArgumentType]
            )
            return
        except requests.HTTPError as error:
            reasons.append(f"answer {error.response.status_code}" if error.response is not None else "no answer")
        except requests.Timeout:
            reasons.append("no answer in time")
        except (requests.RequestException, ConnectionError):
            reasons.append("no connection, or it broke off")
        except ValueError:
            reasons.append("a file of another checksum")
        finally:
            if bar:
                bar.close()
    tried = "; ".join(f"{address}: {reason}" for address, reason in zip(download.addresses, reasons, strict=True))
    raise DataError(f"{download.file} ({tried})")


class _Bar:
    """Pooch's progress bar interface, drawn by rich; hidden without a terminal."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True, markup=False)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self.progress = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True
        )
        self.task = self.progress.add_task(title, total=None)
        self.progress.start()
        self.total = 0

    def update(self, amount: int) -> None:
        self.progress.update(self.task, advance=amount, total=self.total or None)

    def reset(self) -> None:
        self.progress.reset(self.task)

    def close(self) -> None:
        self.progress.stop()
