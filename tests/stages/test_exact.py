"""Steps with the published settings, in float64, against plain PyTorch written out by hand.

The truth takes the views as given (tests/method/test_views.py checks them) and uses the network as
a function. Everything else is written by definition: logits of full size, softmax, means over
pixels, consensus, centroids, moving average, SGD with momentum and weight decay.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diga_hpc import config as configuration
from diga_hpc.distributed import world as distributed
from diga_hpc.method.losses import Segmentation, StepTotals
from diga_hpc.models.batch_norm import batch_norms, float_buffers
from diga_hpc.training.engine import Engine
from diga_hpc.training.stage import STUDENT
from helpers.steps import ALONE, batch_of, build_stage

PUBLISHED = [
    "loss.normalizer=all",
    "optimizer.name=sgd",
    "optimizer.lr_head=2.5e-3",
    "optimizer.lr_backbone=7.5e-4",
    "optimizer.decay_norms=true",
    "teacher={momentum: 0.999, normalization: batch}",
    "warm_up.target_statistics=true",
    "model.dropout=0",
    "warm_up.crop=[47, 91]",
    "self_training.crop=[47, 91]",
]
STEPS = 2
MOMENTUM, DECAY = 0.9, 5e-4


def full_size(maps: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(maps, labels.shape[-2:], mode="bilinear", align_corners=True)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over labelled pixels divided by all pixels."""
    log_p = full_size(logits, labels).log_softmax(1)
    of_label = log_p.gather(1, labels.long().clamp(max=logits.shape[1] - 1)[:, None])[:, 0]
    return -(of_label * (labels != 255)).sum() / labels.numel()


def distillation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The teacher on each view teaches the student on the other; the second direction weighs .5."""
    s1, s2 = full_size(student, labels).log_softmax(1).chunk(2)
    t1, t2 = full_size(teacher, labels).log_softmax(1).chunk(2)
    kl_12 = (t1.exp() * (t1 - s2)).sum(1).mean()
    kl_21 = (t2.exp() * (t2 - s1)).sum(1).mean()
    return kl_12 + 0.5 * kl_21


def consensus(features: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
    distances = (features[:, None] - centroids[None, :, :, None, None]).square().sum(2).sqrt()
    nearest = full_size((-distances).softmax(1), labels).argmax(1)
    return torch.where(nearest == labels, labels, 255)


def mean_features(features: Tensor, logits: Tensor, labels: Tensor) -> list[tuple[int, Tensor]]:
    """(class, mean) of each class with 5 nodes where the label and the network agree."""
    (H, W), (h, w) = labels.shape[-2:], features.shape[-2:]
    rows = [round(i * (H - 1) / (h - 1)) for i in range(h)]
    columns = [round(j * (W - 1) / (w - 1)) for j in range(w)]
    found = []
    for image in range(len(features)):
        at_nodes = labels[image][rows][:, columns].long()
        predicted = logits[image].argmax(0)
        for k in range(logits.shape[1]):
            agreed = (at_nodes == k) & (predicted == k)
            if agreed.sum() >= 5:
                found.append((k, features[image][:, agreed].mean(1)))
    return found


class Truth:
    """Student, teacher, momentum and centroids of a run, moved by definition."""

    def __init__(self, stage):
        self.stage = stage
        self.student, self.teacher = copy.deepcopy(stage.student), copy.deepcopy(stage.student)
        self.student.train()
        # Statistics of the batch, which the teacher forgets; the averaged ones are kept beside.
        self.teacher.eval()
        for layer in batch_norms(self.teacher):
            layer.train()
            layer.momentum = 0.0
        self.velocity = [torch.zeros_like(p) for p in self.student.parameters()]
        self.centroids = None

    def follow(self, step: int) -> None:
        alpha = min(1 - 1 / (step + 1), 0.999)
        pairs = [
            *zip(self.teacher.parameters(), self.student.parameters(), strict=True),
            *zip(float_buffers(self.teacher), float_buffers(self.student), strict=True),
        ]
        with torch.no_grad():
            for teacher, student in pairs:
                teacher.copy_(alpha * teacher + (1 - alpha) * student)

    def update(self, loss: Tensor, step: int) -> list[Tensor]:
        """SGD: v <- .9 v + (g + decay p), p <- p - rate v. Returns the gradients."""
        names = [name for name, _ in self.student.named_parameters()]
        parameters = list(self.student.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        schedule = (1 - step / self.stage.section.steps) ** 0.9
        with torch.no_grad():
            for name, p, v, g in zip(names, parameters, self.velocity, gradients, strict=True):
                v.mul_(MOMENTUM).add_(g + DECAY * p)
                p.sub_((2.5e-3 if name.startswith("head") else 7.5e-4) * schedule * v)
        return list(gradients)

    def warm_up(self, given) -> Tensor:
        labels = given.labels
        with torch.no_grad():
            taught = self.teacher(given.views).logits
        student = self.student(given.views).logits
        with torch.no_grad():
            self.student(given.target)
        return cross_entropy(student[: len(labels)], labels) + 0.5 * distillation(
            student, taught, labels
        )

    def self_training(self, given, batch) -> Tensor:
        labels, images = given.labels, len(given.labels)
        with torch.no_grad():
            on_source, on_target = self.teacher(given.views), self.teacher(batch.target / 255)
        kept = consensus(on_target.features, self.centroids, batch.target_labels)
        pasted = torch.stack(
            [
                table[label.long()]
                for table, label in zip(batch.draws["paste_table"], labels, strict=True)
            ]
        )
        mixed_labels = torch.where(pasted, labels, kept)
        assert torch.equal(mixed_labels, given.mixed_labels)
        assert 0.02 < (kept != 255).double().mean() < 0.98
        student, mixed = self.student(given.views).logits, self.student(given.mixed).logits
        means = mean_features(on_target.features, on_target.logits, kept) + mean_features(
            on_source.features[images:], on_source.logits[images:], labels
        )
        # One image after another, as published; ours agrees to the square of the momentum, 1e-8.
        for k, mean in means:
            self.centroids[k] = (1 - 1e-4) * self.centroids[k] + 1e-4 * mean
        assert len({k for k, _ in means}) > 1
        return (
            cross_entropy(student[:images], labels)
            + cross_entropy(mixed, mixed_labels)
            + 0.25 * distillation(student, on_source.logits, labels)
        )


def close(found: Tensor, expected: Tensor, what: str) -> None:
    """1e-6 of the largest value. Gradients that are 0 but for rounding count as 1e-6: of biases
    before a batch normalisation."""
    scale = expected.abs().max().clamp(min=1e-6)
    error = ((found.double() - expected).abs().max() / scale).item()
    assert error < 1e-6, (what, error)


def spread_logits(stage, batch) -> None:
    """Give the classifier weights such that every class wins somewhere, as after training."""
    mean = stage.teacher(batch.source / 255).features.mean((0, 2, 3))
    weights = torch.randn(len(stage.student.classifier.weight), len(mean), dtype=torch.float64)
    # Without the part along the mean feature, which would be the same at every node.
    weights -= (weights @ mean)[:, None] * mean / mean.square().sum()
    with torch.no_grad():
        stage.student.classifier.weight.copy_(2 * weights[:, :, None, None])
    stage.teacher.model.load_state_dict(stage.student.state_dict())


def published(kind: str, tiny_yaml):
    """A stage in float64, and a batch for it."""
    torch.manual_seed(0)
    config = configuration.load(tiny_yaml, PUBLISHED)
    stage = build_stage(kind, config, distributed.start(config))
    stage.segmentation = Segmentation(config.loss, None, ALONE.device)  # no class weights
    stage.student.double()
    stage.teacher.model.double()
    batch = batch_of(stage)
    spread_logits(stage, batch)
    if kind == "self_training":
        # Centroids and pseudo labels of this network: some of its labels are kept, some are not.
        with torch.no_grad():
            own = stage.teacher(batch.target / 255)
            labels = full_size(own.logits, batch.target_labels).argmax(1).to(torch.uint8)
        nodes = own.features.transpose(0, 1).flatten(1).T.float()
        classes = own.logits.argmax(1).flatten()
        values = torch.stack([nodes[classes == k].mean(0) for k in range(own.logits.shape[1])])
        stage.centroids.values = values + 0.2 * nodes.std() * torch.randn_like(values)
        batch.target_labels = labels
    return stage, batch


@pytest.fixture
def float64_engine(monkeypatch):
    """DeepSpeed refuses to reduce gradients in float64 over ranks; over one there is no need to."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator import get_accelerator

    types = [*get_accelerator().supported_dtypes(), torch.float64]
    monkeypatch.setattr(get_accelerator(), "supported_dtypes", lambda: types)


