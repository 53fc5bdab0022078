"""Export of a trained translator: its file, and pictures for the report.

RUN_DIR/translator/translator.safetensors    written last; `translator.weights` of other runs
RUN_DIR/translator/panels/IMAGE/*.jpg        source, translated and back, of the first images
"""

import logging
from typing import Self

import torch

from diga_hpc.errors import UserError
from diga_hpc.loading.pictures import to_picture, write_picture
from diga_hpc.method.translators.learned import load_translator, read_metadata, save_translator
from diga_hpc.method.views import unit_range
from diga_hpc.models.translation import Generator, padded, signed, unsigned
from diga_hpc.stages.inputs import translator_digest
from diga_hpc.stages.plan import TRANSLATION, Planned, trained
from diga_hpc.stages.translation.training import GENERATOR
from diga_hpc.training.checkpoint import read_tensors
from diga_hpc.training.resume import trained_weights
from diga_hpc.training.stage import Context, DataPass

log = logging.getLogger(__name__)


class TranslatorExport(DataPass):
    """Writes what the stage `translation` has trained; every rank writes a part of the pictures."""

    def __init__(self, context: Context):
        self.context = context
        self.translation = next(s for s in trained(context.config) if s.kind == TRANSLATION)
        section = context.config.translation
        assert section is not None, "the plan has no export without it"
        self.section = section

    @classmethod
    def build(cls, context: Context, planned: Planned) -> Self:
        return cls(context)

    def is_done(self) -> bool:
        """Whether the file is there, intact, and of the checkpoint that is there."""

        def find() -> bool:
            path, made_from = self.context.run.translator, translator_digest(self.context)
            if not path.is_file():
                return False
            try:
                load_translator(path)
                return read_metadata(path).get("made_from") == made_from
            except UserError as error:
                log.warning("%s; it is written again", error)
                return False

        return self.context.world.on_rank0(find)

    def run(self) -> None:
        """Pictures, then the file."""
        context, section = self.context, self.section
        weights = trained_weights(context, self.translation.name, section.steps, GENERATOR)
        generator = Generator(section.width, section.blocks)
        generator.load_state_dict(read_tensors(weights))
        self._write_panels(generator.to(context.world.device).eval())
        # All pictures first: the file says that they are there.
        context.world.barrier()
        context.world.on_rank0(
            lambda: save_translator(
                context.run.translator,
                generator.state_dict(),
                width=section.width,
                blocks=section.blocks,
                made_from=translator_digest(context) or "",
            )
        )

    @torch.inference_mode()
    def _write_panels(self, generator: Generator) -> None:
        context = self.context
        count = min(context.config.evaluation.panels, len(context.source))
        mine = context.world.share(count)
        broken = context.broken_files()
        for sample in broken.images(context.source, list(mine)):
            if sample is None:
                continue
            height, width = sample.image.shape[-2:]
            source = unit_range(sample.image[None].to(context.world.device))
            image = padded(signed(source))
            translated = generator.target_decoder(generator.source_encoder(image))
            cycle = generator.source_decoder(generator.target_encoder(translated))
            pictures = {
                "source": source,
                "translated": unsigned(translated),
                "cycle": unsigned(cycle),
            }
            for kind, picture in pictures.items():
                pixels = (picture[0, :, :height, :width] * 255).round().to(torch.uint8)
                path = context.run.translator_panels / sample.name / f"{kind}.jpg"
                write_picture(path, to_picture(pixels))
        broken.write()
