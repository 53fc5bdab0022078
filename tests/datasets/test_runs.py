"""Every data set in miniature goes through a check, a training step and an evaluation."""

import json

import pytest

from diga_hpc import config as configuration
from diga_hpc.datasets import DATASETS
from diga_hpc.results import check
from diga_hpc.stages.pipeline import Pipeline
from helpers.miniatures import MINIATURES, write

CONFIG = """
run_dir: {folder}/run
label_space: {space}
data:
  root: {folder}/data
  source: {source}
  validation: {validation}
  workers: 0
model: {{name: lite, weights: random}}
warm_up: {{steps: 1, crop: [32, 32], batch: {{full: 2}}, second_view: color, start: model}}
evaluation: {{scales: [1.0], teacher: false, adapt_normalization: false, panels: 1}}
engine: {{device: cpu}}
"""


# Of the layouts and encodings of a data set, one, and those whose pixels take another way.
RUN = [name for name in MINIATURES if name in {*DATASETS, "synscapes_2k", "camvid_colors"}]


@pytest.mark.parametrize("name", RUN)
def test_check_training_and_evaluation(name, tmp_path):
    truth = write(name, tmp_path / "data")
    sections = [*MINIATURES[name].labelled.values()]
    text = CONFIG.format(
        folder=tmp_path,
        space=MINIATURES[name].space,
        source=sections[0],
        validation=sections[-1],
    )
    (tmp_path / "run.yaml").write_text(text)
    config = configuration.load(tmp_path / "run.yaml")
    checked = check.look(config)
    assert checked.at("error") == []
    assert {s.name for s in checked.sets} == {"source", "validation"}
    assert all(s.read == s.images for s in checked.sets)
    if len(sections) == 2:
        assert sum(s.images for s in checked.sets) == len(truth)
    Pipeline(config).run()
    (row,) = json.loads((tmp_path / "run/results.json").read_text())
    assert row["images"] == checked.sets[-1].images
