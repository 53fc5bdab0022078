"""A trained translator: its file, pictures and report; frozen use in other stages and runs."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from diga_hpc import config as configuration
from diga_hpc.config import TranslatorSection
from diga_hpc.errors import Stopped, UserError
from diga_hpc.method.translators import build_translator
from diga_hpc.method.translators.learned import load_translator, save_translator
from diga_hpc.models.translation import Generator, SourceToTarget
from diga_hpc.results.report import write_report
from diga_hpc.stages.pipeline import Pipeline
from diga_hpc.training import checkpoint
from helpers.runs import load
from helpers.translators import translation

LEARNED = "translator.kind=learned"
TRANSLATED = 'source_only={"steps":2,"crop":[32,48],"view":"translated"}'


@pytest.fixture
def file(tmp_path):
    """A translator's file, and the network in it."""
    torch.manual_seed(0)
    network = SourceToTarget(3, 1)
    path = tmp_path / "translator.safetensors"
    save_translator(path, network.state_dict(), width=3, blocks=1, made_from="abc")
    return path, network


def test_a_file_gives_back_the_network_frozen(file):
    path, network = file
    loaded = load_translator(path)
    images = torch.rand(2, 3, 17, 22)
    assert torch.equal(loaded(images), network(images))
    assert not any(p.requires_grad for p in loaded.parameters())
    translator = build_translator(TranslatorSection(kind="learned", weights=path))
    translated = translator(images.requires_grad_(), images, {})
    assert torch.equal(translated, network(images)) and not translated.requires_grad
    assert translator.draw("source", torch.zeros(3, 4, 4, dtype=torch.uint8)) == {}


def test_a_file_that_is_damaged_absent_or_another_is_refused(file, tmp_path):
    path, _ = file
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    flipped = tmp_path / "flipped.safetensors"
    flipped.write_bytes(content)
    with pytest.raises(UserError, match=r"flipped.safetensors: corrupt, its tensors"):
        load_translator(flipped)
    (tmp_path / "short.safetensors").write_bytes(content[:-9])
    with pytest.raises(UserError, match=r"short.safetensors: not a readable safetensors file"):
        load_translator(tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"absent.safetensors: no such file"):
        load_translator(tmp_path / "absent.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors: not a translator's file"):
        load_translator(tmp_path / "other.safetensors")
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({"a": torch.zeros(1)}, tmp_path / "strange.safetensors", metadata)
    with pytest.raises(UserError, match=r"strange.safetensors: corrupt translator's file"):
        load_translator(tmp_path / "strange.safetensors")


def test_the_export_is_of_the_trained_generator_and_is_written_again_if_it_is_gone(
    tiny_yaml, tmp_path
):
    pipeline = Pipeline(load(tiny_yaml, tmp_path / "run", *translation(steps=1)))
    pipeline.run("train-translator")
    run = pipeline.context.run
    groups, _ = checkpoint.load(checkpoint.newest(run.checkpoints("translation")))
    generator = Generator(2, 1)
    generator.load_state_dict(groups["generator"])
    exported = load_translator(run.translator).state_dict()
    assert all(torch.equal(generator.state_dict()[name], t) for name, t in exported.items())
    content, written = run.translator.read_bytes(), run.translator.stat().st_mtime_ns
    pipeline.run("train-translator")
    assert run.translator.stat().st_mtime_ns == written
    run.translator.unlink()
    pipeline.run("train-translator")
    assert run.translator.read_bytes() == content


def test_a_run_trains_a_translator_and_uses_it_frozen_in_all_stages(tiny_yaml, tmp_path):
    steps = ["warm_up.steps=2", "self_training.steps=2", "evaluation.adapt_normalization=false"]
    options = [*translation(steps=1), TRANSLATED, *steps, "data.source.scene_size=[65,97]"]
    config = load(tiny_yaml, tmp_path / "run", *options)
    pipeline = Pipeline(config)
    pipeline.run("train-translator")
    before = pipeline.context.run.translator.read_bytes()
    pipeline.run()
    assert pipeline.context.run.translator.read_bytes() == before
    rows = json.loads((tmp_path / "run/results.json").read_text())
    assert {row["stage"] for row in rows} == {"source_only", "warm_up", "self_training"}
    assert not [*(tmp_path / "run/checkpoints/warm_up").glob("*/*translat*")]
    (folder,) = (tmp_path / "run/translator/panels").iterdir()
    assert {path.stem for path in folder.iterdir()} == {"source", "translated", "cycle"}
    assert Image.open(folder / "cycle.jpg").size == (97, 65)
    html = write_report(tmp_path / "run").read_text()
    assert "<h2>Translator</h2>" in html and f"{folder.name}: translated" in html