@pytest.mark.usefixtures("float64_engine")
@pytest.mark.parametrize("kind", ["warm_up", "self_training"])
def test_two_steps_with_published_settings(tiny_yaml, kind):
    stage, batch = published(kind, tiny_yaml)
    truth = Truth(stage)
    if kind == "self_training":
        truth.centroids = stage.centroids.values.double()
    engine = Engine(
        stage.student, stage.context.config.optimizer, stage.context.config, stage.section, ALONE
    )
    engine._engine.communication_data_type = torch.float64
    engine.network.train()
    for step in range(STEPS):
        stage.before_step(step)
        prepared = stage.prepare(batch)
        output = stage.step(prepared, {STUDENT: engine}, StepTotals({}, len(batch)))
        engine.backward(output.losses[STUDENT], len(batch))
        assert engine.step(step).applied
        stage.absorb([output.statistics])
        truth.follow(step)
        loss = (
            truth.warm_up(prepared) if kind == "warm_up" else truth.self_training(prepared, batch)
        )
        truth.update(loss, step)
        close(output.losses[STUDENT].detach(), loss.detach(), "loss")
        moments = engine.optimizer_state()
        for (name, p), q, v in zip(
            stage.student.named_parameters(),
            truth.student.parameters(),
            truth.velocity,
            strict=True,
        ):
            close(moments[f"momentum_buffer/{name}"], v, f"gradients of {name}, step {step}")
            close(p.detach(), q.detach(), name)
        for ours, theirs in ((stage.student, truth.student), (stage.teacher.model, truth.teacher)):
            for a, b in zip(float_buffers(ours), float_buffers(theirs), strict=True):
                close(a, b, "running statistics")
        for a, b in zip(stage.teacher.model.parameters(), truth.teacher.parameters(), strict=True):
            close(a, b, "teacher")
        if kind == "self_training":
            close(stage.centroids.values, truth.centroids, "centroids")
