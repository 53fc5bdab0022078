"""Data sets on disk, the geometry of crops, and streams that do not depend on workers or ranks."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diga_hpc import config as configuration
from diga_hpc.datasets.label_spaces import CITYSCAPES_IDS, IGNORE
from diga_hpc.errors import UserError
from diga_hpc.loading import dataset as datasets
from diga_hpc.loading import transforms
from diga_hpc.loading.loader import TrainingSamples, training_batches
from diga_hpc.loading.sampling import epoch_index, sample_rng


def write_image(path: Path, size=(6, 9), seed=0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_ids(path: Path, ids, mode="L") -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.asarray(ids, np.uint8)
    picture = Image.fromarray(ids, mode="L") if mode == "L" else Image.fromarray(ids, mode="P")
    if mode == "P":
        picture.putpalette(list(range(256)) * 3)
    picture.save(path)
    return ids


def config_with(tiny_yaml: Path, source: str, space: str, root: Path):
    replaced = "streets_source"
    text = tiny_yaml.read_text().replace("label_space: streets", f"label_space: {space}")
    lines = [
        line
        for line in text.splitlines()
        if not line.startswith("  target") and "validation:" not in line
    ]
    lines = [
        f"  source: {source}\n  validation: {source}" if "source: {kind" in line else line
        for line in lines
    ]
    lines = [line for line in lines if not line.startswith("self_training")]
    text = (
        "\n".join(lines)
        .replace("data:", f"data:\n  root: {root}")
        .replace("start: source_only", "second_view: color")
    )
    path = tiny_yaml.with_name(f"{replaced}.yaml")
    path.write_text(text)
    return configuration.load(path)


ALL_IDS = np.arange(54, dtype=np.uint8).reshape(6, 9) % 35


@pytest.mark.parametrize("mode", ["L", "P"])
def test_gta5_layout_and_cityscapes_ids(tiny_yaml, tmp_path, mode):
    pixels = write_image(tmp_path / "images/00001.png")
    ids = write_ids(tmp_path / "labels/00001.png", ALL_IDS, mode)
    dataset = datasets.open_source(config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path))
    sample = dataset.load(0)
    assert sample.name == "00001" and torch.equal(
        sample.image, torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    )
    expected = [CITYSCAPES_IDS.get(int(i), IGNORE) for i in ids.ravel()]
    assert sample.label.flatten().tolist() == expected


def test_synthia_label_space_leaves_out_three_classes(tiny_yaml, tmp_path):
    write_image(tmp_path / "images/1.png")
    ids = np.full((6, 9), 23)  # sky: train id 10, and 9 among the 16
    ids[0, 0] = 22  # terrain is not a class there
    write_ids(tmp_path / "labels/1.png", ids)
    config = config_with(tiny_yaml, "{kind: gta5}", "synthia", tmp_path)
    label = datasets.open_source(config).load(0).label
    assert label[0, 0] == IGNORE and label[0, 1] == config.space.classes.index("sky") == 9
    assert len(config.space.protocols["miou_13"]) == 13


def test_cityscapes_layout(tiny_yaml, tmp_path):
    for city in ("aachen", "bochum"):
        write_image(tmp_path / f"leftImg8bit/train/{city}/{city}_000_leftImg8bit.png")
        write_ids(tmp_path / f"gtFine/train/{city}/{city}_000_gtFine_labelIds.png", ALL_IDS)
    dataset = datasets.open_source(
        config_with(tiny_yaml, "{kind: cityscapes}", "cityscapes", tmp_path)
    )
    assert [dataset.name(i) for i in range(len(dataset))] == ["aachen_000", "bochum_000"]
    (tmp_path / "subset.txt").write_text("bochum/bochum_000_leftImg8bit.png\n")
    config = config_with(tiny_yaml, "{kind: cityscapes, index: subset.txt}", "cityscapes", tmp_path)
    assert len(datasets.open_source(config)) == 1


def test_camvid_layout_sequences_and_unlabelled_target(tiny_yaml, tmp_path):
    for name in ("0001TP_1", "0001TP_2", "0006R0_1"):
        write_image(tmp_path / f"train/{name}.jpg")
    write_ids(tmp_path / "trainannot/0006R0_1.png", ALL_IDS % 12)
    config = config_with(tiny_yaml, "{kind: camvid, sequences: [0006R0]}", "camvid", tmp_path)
    label = datasets.open_source(config).load(0).label
    assert label.unique().tolist() == [*range(11), IGNORE]
    everything = config_with(tiny_yaml, "{kind: camvid}", "camvid", tmp_path)
    with pytest.raises(UserError, match="0001TP_1.jpg: has no label"):
        datasets.open_source(everything)
    only_labelled = config_with(
        tiny_yaml, "{kind: camvid, labelled_only: true}", "camvid", tmp_path
    )
    assert len(datasets.open_source(only_labelled)) == 1


def test_folder_with_id_map_suffix_and_index(tiny_yaml, tmp_path):
    write_image(tmp_path / "rgb/a/x.png")
    write_ids(tmp_path / "gt/a/x_ids.png", np.where(np.eye(6, 9), 200, 7))
    custom = "custom\nclasses: [{name: thing, color: [1, 2, 3]}, {name: stuff, color: [4, 5, 6]}]"
    section = "{kind: folder, images: rgb, labels: gt, label_suffix: _ids, id_map: {7: 1, 200: 0}}"
    sample = datasets.open_source(config_with(tiny_yaml, section, custom, tmp_path)).load(0)
    assert sample.name == "a_x"
    assert torch.equal(
        sample.label, torch.from_numpy(np.where(np.eye(6, 9), 0, 1).astype(np.uint8))
    )
    (tmp_path / "pairs.txt").write_text("rgb/a/x.png gt/a/x_ids.png\n")
    indexed = "{kind: folder, index: pairs.txt, id_map: {7: 1, 200: 0}}"
    assert (
        datasets.open_source(config_with(tiny_yaml, indexed, custom, tmp_path)).load(0).name == "x"
    )
    wrong = "{kind: folder, images: rgb, labels: gt, label_suffix: _ids, id_map: {7: 2}}"
    with pytest.raises(UserError, match="class indices 0..1"):
        datasets.open_source(config_with(tiny_yaml, wrong, custom, tmp_path))


class TestBadFiles:
    @pytest.fixture
    def dataset(self, tiny_yaml, tmp_path):
        write_image(tmp_path / "images/1.png", size=(60, 90))
        write_ids(tmp_path / "labels/1.png", np.full((60, 90), 7))
        return datasets.open_source(config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path))

    def message(self, dataset) -> str:
        with pytest.raises(UserError) as error:
            dataset.load(0)
        return str(error.value)

    def test_unknown_id(self, dataset, tmp_path):
        ids = np.full((60, 90), 7)
        ids[3, 4] = 77
        write_ids(tmp_path / "labels/1.png", ids)
        assert "labels/1.png: unknown label id 77; known are 0..34" in self.message(dataset)

    def test_other_size(self, dataset, tmp_path):
        write_ids(tmp_path / "labels/1.png", np.full((60, 80), 7))
        assert "label is 60x80, but its image 1.png is 60x90" in self.message(dataset)

    @pytest.mark.parametrize("which", ["images", "labels"])
    def test_cut_short(self, dataset, tmp_path, which):
        path = tmp_path / which / "1.png"
        if which == "labels":
            write_ids(path, np.random.default_rng(0).integers(0, 34, (60, 90)))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert f"{which}/1.png: not a readable" in self.message(dataset)

    @pytest.mark.parametrize("which", ["images", "labels"])
    def test_not_an_image(self, dataset, tmp_path, which):
        (tmp_path / which / "1.png").write_text("hello")
        assert f"{which}/1.png: not a readable" in self.message(dataset)

    def test_three_channels(self, dataset, tmp_path):
        write_image(tmp_path / "labels/1.png", size=(60, 90))
        assert "must be an 8-bit PNG of one channel" in self.message(dataset)


def test_root_and_split_errors(tiny_yaml, tmp_path):
    missing = config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path / "absent")
    with pytest.raises(UserError, match="absent: no such folder"):
        datasets.open_source(missing)
    with pytest.raises(UserError, match="images: no such folder"):
        datasets.open_source(config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path))
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="no images found for `data.source`"):
        datasets.open_source(config_with(tiny_yaml, "{kind: gta5}", "cityscapes", tmp_path))


# ------------------------------------------------------------------------------------------- geometry


def crop(image, label, seed=0, **changes):
    options = {
        "size": (40, 60),
        "crop": (16, 24),
        "scale": (0.7, 1.0),
        "flip": True,
        "redraw": True,
    } | changes
    return transforms.training_crop(image, label, rng=np.random.default_rng(seed), **options)


def test_image_and_label_move_together():
    """Each class has one grey value, so labels can be read back from the cropped image."""
    label = torch.from_numpy(
        np.kron(np.arange(20).reshape(4, 5), np.ones((10, 12))).astype(np.uint8)
    )
    image = (label * 10)[None].expand(3, -1, -1).contiguous()
    for seed in range(20):
        got_image, got_label = crop(image, label, seed)
        assert got_image.shape == (3, 16, 24) and got_label.shape == (16, 24)
        from_image = (got_image[0].float() / 10).round()
        assert (
            from_image == got_label
        ).float().mean() > 0.75  # all but the blended borders between blocks


def test_small_images_are_brought_to_the_crop():
    image, label = torch.zeros(3, 8, 9, dtype=torch.uint8), torch.zeros(8, 9, dtype=torch.uint8)
    got_image, got_label = crop(image, label, size=(8, 9))
    assert got_image.shape == (3, 16, 24) and got_label.shape == (16, 24)


def test_crops_are_redrawn_until_they_show_enough_classes():
    """Two classes share the left eighth, the rest is class 0: redrawing finds them far more often."""
    label = torch.zeros(40, 160, dtype=torch.uint8)
    label[:20, :20], label[20:, :20] = 1, 2
    image = torch.zeros(3, 40, 160, dtype=torch.uint8)

    def share(redraw):
        options = {"size": (40, 160), "crop": (40, 30), "scale": (1.0, 1.0), "redraw": redraw}
        return np.mean([len(crop(image, label, s, **options)[1].unique()) == 3 for s in range(200)])

    assert share(False) < 0.25 < 0.45 < share(True)


@pytest.mark.parametrize(
    ("areas", "enough"),
    [
        ({0: 95, 1: 5}, True),
        ({0: 99, 1: 1}, False),
        ({0: 60, 255: 40}, False),
        ({0: 50, 1: 25, 255: 25}, True),
        ({0: 100}, False),
    ],
)
def test_redraw_rule(areas, enough):
    label = torch.cat(
        [torch.full((count,), value, dtype=torch.uint8) for value, count in areas.items()]
    )
    assert transforms._shows_enough(label.view(10, 10)) == enough


# -------------------------------------------------------------------------------------------- streams


def samples_of(config, stage="warm_up"):
    return TrainingSamples(
        config,
        stage,
        getattr(config, stage),
        datasets.open_source(config),
        datasets.open_target(config),
    )


def batches_of(samples, rank=0, world_size=1, workers=0, first_step=0):
    options = {"first_step": first_step, "rank": rank, "world_size": world_size, "workers": workers}
    return list(training_batches(samples, pin_memory=False, **options))


def same(a, b) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_stream_does_not_depend_on_workers_ranks_or_the_first_step(tiny_yaml):
    samples = samples_of(configuration.load(tiny_yaml))
    alone = batches_of(samples)
    assert len(alone) == 4
    assert all(map(same, alone, batches_of(samples, workers=2)))
    assert all(map(same, alone[2:], batches_of(samples, first_step=2)))
    two = [batches_of(samples, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, first, second in zip(alone, *two, strict=True):
        parts = whole.split(2)
        assert same(parts[0], first) and same(parts[1], second)


def test_a_long_training_does_not_list_its_samples(tiny_yaml):
    samples = samples_of(configuration.load(tiny_yaml, ["warm_up.steps=250000"]))
    options = {"first_step": 1, "rank": 1, "world_size": 2, "workers": 0, "pin_memory": False}
    tracemalloc.start()
    batches = training_batches(samples, **options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20 and len(batches) == 249_999


def test_seed_changes_the_stream(tiny_yaml):
    first = batches_of(samples_of(configuration.load(tiny_yaml)))
    other = batches_of(samples_of(configuration.load(tiny_yaml, ["seed=1"])))
    assert not same(first[0], other[0])


def test_batch_that_does_not_divide_is_an_error(tiny_yaml):
    with pytest.raises(UserError, match="a batch of 4 images does not divide by 3 ranks"):
        batches_of(samples_of(configuration.load(tiny_yaml)), world_size=3)


def test_an_epoch_shows_every_image_once():
    order = [epoch_index(7, "s", n, 10) for n in range(30)]
    assert all(sorted(order[i : i + 10]) == list(range(10)) for i in (0, 10, 20))
    assert order[:10] != order[10:20]


def test_class_table_chooses_half_of_the_values_and_ignore():
    from diga_hpc.method.views import draw_class_table

    label = torch.tensor([[0, 3, 5], [7, 9, 255]], dtype=torch.uint8)
    sizes = set()
    for n in range(50):
        table = draw_class_table(sample_rng(0, "t", n), label)
        chosen = set(torch.nonzero(table).flatten().tolist())
        assert 255 in chosen and chosen <= {0, 3, 5, 7, 9, 255}
        sizes.add(len(chosen))
    assert sizes == {3, 4}  # 3 of the 6 values, of which 255 may be one
    nothing = draw_class_table(sample_rng(0, "t", 0), torch.full((2, 2), 255, dtype=torch.uint8))
    assert torch.nonzero(nothing).flatten().tolist() == [255]
