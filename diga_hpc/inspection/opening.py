"""Opening: the data sets of a configuration as entries, before anything is decoded."""

from diga_hpc.config import Config
from diga_hpc.config.data import SOURCE, TARGET, VALIDATION, is_validation, validation_name
from diga_hpc.datasets.base import FileDataset, GeneratedDataset, ReaderDataset
from diga_hpc.datasets.listing import list_files
from diga_hpc.errors import UserError
from diga_hpc.images import archives
from diga_hpc.inspection.entries import Entries, FileEntries, GeneratedEntries, ReaderEntries

__all__ = [
    "SOURCE",
    "TARGET",
    "VALIDATION",
    "is_validation",
    "open_all",
    "open_entries",
    "validation_name",
]


def open_entries(config: Config, name: str, problems: list[str] | None = None) -> Entries | None:
    """Open the data set of this name (DataSection.sets); None where the configuration has none.

    The target's labels are left out. problems: a list for the images that cannot be used, see
    `list_files`; there may then be no entries. Raises UserError if a folder, an image or a label is
    missing, or the data set cannot be used with the label space.
    """
    section = config.data.sets.get(name)
    if section is None:
        return None
    _mount_all(config)
    key, labels = f"data.{name}", name != TARGET
    # A reader may need no folder, so the root is not checked here.
    if isinstance(section, ReaderDataset):
        reader = section.open(section.root or config.data.root, config.space, config.seed)
        return ReaderEntries(section, key, reader, config.space.num_classes, labels)
    if isinstance(section, GeneratedDataset):
        # Its labels are class indices already: no table can map them to another label space.
        if config.label_space != section.label_space:
            raise UserError(
                f"`{key}.kind` = {section.kind!r} needs `label_space: {section.label_space}`, "
                f"found {config.label_space!r}"
            )
        return GeneratedEntries(section, key, config.seed, config.space.num_classes, labels)
    assert isinstance(section, FileDataset), type(section)
    root, space = config.data.root, config.space
    return FileEntries(list_files(section, key, root, space, labels=labels, problems=problems))


def _mount_all(config: Config) -> None:
    """See through the archives of every data set, so that what one of them holds does not depend
    on which was opened before it: one may lie in the folder of another."""
    for section in config.data.sets.values():
        root = section.root or config.data.root
        if isinstance(section, FileDataset) and root is not None:
            archives.mount(root.expanduser())


def open_all(config: Config) -> dict[str, Entries]:
    """Every data set of a configuration, by name."""
    opened = {name: open_entries(config, name) for name in config.data.sets}
    return {name: entries for name, entries in opened.items() if entries is not None}
