"""Extensions: modules outside the package that add data sets, label spaces, networks and stages."""

from pathlib import Path

import pytest
import yaml

from diga_hpc import config as configuration
from diga_hpc.config import schema
from diga_hpc.datasets.label_spaces import SPACES
from diga_hpc.errors import UserError
from diga_hpc.stages import plan
from helpers.registrations import registrations_undone

DATA = '''
from typing import Literal
from diga_hpc.datasets import DATASETS
from diga_hpc.datasets.base import FileDataset, Files
from diga_hpc.datasets.label_spaces import SPACES, LabelSpace
from diga_hpc.datasets.label_tables import identity_table
from diga_hpc.models import MODELS
from diga_hpc.config.choices import SAMPLERS, TRANSLATORS
from diga_hpc.section import Section


class Camera(Section):
    focal: float = 1.0
    """Focal length."""


class Toy(FileDataset):
    """Pictures in one folder."""

    kind: Literal["toy"]
    folder: str = "pictures"
    """Folder below the root."""
    camera: Camera = Camera()

    def files(self, root, left_out):
        return [Files(p.stem, p, None) for p in sorted((root / self.folder).iterdir())]

    def table(self, space):
        return identity_table(space.num_classes)


DATASETS["toy"] = Toy
SPACES["toys"] = LabelSpace("toys", ("ball", "box"), ((255, 0, 0), (0, 255, 0)))
MODELS["toy_net"] = "toy_data:Net"
SAMPLERS["toy_order"] = "toy_data:Order"
TRANSLATORS["toy_style"] = "toy_data:Style"
'''

