"""`dualcaps data list`, `check`, `get`, `show`, `pack` and `export`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dualcaps.cli.display import print_notes, progress_bar, stdout, table
from dualcaps.cli.options import DataDir, NamedDataOptions, PackOptions, PluginFiles
from dualcaps.config import DataConfig
from dualcaps.errors import ConfigError, display_path

_MOST_PRINTED_FILES = 20


@dataclass(frozen=True)
class DataList:
    """List the data sets: found or not, where, official or not, their sizes and classes."""

    data_dir: DataDir = None
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Look for the files and print."""
        from dualcaps.data.load import data_state
        from dualcaps.data.sources import data_set
        from dualcaps.registry import DATASETS, load_entry_points

        load_entry_points()
        columns = table("data set", "classes", "pixels", "splits", "files", fold=True)
        for name in DATASETS:
            described = ["–", "–", "–"]
            if (card := data_set(name)) is not None:
                height, width = card.size
                classes = len(card.classes_of(DataConfig(name)))
                described = [str(classes), f"{height}x{width}x{card.channels}", ", ".join(card.splits)]
            columns.add_row(name, *described, display_path(data_state(name, self.data_dir)))
        stdout().print(columns)


@dataclass(frozen=True)
class DataCheck:
    """Read all images anew, count them by class and part, compare checksums with the official ones."""

    data: tyro.conf.OmitArgPrefixes[NamedDataOptions]
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Read and print."""
        from dualcaps.data.load import check_data

        data, files = check_data(**vars(self.data))
        console = stdout()
        channels, height, width = data.image_shape
        console.print(
            f"{display_path(data.name)}: {height}x{width}x{channels} pixels, from "
            f"{display_path(str(data.provenance['from']))}",
            soft_wrap=True,
        )
        parts = {"training": data.train, "validation": data.validation, "test": data.test}
        columns = table("class", *parts, right=parts)
        counts = [part.labels.bincount(minlength=len(data.classes)) for part in parts.values()]
        for label, name in enumerate(data.classes):
            columns.add_row(name, *(f"{int(count[label]):,}" for count in counts))
        columns.add_row("all", *(f"{len(part):,}" for part in parts.values()))
        console.print(columns)
        for note in data.notes:
            console.print(note, soft_wrap=True)
        for file in files[:_MOST_PRINTED_FILES]:
            console.print(f"{file.verdict:<14}{file.checksum}  {display_path(file.path)}", soft_wrap=True)
        if len(files) > _MOST_PRINTED_FILES:
            console.print(f"… and {len(files) - _MOST_PRINTED_FILES:,} more files")
        verdicts = {True: "official files", False: "not the official files", None: "no official files to compare with"}
        console.print(verdicts[data.provenance["official"]])


@dataclass(frozen=True)
class DataGet:
    """Fetch a data set's files into the user cache."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A data set's name."""
    extra: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """svhn: the large extra_32x32.mat too."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Fetch and print the folder."""
        from dualcaps.data.load import get_data

        print(get_data(self.name, extra=self.extra))


@dataclass(frozen=True)
class DataShow:
    """Draw a contact sheet: images of each class, as they are and augmented."""

    data: tyro.conf.OmitArgPrefixes[NamedDataOptions]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("sheet.png")
    """The PNG file to write."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Draw, write and print the file's name."""
        from dualcaps.data.load import load_data
        from dualcaps.explain.contact_sheet import contact_sheet
        from dualcaps.plots import png
        from dualcaps.runs.files import write_bytes

        data = load_data(**vars(self.data))
        print_notes(data.notes)
        write_bytes(self.out, png(contact_sheet(data)))
        print(display_path(self.out))


@dataclass(frozen=True)
class DataPack:
    """Decode own images once into a folder that training streams from, for more images than memory holds."""

    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE… OUT", help_behavior_hint="")]
    """What to pack: a folder of class sub-folders, a Parquet file or a folder of them, or WebDataset tar files (paths
    or URLs); and the folder to make. The same command goes on after an interruption."""
    images: tyro.conf.OmitArgPrefixes[PackOptions] = dataclasses.field(default_factory=PackOptions)
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Pack and print what was packed."""
        if len(self.paths) < 2:
            raise ConfigError("data pack takes what to pack and the folder to make: dualcaps data pack SOURCE OUT")
        config = DataConfig(**vars(self.images))

        from dualcaps.data.pack import pack

        *sources, out = self.paths
        with progress_bar() as progress:
            task = progress.add_task("starting", total=None)

            def show(what: str, done: int, total: int) -> None:
                progress.update(task, description=what, completed=done, total=total or None)

            index = pack(sources, out, config, on_progress=show)
        print_notes(index.notes)
        counts = [f"{sum(shard.images for shard in shards):,} {part}" for part, shards in index.parts.items()]
        channels, height, width = index.image_shape
        print(
            f"{display_path(out)}: {', '.join(counts)} images of {height}x{width}x{channels} in {len(index.classes)} "
            f"classes; dualcaps train {display_path(out)} trains on them"
        )


@dataclass(frozen=True)
class DataExport:
    """Write a data set as WebDataset tar files: PNG images with their labels, in files for each part."""

    data: tyro.conf.OmitArgPrefixes[NamedDataOptions]
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "tars"
    """Folder to write to: a path or a URL that fsspec opens."""
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Write and print the files' names."""
        from dualcaps.data.load import load_data
        from dualcaps.data.tars import write_tars

        data = load_data(**vars(self.data))
        print_notes(data.notes)
        for file in write_tars(data, self.out):
            print(display_path(file), flush=True)


@dataclass(frozen=True)
class Data:
    """List, check, fetch, show, pack and export data sets."""

    action: tyro.conf.OmitArgPrefixes[
        Annotated[DataList, tyro.conf.subcommand("list")]
        | Annotated[DataCheck, tyro.conf.subcommand("check")]
        | Annotated[DataGet, tyro.conf.subcommand("get")]
        | Annotated[DataShow, tyro.conf.subcommand("show")]
        | Annotated[DataPack, tyro.conf.subcommand("pack")]
        | Annotated[DataExport, tyro.conf.subcommand("export")]
    ]

    @property
    def plugin(self) -> tuple[Path, ...]:
        """The action's plug-in files."""
        return self.action.plugin

    def run(self) -> None:
        """Run the action."""
        self.action.run()
