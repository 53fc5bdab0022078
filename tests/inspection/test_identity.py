"""Identity of data: nothing made from other data passes for current; folders may move."""

import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from diga_hpc.errors import UserError
from diga_hpc.inspection import start
from diga_hpc.inspection.facts import image_digest
from diga_hpc.inspection.identity import difference, differing, identify
from diga_hpc.inspection.opening import SOURCE, open_entries
from diga_hpc.inspection.scan import scan
from diga_hpc.models import build_model
from diga_hpc.stages.pipeline import Pipeline
from helpers.own_data import OwnData

SOURCE_DATA = "{kind: folder, images: src/images, labels: src/labels}"


@pytest.fixture
def own(tmp_path):
    return OwnData(tmp_path)


def fingerprint(own: OwnData, **how: object) -> str:
    entries = open_entries(own.config(**how), SOURCE)
    assert entries is not None
    return identify(scan(entries), ("a", "b", "c")).fingerprint


def test_a_copy_elsewhere_is_the_same(own):
    own.pairs(3, (0, 1, 2))
    before = fingerprint(own)
    shutil.copytree(
        own.folder / "images", own.folder / "copy/images", copy_function=shutil.copyfile
    )
    shutil.copytree(
        own.folder / "labels", own.folder / "copy/labels", copy_function=shutil.copyfile
    )
    moved = f"{{kind: folder, labels: labels, root: {own.folder}/copy}}"
    assert fingerprint(own, source=moved) == before


def swap_labels(folder):
    one, two = folder / "labels/0.png", folder / "labels/1.png"
    (content, other) = one.read_bytes(), two.read_bytes()
    one.write_bytes(other)
    two.write_bytes(content)


def flip_one_pixel(folder):
    label = np.array(Image.open(folder / "labels/2.png"))
    label[0, 0] = 2 - label[0, 0]
    Image.fromarray(label).save(folder / "labels/2.png")


def rename(folder):
    for kind in ("images", "labels"):
        (folder / kind / "2.png").rename(folder / kind / "3.png")


def remove(folder):
    (folder / "images/2.png").unlink()


