"""What data sets share: lists of images, index files, defaults of a section."""

import pytest

from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.base import DatasetSection, list_images
from diga_hpc.errors import UserError


def test_images_are_listed_in_order_and_nothing_else(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.PNG", "a.jpg", "c.jpeg", "notes.txt", "below/d.png"):
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.jpeg"]
    assert len(list_images(tmp_path, recursive=True)) == 4
    with pytest.raises(UserError, match="absent: no such folder; expected images"):
        list_images(tmp_path / "absent")


@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_is_a_section_of_its_name(kind):
    section = DATASETS[kind]
    assert issubclass(section, DatasetSection)
    assert section.model_fields["kind"].annotation.__args__ == (kind,)