def test_a_file_of_another_run_is_used_and_bound_to_the_run(tiny_yaml, tmp_path, file):
    path, _ = file
    options = [LEARNED, f"translator.weights={path}", "source_only=null", "warm_up.start=model"]
    Pipeline(load(tiny_yaml, tmp_path / "run", *options, "warm_up.steps=1")).run("warm-up")
    torch.manual_seed(1)
    save_translator(path, SourceToTarget(3, 1).state_dict(), width=3, blocks=1, made_from="abc")
    with pytest.raises(UserError, match="begun with other weights of its translator: .*digest"):
        Pipeline(load(tiny_yaml, tmp_path / "run", *options, "warm_up.steps=1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([LEARNED, "translator.weights=absent.safetensors"], "absent.safetensors: no such file"),
        (translation(vgg19="absent.pth"), "`translation.vgg19`: .*there is no file absent.pth"),
    ],
)
def test_a_missing_file_is_refused_before_anything_is_written(
    tiny_yaml, tmp_path, options, message
):
    with pytest.raises(UserError, match=message):
        Pipeline(load(tiny_yaml, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([LEARNED], "there is no section translation that trains it"),
        (["translator.weights=a.safetensors"], "read with kind 'learned' alone, not with 'color'"),
        ([*translation(crop=[64, 66])], "expected multiples of 4, at least 64"),
        ([*translation(crop=[60, 64])], "expected multiples of 4, at least 64"),
        (
            [*translation(), "data.target=null", "self_training=null", "warm_up.second_view=color"],
            "translation needs data.target",
        ),
        (
            [TRANSLATED, "data.target=null", "self_training=null", "warm_up.second_view=color"],
            "source_only.view 'translated' needs data.target",
        ),
        ([TRANSLATED, "translator.kind=none"], "is 'translated', but translator.kind 'none'"),
        ([*translation(), "translator.kind=color"], "nothing would use, since translator.kind is"),
        ([*translation(), "translator.weights=a"], "would use, since translator.weights is set"),
    ],
)
def test_configurations_that_contradict_themselves(tiny_yaml, overrides, message):
    with pytest.raises(UserError, match=message):
        configuration.load(tiny_yaml, overrides)


SHORT = ["warm_up.steps=2", "source_only=null", "warm_up.start=model"]


def test_a_translator_that_is_not_trained_yet_is_named(tiny_yaml, tmp_path):
    pipeline = Pipeline(load(tiny_yaml, tmp_path / "run", *translation(steps=1), *SHORT))
    with pytest.raises(UserError, match=r"no translator is trained yet; run train-translator"):
        pipeline.run("warm-up")


def test_a_damaged_or_exchanged_export_is_written_again_and_not_used(
    tiny_yaml, tmp_path, file, caplog
):
    """`train-translator` writes it again; the stages after it refuse the other one."""
    options = [*translation(steps=1, width=3), *SHORT]
    pipeline = Pipeline(load(tiny_yaml, tmp_path / "run", *options))
    pipeline.run("train-translator")
    path = pipeline.context.run.translator
    content = path.read_bytes()
    for other in (content[:-4] + b"\0\0\0\1", content[:-9], file[0].read_bytes()):
        path.write_bytes(other)
        with pytest.raises(UserError, match=r"translator.safetensors: (corrupt|not )"):
            pipeline.run("warm-up")
        pipeline.run("train-translator")
        assert path.read_bytes() == content
    assert caplog.text.count("it is written again") == 2


def test_a_stage_does_not_go_on_with_another_translator(tiny_yaml, tmp_path):
    """Of the steps of a warm-up some would see one, some the other."""
    config = load(tiny_yaml, tmp_path / "run", *translation(steps=1), *SHORT)
    Pipeline(config).run("train-translator")
    with pytest.raises(Stopped):
        Pipeline(config, stop_after=1).run("warm-up")
    folder = tmp_path / "run/checkpoints/translation/step_00000001"
    groups, state = checkpoint.load(folder)
    groups["generator"] = {name: t + 1 for name, t in groups["generator"].items()}
    checkpoint.save(folder.parent, 1, groups, state, keep=1)
    Pipeline(config).run("train-translator")
    with pytest.raises(UserError, match=r"warm_up: trained with another translator \(digest"):
        Pipeline(config).run("warm-up")