def brighten(folder):
    image = np.array(Image.open(folder / "images/0.png"))
    Image.fromarray(image // 2).save(folder / "images/0.png")


@pytest.mark.parametrize("change", [swap_labels, flip_one_pixel, rename, remove, brighten])
def test_any_change_of_the_data_changes_it(own, change):
    own.pairs(3, (0, 1, 2))
    own.label("labels/1.png", (2, 1, 0))
    before = fingerprint(own)
    change(own.folder)
    assert fingerprint(own) != before


def test_generated_data_are_told_apart_by_settings(tiny_yaml):
    from diga_hpc import config as configuration

    def of(*overrides):
        entries = open_entries(configuration.load(tiny_yaml, overrides), SOURCE)
        return identify(scan(entries), ("a",)).fingerprint

    assert of() == of("data.workers=1")
    assert len({of(), of("seed=1"), of("data.source.images=11"), of("data.source.first=1")}) == 4


# ------------------------------------------------------------------------------- the run directory


@pytest.fixture
def trained(own):
    """A finished warm-up and pseudo labels on the target A; B has pictures of the same names."""
    own.pairs(4, (0, 1, 2), below="src/")
    for i in range(3):
        own.image(f"A/images/{i:04d}.jpg", seed=20 + i)
        own.image(f"B/images/{i:04d}.jpg", 48, 96, seed=60 + i)
    config = config_on(own, "A")
    pipeline = Pipeline(config)
    pipeline.run("warm-up")
    pipeline.run("pseudo-labels")
    pipeline.context.run.close()
    return own


def config_on(own: OwnData, target: str, *overrides: str):
    return own.config(
        *overrides,
        source=SOURCE_DATA,
        validation=SOURCE_DATA,
        target=f"{{kind: folder, root: {own.folder}/{target}}}",
    )


def test_self_training_on_pseudo_labels_of_other_pictures_is_refused(trained):
    with pytest.raises(UserError) as error:
        Pipeline(config_on(trained, "B"))
    text = str(error.value)
    assert "begun with the `data.target` of" in text and "3 images differ: 0000, 0001" in text
    assert f"{trained.folder}/A (3 images" in text and f"{trained.folder}/B (3 images" in text


def test_the_same_pictures_elsewhere_are_taken(trained):
    shutil.copytree(trained.folder / "A", trained.folder / "moved", copy_function=shutil.copyfile)
    Pipeline(config_on(trained, "moved")).context.run.close()


@pytest.mark.parametrize("path", ["src/labels/1.png", "src/images/1.png", "A/images/0002.jpg"])
def test_data_that_were_changed_in_place_are_refused(trained, path):
    if "labels" in path:
        trained.label(path, (2, 1, 0))
    else:
        trained.image(path, seed=77)
    with pytest.raises(UserError, match="1 images differ"):
        Pipeline(config_on(trained, "A"))


def test_a_change_that_is_meant(trained):
    trained.image("src/images/1.png", seed=77)
    (trained.folder / "run/data.json").unlink()
    Pipeline(config_on(trained, "A")).context.run.close()
    assert (trained.folder / "run/data.json").is_file()


def test_before_anything_was_made_data_may_change(own):
    own.pairs(3, (0, 1, 2))
    Pipeline(own.config()).context.run.close()
    own.image("images/1.png", seed=77)
    Pipeline(own.config()).context.run.close()


def test_other_starting_weights_are_refused(own):
    """The file of `model.weights` was exchanged after the first checkpoint."""
    own.pairs(4, (0, 1, 2))
    starting = own.folder / "start.safetensors"
    save_file(build_model("lite", 3).state_dict(), starting)
    config = own.config(f"model.weights={starting}")
    pipeline = Pipeline(config)
    pipeline.run("warm-up")
    pipeline.context.run.close()
    moved = starting.rename(own.folder / "aside.safetensors")
    # It is not needed any more.
    Pipeline(config).context.run.close()
    save_file(build_model("lite", 3).state_dict(), starting)
    with pytest.raises(UserError, match="begun with other starting weights: .*start.safetensors"):
        Pipeline(config)
    moved.replace(starting)
    Pipeline(config).context.run.close()


def test_hosts_with_other_files_are_refused(own):
    """Each may have a copy of its own."""
    own.pairs(20, (0, 1, 2))
    entries = {"source": open_entries(own.config(), SOURCE)}

    class Hosts:
        size = 2

        def __init__(self):
            self.seen: set[str] = set()

        def union(self, texts: set[str]) -> set[str]:
            self.seen |= texts
            return self.seen

        def on_rank0(self, function):
            return function()

    hosts = Hosts()
    for _ in range(2):
        start._require_same_files(entries, hosts)
    own.label("labels/0.png", (2, 1, 0))
    with pytest.raises(UserError, match=r"`data.source`: the files of .* are not the same on all"):
        start._require_same_files(entries, hosts)


def test_labels_that_are_read_in_another_way_are_other_data(own):
    own.pairs(3, (0, 1, 2))
    before = fingerprint(own)
    mapped = "{kind: folder, labels: labels, id_map: {0: 0, 1: 2, 2: 1}}"
    assert fingerprint(own, source=mapped) != before
    entries = open_entries(own.config(), SOURCE)
    assert identify(scan(entries), ("a", "c", "b")).fingerprint != before


def test_the_order_of_images_counts(own):
    """Resumed training would see other samples, and a resumed evaluation count one twice."""
    own.pairs(3, (0, 1, 2))
    section = "{kind: folder, labels: labels, index: l.txt}"
    prints = []
    for order in ("0 1 2", "2 1 0"):
        lines = "".join(f"images/{i}.png\n" for i in order.split())
        (own.folder / "l.txt").write_text(lines)
        entries = open_entries(own.config(source=section), SOURCE)
        prints.append(identify(scan(entries), ("a",)))
    assert prints[0].fingerprint != prints[1].fingerprint
    assert difference(*prints, differing(*prints)) == "the images are in another order"


@pytest.mark.parametrize(("suffix", "size"), [(".bmp", 600), (".tif", 600), (".png", 300)])
def test_a_change_in_the_middle_of_a_large_file(tmp_path, suffix, size):
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    path = tmp_path / f"x{suffix}"
    Image.fromarray(noise).save(path)
    before = image_digest(path)
    noise[size // 2, size // 2] ^= 255
    Image.fromarray(noise).save(path)
    assert image_digest(path) != before
