"""Configuration: precedence, validation messages, round trip."""

import subprocess
import sys

import pytest

from diga_hpc import config as configuration
from diga_hpc.datasets import DATASETS
from diga_hpc.errors import UserError
from diga_hpc.section import Section


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
        ("data.source.kind=kitti", "'streets', 'camvid', 'gta5', 'cityscapes', 'folder'"),
        ("warm_up.batch={full: 0}", "full + half is 0"),
        ("data.target=null", "self_training needs data.target"),
        ("label_space=custom", "`classes` goes with `label_space: custom`"),
        ("seed", "an override is written key=value"),
        ("run_dir.a=1", "`run_dir` is a value, not a section"),
        ("seed.a=1", "`seed` = {'a': 1}"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_message_names_key_value_and_remedy(tiny_yaml, override, expected):
    with pytest.raises(UserError) as error:
        configuration.load(tiny_yaml, [override])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


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


def test_every_field_is_documented():
    def sections(model, seen):
        if model not in seen:
            seen.add(model)
            for field in model.model_fields.values():
                for part in [field.annotation, *getattr(field.annotation, "__args__", ())]:
                    if isinstance(part, type) and issubclass(part, Section):
                        sections(part, seen)
        return seen

    def is_section(annotation) -> bool:
        parts = [annotation, *getattr(annotation, "__args__", ())]
        return any(isinstance(part, type) and issubclass(part, Section) for part in parts)

    undocumented = []
    for section in sections(configuration.Config, set()) | set(DATASETS.values()):
        assert section.__doc__
        undocumented += [
            f"{section.__name__}.{name}"
            for name, field in section.model_fields.items()
            if not field.description and name != "kind" and not is_section(field.annotation)
        ]
    assert undocumented == []


def test_import_loads_neither_torch_nor_deepspeed():
    code = "import sys, diga_hpc, diga_hpc.cli, diga_hpc.config; print({'torch', 'deepspeed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