STAGE = '''
from diga_hpc.config import TrainingSection
from diga_hpc.section import Fraction
from diga_hpc.stages import plan


class ToySection(TrainingSection):
    """A stage of your own."""

    strength: Fraction = 0.5
    """How much of it."""


plan.register("toy", "toy_stage:Toy", ToySection, after="warm_up", views=2)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current directory for modules; registrations are undone afterwards."""
    monkeypatch.chdir(tmp_path)
    with registrations_undone("toy"):
        yield tmp_path


@pytest.fixture
def data(folder, tiny_yaml) -> Path:
    """A configuration that names the module toy_data."""
    (folder / "toy_data.py").write_text(DATA)
    tiny_yaml.write_text("extensions: [toy_data]\n" + tiny_yaml.read_text())
    return tiny_yaml


@pytest.fixture
def stage(folder, tiny_yaml) -> Path:
    """A configuration that names the module toy_stage and has a section of its stage."""
    (folder / "toy_stage.py").write_text(STAGE)
    text = "extensions: [toy_stage]\ntoy: {steps: 2, crop: [8, 8], batch: {full: 2}}\n"
    tiny_yaml.write_text(text + tiny_yaml.read_text())
    return tiny_yaml


EVERYTHING = [
    "data.target={kind: toy, folder: photos, camera: {focal: 2}}",
    "label_space=toys",
    "model.name=toy_net",
    "data.sampler=toy_order",
    "translator.kind=toy_style",
]


class TestDataSet:
    def test_names_of_an_extension_are_accepted(self, data):
        config = configuration.load(data, EVERYTHING)
        assert type(config.data.target).__name__ == "Toy"
        assert config.data.target.folder == "photos" and config.data.target.camera.focal == 2.0
        assert config.space.classes == ("ball", "box")
        assert (config.model.name, config.data.sampler) == ("toy_net", "toy_order")
        assert config.translator.kind == "toy_style"

    def test_saved_configuration_reads_back_equal(self, data, tmp_path):
        config = configuration.load(data, EVERYTHING)
        configuration.save(config, tmp_path / "saved.yaml")
        saved = configuration.load(tmp_path / "saved.yaml")
        assert saved == config and configuration.differences(config, saved) == []
        assert configuration.flat(saved)["data.target.camera.focal"] == 2.0

    def test_keys_of_its_section_are_part_of_the_experiment(self, data):
        old = configuration.load(data, EVERYTHING)
        new = configuration.load(
            data, [*EVERYTHING, "data.target.folder=other", "data.target.root=/x"]
        )
        assert configuration.differences(old, new) == [
            "data.target.folder: 'photos' there, 'other' now"
        ]

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("data.target.foldr=x", "unknown key `data.target.foldr`: did you mean `folder`?"),
            (
                "data.target.zzz=x",
                "unknown key `data.target.zzz`: known here: camera, exif_orient",
            ),
            (
                "data.target.camera.vocal=1",
                "unknown key `data.target.camera.vocal`: did you mean `focal",
            ),
            ("data.target.camera.focal=x", "`data.target.camera.focal` = 'x'"),
            (
                "data.target.camera=3",
                "`data.target.camera` = 3: expected a section with the keys focal",
            ),
            ("data.target.folder=3", "`data.target.folder` = 3"),
            ("data.target.kind=toys", "`data.target.kind` = 'toys': expected one of"),
            ("data.target.kind=toys", "'toy'; did you mean 'toy'?"),
            ("label_space=toy", "'toys', 'custom'; did you mean 'toys'?"),
            ("model.name=toy", "did you mean 'toy_net'?"),
        ],
    )
    def test_wrong_keys_and_values_are_named_with_their_path(self, data, override, expected):
        with pytest.raises(UserError) as error:
            configuration.load(data, [*EVERYTHING, override])
        assert expected in str(error.value) and "\n" not in str(error.value)

    def test_without_the_extension_its_names_are_unknown(self, tiny_yaml):
        with pytest.raises(
            UserError, match=r"`data.source.kind` = 'toy': expected one of 'streets'"
        ):
            configuration.load(tiny_yaml, ["data.source.kind=toy"])

    def test_an_override_names_the_extension(self, data):
        data.write_text(data.read_text().replace("extensions: [toy_data]", ""))
        config = configuration.load(data, ["extensions=[toy_data]", *EVERYTHING])
        assert config.extensions == ("toy_data",)

    def test_another_extension_is_no_other_experiment(self, data):
        """What an extension changes shows in the keys that use it."""
        old = configuration.load(data, ["extensions=[]"])
        assert configuration.differences(old, configuration.load(data)) == []


class TestStage:
    def test_its_section_is_validated(self, stage):
        config = configuration.load(stage, ["toy.strength=0.25"])
        assert config.toy.strength == 0.25 and config.toy.batch.full == 2
        assert isinstance(config.toy, schema.STAGE_SECTIONS["toy"])
        assert [planned.name for planned in plan.trained(config)][1:3] == ["warm_up", "toy"]

    def test_saved_configuration_reads_back_equal(self, stage, tmp_path):
        config = configuration.load(stage, ["toy.strength=0.25"])
        configuration.save(config, tmp_path / "saved.yaml")
        saved = configuration.load(tmp_path / "saved.yaml")
        assert saved == config and saved.toy == config.toy
        written = yaml.safe_load((tmp_path / "saved.yaml").read_text())
        assert written["toy"] == {
            "steps": 2,
            "batch": {"full": 2, "half": 0},
            "crop": [8, 8],
            "lr_scale": 1.0,
            "strength": 0.25,
        }

    def test_its_keys_are_part_of_the_experiment(self, stage):
        old, new = (configuration.load(stage, [f"toy.steps={steps}"]) for steps in (2, 3))
        assert configuration.flat(new)["toy.steps"] == 3
        assert configuration.identity(new)["toy.batch.full"] == 2
        assert configuration.differences(old, new) == ["toy.steps: 2 there, 3 now"]
        without = configuration.load(stage, ["toy=null"])
        assert "toy.steps: 2 there, None now" in configuration.differences(old, without)

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("toy.step=3", "unknown key `toy.step`: did you mean `steps`?"),
            (
                "toy.zzz=3",
                "unknown key `toy.zzz`: known here: batch, crop, lr_scale, steps, strength",
            ),
            ("toy.batch.ful=3", "unknown key `toy.batch.ful`: did you mean `full`?"),
            ("toy.batch={full: 0}", "`toy.batch`: full + half is 0"),
            ("toy.strength=2", "`toy.strength` = 2: expected less than or equal to 1"),
            ("toy={steps: 3}", "`toy.crop` is missing"),
            (
                "toy=3",
                "`toy` = 3: expected a section with the keys steps, batch, crop, lr_scale, str",
            ),
            ("toyy.steps=3", "unknown key `toyy`: did you mean `toy`?"),
        ],
    )
    def test_wrong_keys_and_values_are_named_with_their_path(self, stage, override, expected):
        with pytest.raises(UserError) as error:
            configuration.load(stage, [override])
        assert expected in str(error.value) and "\n" not in str(error.value)

    def test_an_empty_section_leaves_the_stage_out(self, stage, tmp_path):
        config = configuration.load(stage, ["toy=null"])
        assert config.toy is None and "toy" not in [p.name for p in plan.plan(config)]
        configuration.save(config, tmp_path / "saved.yaml")
        assert configuration.load(tmp_path / "saved.yaml") == config

    def test_a_section_may_come_from_overrides_alone(self, stage):
        config = configuration.load(stage, ["toy=null", "toy.steps=7", "toy.crop=[4,4]"])
        assert config.toy.steps == 7

    def test_a_section_may_be_an_object(self, stage):
        config = configuration.load(stage)
        values = dict(config)
        assert configuration.Config(**values) == config


BROKEN = {
    "an error": ("1 / 0", "raised ZeroDivisionError: division by zero ("),
    "its line": ("\n\n1 / 0", "toy_broken.py, line 3)"),
    "a wrong package": ("import no_such_package", "ModuleNotFoundError: No module named 'no_such"),
    "a wrong name": (
        "from diga_hpc.errors import Nothing",
        "raised ImportError: cannot import name",
    ),
    "syntax": ("x = (\n", "raised SyntaxError: '(' was never closed"),
    "where it is": ("\nx = (\n", "toy_broken.py, line 2)"),
    "exit": ("import sys; sys.exit(3)", "raised SystemExit: 3 ("),
}


class TestBadExtensions:
    @pytest.mark.parametrize("case", BROKEN)
    def test_a_module_that_raises(self, folder, tiny_yaml, case):
        text, expected = BROKEN[case]
        (folder / "toy_broken.py").write_text(text)
        with pytest.raises(UserError) as error:
            configuration.load(tiny_yaml, ["extensions=[toy_broken]"])
        message = str(error.value)
        assert message.startswith(f"{tiny_yaml}: `extensions`: importing 'toy_broken' raised ")
        assert expected in message and "\n" not in message
        assert message.endswith("correct it, or leave the extension out")

    @pytest.mark.parametrize("module", ["toy_absent", "toy_absent.data"])
    def test_a_module_that_is_not_there(self, folder, tiny_yaml, module):
        with pytest.raises(UserError) as error:
            configuration.load(tiny_yaml, [f"extensions=[{module}]"])
        assert f"`extensions`: {module!r} cannot be imported" in str(error.value)
        assert f"in the current directory ({folder}) or on PYTHONPATH" in str(error.value)

    @pytest.mark.parametrize("value", ["toy_data", "3", "[1]", "{a: b}"])
    def test_a_value_that_is_no_list_of_names(self, tiny_yaml, value):
        with pytest.raises(UserError, match="`extensions` = .*: expected a list of Python modules"):
            configuration.load(tiny_yaml, [f"extensions={value}"])

    @pytest.mark.parametrize("name", ["folder/toy.py", "./toy", "toy-data", "", ".toy"])
    def test_paths_are_no_names(self, tiny_yaml, name):
        with pytest.raises(
            UserError, match="is not the name of a Python module; write my_data for"
        ):
            configuration.load(tiny_yaml, [f"extensions=['{name}']"])

    def test_files_of_the_current_directory_hide_no_module(self, folder, tiny_yaml):
        (folder / "json.py").write_text("raise RuntimeError('not the one of the library')")
        configuration.load(tiny_yaml, ["extensions=[json]"])


def test_a_module_in_a_folder_is_imported(folder, tiny_yaml):
    (folder / "toys").mkdir()
    (folder / "toys/toy_data.py").write_text(DATA)
    config = configuration.load(tiny_yaml, ["extensions=[toys.toy_data]", "label_space=toys"])
    assert config.space.num_classes == 2


def test_modules_are_imported_in_their_order(folder, tiny_yaml):
    (folder / "toy_first.py").write_text(
        "from diga_hpc.datasets.label_spaces import SPACES\nSPACES['one'] = 1"
    )
    (folder / "toy_second.py").write_text(
        "from diga_hpc.datasets.label_spaces import SPACES\nSPACES['two'] = SPACES['one'] + 1"
    )
    configuration.load(tiny_yaml, ["extensions=[toy_first, toy_second]"])
    assert SPACES["two"] == 2
