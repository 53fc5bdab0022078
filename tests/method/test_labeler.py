"""Labels of complete images and scores against plain computations; memory of pseudo labels."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diga_hpc.datasets.label_spaces import LabelSpace
from diga_hpc.distributed.world import World
from diga_hpc.method.labeler import Labeler, window_starts
from diga_hpc.method.scores import ConfusionMatrix, scores
from diga_hpc.method.views import unit_range
from diga_hpc.models import build_model
from diga_hpc.models.base import Prediction

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model("lite", 5).eval()
    nn.init.normal_(model.head.classifier.weight)
    return model


@pytest.mark.parametrize(
    ("scales", "flip"), [((1.0,), False), ((1.0, 0.5), False), ((1.0, 0.75), True)]
)
def test_labels_are_the_argmax_of_the_maximum_over_scales(model, scales, flip):
    image = torch.randint(0, 256, (3, 41, 66), dtype=torch.uint8)
    views = []
    with torch.no_grad():
        for scale in scales:
            size = [round(41 * scale), round(66 * scale)]
            x = F.interpolate(unit_range(image[None]), size, mode="bilinear", align_corners=True)
            logits = [model(x).logits] + ([model(x.flip(-1)).logits.flip(-1)] if flip else [])
            views += [
                F.interpolate(v.double(), (50, 70), mode="bilinear", align_corners=True)
                for v in logits
            ]
    best = torch.stack(views).amax(0)[0]
    top = best.topk(2, dim=0).values
    clear = top[0] - top[1] > 1e-5
    got = Labeler(model, scales=scales, flip=flip)(image, (50, 70))
    assert got.dtype == torch.uint8 and torch.equal(got[clear].long(), best.argmax(0)[clear])


class PatchMeans(nn.Module):
    """A network without overlap: its nodes are the centres of patches of 4x4 pixels."""

    align_corners = False

    def forward(self, images):
        brightness = F.avg_pool2d(images[:, :1], 4) * 255
        # Class 1 where the brightness exceeds that of pixel 11.8 of the ramp below.
        return Prediction(torch.cat([23.6 - brightness, brightness - 23.6], 1), brightness)


@pytest.mark.parametrize("scales", [(1.0,), (0.5,), (1.0, 0.5)])
def test_every_scale_places_labels_alike_where_nodes_are_centres_of_patches(scales):
    ramp = torch.arange(0, 256, 2, dtype=torch.uint8).expand(3, 64, 128)
    labels = Labeler(PatchMeans(), scales=scales)(ramp, (64, 128))
    assert torch.equal(labels, (torch.arange(128) >= 12).to(torch.uint8).expand(64, 128))


def test_sliding_windows_cover_everything_and_average(model):
    assert window_starts(10, 10) == [0]
    for size, window in ((100, 40), (41, 40), (1024, 512)):
        starts = window_starts(size, window)
        assert starts[0] == 0 and starts[-1] == size - window
        assert all(b - a <= 2 * window / 3 + 1 for a, b in zip(starts, starts[1:], strict=False))
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    whole = Labeler(model, scales=(1.0,))(image, (40, 60))
    as_one_window = Labeler(model, scales=(1.0,), sliding_window=(40, 60))(image, (40, 60))
    assert torch.equal(whole, as_one_window)
    windowed = Labeler(model, scales=(1.0,), sliding_window=(32, 32))(image, (40, 60))
    assert windowed.shape == (40, 60)


def test_confusion_matrix_and_scores_against_loops():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 5, (3, 9, 11)).astype(np.uint8)
    truth[truth == 3] = 255  # class 3 is absent from the truth
    predicted = generator.integers(0, 4, (3, 9, 11)).astype(np.uint8)  # class 4 is never predicted
    matrix = ConfusionMatrix(6, torch.device("cpu"))
    for t, p in zip(truth, predicted, strict=True):
        matrix.add(torch.from_numpy(t), torch.from_numpy(p))
    space = LabelSpace("s", tuple("abcdef"), ((0, 0, 0),) * 6, {"miou_2": (0, 1)})
    row = scores(matrix.counts, space)
    valid = truth != 255
    iou = {}
    for c in range(6):
        union = (((truth == c) | (predicted == c)) & valid).sum()
        iou[c] = 100 * ((truth == c) & (predicted == c)).sum() / union if union else None
    assert row["pixel_accuracy"] == pytest.approx(
        100 * (truth == predicted)[valid].mean(), abs=1e-3
    )
    for c, name in enumerate("abcdef"):
        assert row["iou"][name] == (None if iou[c] is None else pytest.approx(iou[c], abs=1e-3))
    # Class 3 is only predicted, class 5 is in neither.
    assert row["miou"] == pytest.approx(np.mean([iou[c] for c in (0, 1, 2, 3, 4)]), abs=1e-3)
    assert row["miou_present"] == pytest.approx(np.mean([iou[c] for c in (0, 1, 2, 4)]), abs=1e-3)
    assert row["miou_2"] == pytest.approx(np.mean([iou[0], iou[1]]), abs=1e-3)


MEMORY = """
import resource, sys, torch
from pathlib import Path
from diga_hpc import config as configuration
from diga_hpc.stages.networks import starting_network
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.stages.pseudo_labels import write_pseudo_labels
overrides = [f"data.target.images={sys.argv[2]}", "data.target.scene_size=[192,384]"]
job = Pipeline(configuration.load(sys.argv[1], overrides))
model = starting_network(job.context).eval()
target, folder = job.context.target, Path(sys.argv[3])
write_pseudo_labels(job.context, model, target, folder, lambda images, *_: images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_of_pseudo_labels_does_not_grow_with_the_number_of_images(tiny_yaml, tmp_path):
    """60 more images of 192x384: 150 MB of logits at full size, 4.4 MB of labels."""

    def peak(images):
        arguments = [tiny_yaml, images, tmp_path / f"labels{images}"]
        overrides = [str(a) for a in arguments]
        text = tiny_yaml.read_text().replace("/run", f"/run{images}_")
        tiny_yaml.write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *overrides], capture_output=True, text=True, check=True
        )
        assert len(list((tmp_path / f"labels{images}").glob("*.png"))) == images
        return int(done.stdout.split()[-1]) / 1024

    assert peak(64) - peak(4) < 20  # MB
