"""The EMA teacher against its formula in float64 (docs/method.md, 4)."""

import contextlib

import pytest
import torch

from diga_hpc.config import TeacherSection
from diga_hpc.method.teacher import Teacher
from diga_hpc.models import build_model
from diga_hpc.models.batch_norm import float_buffers


def images(n=2, size=(13, 17), seed=0):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_teacher_follows_in_float32_by_the_formula():
    student = build_model("lite", 4)
    teacher = Teacher(student, TeacherSection(momentum=0.9), contextlib.nullcontext)
    expected = [p.detach().double().clone() for p in student.parameters()]
    statistics = [b.double().clone() for b in float_buffers(student)]
    for step in range(15):
        with torch.no_grad():
            for p in [*student.parameters(), *float_buffers(student)]:
                p.add_(torch.randn_like(p) * 0.01)
        teacher.update(student, step)
        alpha = min(1 - 1 / (step + 1), 0.9)
        new = [p.detach().double() for p in student.parameters()]
        expected = [alpha * e + (1 - alpha) * n for e, n in zip(expected, new, strict=True)]
        statistics = [
            alpha * e + (1 - alpha) * n.double()
            for e, n in zip(statistics, float_buffers(student), strict=True)
        ]
    for got, want in zip(
        [*teacher.model.parameters(), *float_buffers(teacher.model)],
        expected + statistics,
        strict=True,
    ):
        assert got.dtype == torch.float32 and not got.requires_grad
        assert torch.allclose(got.double(), want, atol=1e-6)


@pytest.mark.parametrize("normalization", ["batch", "ema"])
def test_teacher_normalisation_and_dropout(normalization):
    student = build_model("lite", 4, dropout=0.5)
    teacher = Teacher(student, TeacherSection(normalization=normalization), contextlib.nullcontext)
    before = [b.clone() for b in float_buffers(teacher.model)]
    x = images(2, (32, 32))
    first, again = teacher(x).logits, teacher(x).logits
    assert torch.equal(first, again)  # no dropout
    assert all(
        map(torch.equal, before, float_buffers(teacher.model))
    )  # a forward pass changes no statistics
    alone = teacher(x[:1]).logits
    assert torch.allclose(alone, first[:1], atol=1e-5) == (normalization == "ema")
