"""The pages of docs/: what a new user copies from them works; links lead somewhere."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from diga_hpc import cli, config
from diga_hpc.errors import UserError
from helpers.commands import python
from helpers.documents import (
    PAGES,
    anchors,
    blocks,
    commands,
    links,
    one_process,
    run,
    titles,
)
from helpers.paths import ROOT

STARTED = (ROOT / "docs/getting-started.md").read_text()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Written or made by others, each with a test of its own.
OTHERS = ("docs/configuration.md", "docs/extending.md")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = page.read_text()
    missing = [link for link in links(text) if not (page.parent / link).exists()]
    assert not missing
    for link in anchors(text):
        file, anchor = link.split("#")
        there = (page.parent / file).read_text() if file else text
        assert anchor in titles(there), link


@pytest.mark.parametrize("page", [p for p, n in zip(PAGES, NAMES, strict=True) if n not in OTHERS])
def test_lines_have_at_most_100_columns(page):
    assert not [line for line in page.read_text().splitlines() if len(line) > 100]


def test_every_page_is_in_the_index():
    """The README's."""
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme


def test_tables_hold_measured_numbers_only():
    """What has none yet is said in prose."""
    rows = [
        line
        for page in [*PAGES, ROOT / "kernels/README.md"]
        if page.exists()
        for line in page.read_text().splitlines()
        if line.startswith("|")
    ]
    assert not [row for row in rows if "not measured" in row.lower()]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_have_valid_options_and_keys(page):
    known = get_command(cli.app).commands
    for command in map(one_process, commands(page.read_text())):
        if command[0] != "diga-hpc":
            continue
        context = known[command[1]].make_context(command[1], command[2:])
        file = ROOT / str(context.params.get("config"))
        if file.is_file():
            config.load(file, context.params["overrides"])


# ----------------------------------------------------------------------------- getting-started.md


def few(text: str) -> str:
    """The same with few steps and small crops."""
    text = re.sub(r"steps([:=]) ?\d+", r"steps\1 1", text)
    return text.replace("crop: [160, 208]", "crop: [48, 64]").replace("= 1", "=1")


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Path:
    """An empty folder with the files that the page has the reader write, and the photographs."""
    folder = tmp_path_factory.mktemp("started")
    for text in [*blocks(STARTED, "python"), *blocks(STARTED, "yaml")]:
        name = text.split("\n")[0].removeprefix("# ")
        (folder / name).write_text(few(text))
    (script,) = (c for c in commands(STARTED) if c[0] == "python")
    done = python(*script[1:], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_photographs_are_arranged_as_the_page_says(started):
    files = sorted(p.relative_to(started) for p in (started / "my_data").rglob("*.*"))
    photographs = [p for p in files if p.parent.name == "images"]
    assert len(photographs) == 10 and len(files) == 17
    assert {str(p.parent) for p in files} == {
        f"my_data/{folder}"
        for folder in re.findall(r"^  (\w+/\w+)/ ", blocks(STARTED, "")[0], re.M)
    }


def test_the_configuration_is_complete_and_the_data_pass_the_check(started):
    run(["diga-hpc", "check", "my_run.yaml"], started)
    resolved = config.load(started / "my_run.yaml")
    assert resolved.space.classes == ("ground", "building", "plant", "sky", "object")


def test_keys_that_the_page_advises_on_exist(started):
    flat = config.flat(config.load(started / "my_run.yaml"))
    last = {part for key in flat for part in key.split(".")} | set(flat)
    table = STARTED.split("| key | advice |\n")[1].split("\n\n")[0]
    first_cells = [row.split("|")[1] for row in table.splitlines()]
    advised = {key for cell in first_cells for key in re.findall(r"`(.+?)`", cell)}
    assert len(advised) > 6 and advised <= last


@pytest.mark.slow
def test_its_commands_run(started):
    ran = [c for c in commands(few(STARTED)) if c[0] == "diga-hpc"]
    for command in ran:
        # Two runs differ in keys alone: the second one is loaded, not trained.
        if "run_dir=runs/seed_1" in command:
            config.load(started / command[2], command[3:])
        else:
            run(command, started)
    assert {c[1] for c in ran} == {"check", "pipeline", "evaluate", "report", "predict", "export"}
    assert (started / "runs/my_run/report.html").is_file()
    assert len(list((started / "predictions/overlays").iterdir())) == 3
    assert (started / "my_network.safetensors").is_file()


def _label(folder: Path) -> Path:
    return folder / "my_data/source/labels/photo_0.png"


def _no_label(folder: Path) -> None:
    _label(folder).unlink()


def _unknown_id(folder: Path) -> None:
    Image.fromarray(np.full((240, 320), 40, np.uint8)).save(_label(folder))


def _colour_label(folder: Path) -> None:
    Image.open(_label(folder)).convert("RGB").save(_label(folder))


def _small_label(folder: Path) -> None:
    Image.open(_label(folder)).resize((160, 120), Image.Resampling.NEAREST).save(_label(folder))


def _damaged(folder: Path) -> None:
    (folder / "my_data/source/images/photo_0.jpg").write_bytes(b"no image")


def _dead_link(folder: Path) -> None:
    photograph = folder / "my_data/source/images/photo_0.jpg"
    photograph.unlink()
    photograph.symlink_to("gone.jpg")


def _index(folder: Path) -> None:
    (folder / "list.txt").write_text("source/images/photo_0.png\n")


def _empty(folder: Path) -> None:
    for photograph in (folder / "my_data/source/images").iterdir():
        photograph.unlink()


MISTAKES = {
    "has no label": (_no_label, []),
    "unknown label id": (_unknown_id, []),
    "labels must be an 8-bit PNG of one channel": (_colour_label, []),
    "labels must have the size of their image": (_small_label, []),
    "not a readable image": (_damaged, []),
    "no images found": (_empty, []),
    "no such image": (_index, ["data.source.index=list.txt"]),
    "would be its own label": (None, ["data.source.images=source/labels"]),
    "link to": (_dead_link, []),
    "no such folder": (None, ["data.source.images=nowhere"]),
    "is larger than the full-size image": (None, ["warm_up.crop=[300, 400]"]),
    "unknown key": (None, ["warm_up.step=3"]),
    "expected one of": (None, ["data.source.kind=folders"]),
}
# Shown by commands that train: tested where they are raised.
ELSEWHERE = {"belongs to another configuration", "does not divide by"}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_gives_the_message_that_the_page_explains(started, tmp_path, message):
    mistake, overrides = MISTAKES[message]
    (tmp_path / "my_run.yaml").write_text((started / "my_run.yaml").read_text())
    shutil.copytree(started / "my_data", tmp_path / "my_data")
    if mistake:
        mistake(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        run(["diga-hpc", "check", "my_run.yaml", *overrides], tmp_path)


def test_the_page_explains_those_messages_and_no_others():
    table = STARTED.split("| message | what to do |")[1].split("\n\n")[0]
    explained = re.findall(r"^\| `(.+?)` \|", table, re.M)
    assert set(explained) == MISTAKES.keys() | ELSEWHERE
