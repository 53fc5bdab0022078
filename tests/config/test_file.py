"""Configuration files: precedence, error messages, round trip, differences."""

import subprocess
import sys

import pytest

from diga_hpc import config as configuration
from diga_hpc.errors import UserError


def test_defaults_file_command_line(tiny_yaml):
    config = configuration.load(tiny_yaml, ["warm_up.steps=9", "seed=5"])
    assert config.warm_up.steps == 9 and config.seed == 5  # command line over file
    assert config.teacher.momentum == 0.9  # file over default
    assert config.warm_up.distillation_weight == 0.5  # default


def test_saved_configuration_reads_back_equal(tiny_yaml, tmp_path):
    config = configuration.load(tiny_yaml, ["data.source.size=[40,80]"])
    configuration.save(config, tmp_path / "saved.yaml")
    assert configuration.load(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("warmup.steps=3", "unknown key `warmup`: did you mean `warm_up`?"),
        ("warm_up.step=3", "unknown key `warm_up.step`: did you mean `steps`?"),
        ("data.source.stile=source", "unknown key `data.source.stile`: did you mean `style`?"),
        ("data.source.zzz=1", "unknown key `data.source.zzz`: known here: "),
        ("warm_up.steps=many", "`warm_up.steps` = 'many'"),
        ("warm_up.steps=0", "`warm_up.steps` = 0"),
        ("engine.zero_stage=5", "`engine.zero_stage` = 5"),
        (
            "data.source.kind=kitti",
            "`data.source.kind` = 'kitti': expected one of 'streets', 'camvid', 'gta5', "
            "'cityscapes', 'folder'",
        ),
        ("data.target.kind=cityscape", "did you mean 'cityscapes'?"),
        ("data.source.kind=[]", "`data.source.kind` = []: expected one of 'streets'"),
        ("data.source={}", "`data.source`: expected a mapping with `kind`, one of streets, "),
        ("data.source=streets", "`data.source` = 'streets': expected a mapping with `kind`"),
        ("data.source.scene_size=[0,9]", "`data.source.scene_size.0` = 0"),
        (
            "model.name=light",
            "`model.name` = 'light': expected one of 'deeplabv2_resnet101', 'hrnet_w48_ocr', "
            "'lite'",
        ),
        ("translator.kind=colour", "`translator.kind` = 'colour': expected one of 'none', 'color'"),
        ("data.sampler=rare", "`data.sampler` = 'rare': expected one of 'shuffled'"),
        ("label_space=cityscape", "`label_space` = 'cityscape': expected one of 'streets'"),
        ("label_space=5", "`label_space` = 5"),
        ("warm_up.batch={full: 0}", "full + half is 0"),
        ("data.target=null", "self_training needs data.target"),
        ("label_space=custom", "`classes` is empty: `label_space: custom` needs the list of its"),
        (
            "classes=[{name: a, color: [1,2,3]}, {name: b, color: [1,2,4]}]",
            "`classes` is set, but `label_space` is 'streets': set `label_space: custom`",
        ),
        (
            "classes=[{name: a, colour: [1,2,3]}]",
            "unknown key `classes.0.colour`: did you mean `color`?",
        ),
        ("warm_up.batch.ful=3", "unknown key `warm_up.batch.ful`: did you mean `full`?"),
        ("warm_up=null", "`warm_up` = None: expected a section with the keys steps, batch, crop"),
        (
            "warm_up.start=warm_up",
            "`warm_up.start` = 'warm_up': expected 'model' or 'source_o",
        ),
        ("source_only=null", "no section source_only; add it or set warm_up.start=model"),
        (
            "data.source={kind: folder, label: labels}",
            "unknown key `data.source.label`: did you mean `labels`?",
        ),
        (
            "data.source={kind: camvid, sequence: [a]}",
            "unknown key `data.source.sequence`: did you mean `sequences`?",
        ),
        (
            "data.source={kind: gta5, ignored_ids: [255]}",
            "`data.source.ignored_ids` = [255]: a key of `kind: folder`; `kind: gta5` has absent_c",
        ),
        (
            "data.source={kind: cityscapes, splits: [val]}",
            "unknown key `data.source.splits`: did you mean `split`?",
        ),
        (
            "data.source={kind: folder, style: source}",
            "`data.source.style` = 'source': a key of `kind: streets`; `kind: folder` has ",
        ),
        ("data.source={kind: folder, Labels: x}", "did you mean `labels`?"),
        ("data.source={Kind: folder}", "; write `kind` for `Kind`"),
        ("data.source={kinds: folder}", "; write `kind` for `kinds`"),
        ("data.source={type: GTA5}", "; write `kind` for `type`"),
        ("data.source={kind: Cityscapes}", "did you mean 'cityscapes'?"),
        ("data.source={kind: GTA5}", "did you mean 'gta5'?"),
        ("data.source={kind: folder, index: [1]}", "`data.source.index` = [1]: expected a path"),
        ("WARM_UP.steps=3", "unknown key `WARM_UP`: did you mean `warm_up`?"),
        ("model.name=LITE", "did you mean 'lite'?"),
        ("seed", "an override is written key=value"),
        ("=1", "an override is written key=value"),
        ("1=2", "unknown key `1`: known here: centroids, "),
        ("run_dir.a=1", "`run_dir` is a value, not a section"),
        ("warm_up.steps.a=1", "`warm_up.steps` is a value, not a section"),
        ("seed.a=1", "`seed` = {'a': 1}"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_message_names_key_value_and_remedy(tiny_yaml, override, expected):
    with pytest.raises(UserError) as error:
        configuration.load(tiny_yaml, [override])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_second_view_that_needs_a_target_is_refused_without_one(tiny_yaml):
    """Also where its distillation weighs nothing: the student sees both views."""
    without = ["data.target=null", "self_training=null"]
    for weight in (0, 1):
        with pytest.raises(UserError, match="'crdomix' needs data.target; set warm_up.second_view"):
            configuration.load(tiny_yaml, [*without, f"warm_up.distillation_weight={weight}"])
    assert configuration.load(tiny_yaml, [*without, "warm_up.second_view=color"]).space


def test_yaml_keys_that_are_no_text(tiny_yaml):
    tiny_yaml.write_text(tiny_yaml.read_text() + "1: 2\n")
    with pytest.raises(UserError, match="unknown key `1`"):
        configuration.load(tiny_yaml)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="absent.yaml: cannot be read"):
        configuration.load(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="expected sections"):
        configuration.load(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        configuration.load(tmp_path / "broken.yaml")


def test_differences_leave_out_how_a_run_is_executed(tiny_yaml):
    before = configuration.load(tiny_yaml)
    same = configuration.load(
        tiny_yaml, ["engine.zero_stage=2", "data.workers=3", "run_dir=elsewhere", "data.root=/x"]
    )
    assert configuration.differences(before, same) == []
    other = configuration.load(tiny_yaml, ["warm_up.steps=5"])
    assert configuration.differences(before, other) == ["warm_up.steps: 4 there, 5 now"]


CLASS_NAMED_ROOT = """
run_dir: unused
label_space: custom
classes: [{name: root, color: [1, 2, 3]}, {name: soil.root, color: [4, 5, 6]}]
data:
  source: {kind: folder}
  target: {kind: folder}
  validation: {kind: folder, color_map: {root: [[9, 9, 9]], soil.root: [[4, 5, 6]]}}
model: {weights: random}
warm_up: {steps: 2, crop: [32, 48]}
"""


def test_a_class_named_root_is_no_folder(tmp_path):
    path = tmp_path / "roots.yaml"
    path.write_text(CLASS_NAMED_ROOT)
    before = configuration.load(path)
    roots = [f"data.{name}root=/x" for name in ("", "source.", "target.", "validation.")]
    assert configuration.differences(before, configuration.load(path, roots)) == []
    path.write_text(CLASS_NAMED_ROOT.replace("9, 9, 9", "1, 2, 3").replace("[[4", "[[7"))
    changed = configuration.differences(before, configuration.load(path))
    names = ("data.validation.color_map.root", "data.validation.color_map.soil.root")
    assert tuple(line.split(":")[0] for line in changed) == names
    kept = [key for key in configuration.flat(before) if not configuration.is_data_root(key)]
    assert {key for key in kept if key.endswith("root")} == set(names)


SCENES = "{kind: streets, style: target, images: 2}"


def test_several_validation_sets_by_name(tiny_yaml, tmp_path):
    sets = f"data.validation={{night: {SCENES}, day: {{kind: camvid, splits: [test]}}}}"
    config = configuration.load(tiny_yaml, [sets, "data.validation.night.images=3"])
    assert list(config.data.sets) == ["source", "target", "validation.night", "validation.day"]
    assert config.data.sets["validation.night"].images == 3
    configuration.save(config, tmp_path / "saved.yaml")
    saved = configuration.load(tmp_path / "saved.yaml")
    assert saved == config and list(saved.data.sets) == list(config.data.sets)
    fewer = configuration.load(tiny_yaml, [sets, "data.validation.day=null"])
    assert list(fewer.data.validation_sets) == ["validation.night"]
    alone = configuration.load(tiny_yaml).data
    assert list(alone.sets) == ["source", "target", "validation"]


def test_validation_sets_may_move_and_be_added(tiny_yaml):
    sets = f"data.validation={{night: {SCENES}}}"
    before = configuration.load(tiny_yaml, [sets])
    added = ["data.validation.night.root=/x", "data.validation.day={kind: camvid, splits: [test]}"]
    after = configuration.load(tiny_yaml, [sets, *added])
    assert configuration.differences(before, after) == []
    assert configuration.is_data_root("data.validation.night.root")
    (removed, *_) = configuration.differences(after, before)
    assert removed.startswith("data.validation.day.")
    assert configuration.differences(configuration.load(tiny_yaml), before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("night.spit=x", r"unknown key `data\.validation\.night\.spit`"),
        ("night.images=0", r"`data\.validation\.night\.images` = 0: expected greater"),
        ("night.kind=camvit", r"`data\.validation\.night\.kind` = 'camvit': .*mean 'camvid'"),
        ("day.style=x", r"`data\.validation\.day`: expected a mapping with `kind`"),
        ("root=/x", r"`data\.validation\.root` = '/x': a key of a data set; .*write NAME\.root"),
        ("mean={kind: camvid}", r"`data\.validation\.mean`: expected another name"),
        ("'a/b'={kind: camvid}", r"expected a name of letters"),
    ],
)
def test_problems_of_a_named_validation_set(tiny_yaml, override, message):
    sets = f"data.validation={{night: {SCENES}}}"
    with pytest.raises(UserError, match=message):
        configuration.load(tiny_yaml, [sets, f"data.validation.{override}"])


def test_import_loads_neither_torch_nor_deepspeed():
    code = (
        "import sys, diga_hpc, diga_hpc.cli, diga_hpc.config\n"
        "print({'torch', 'deepspeed'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nseed: 2\n", "the key `seed` is given twice, in lines 1 and 2; keep one"),
        (b"data: {root: a, root: b}\n", "the key `root` is given twice, in line 1"),
        (b"? [a]\n: 1\n", "not valid YAML"),
        (b"\xff\xfe\x00", "not a text file .*expected YAML in UTF-8"),
        (b"", "expected sections .* found an empty file"),
        (b"hello", "expected sections .* found 'hello'"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, message):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"wrong.yaml: .*{message}"):
        configuration.load(path)
