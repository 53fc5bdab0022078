"""Tables of choices: every name in them can be chosen and imported."""

import pytest

from diga_hpc import config as configuration
from diga_hpc.config.choices import LEARNED, SAMPLERS, TRANSLATORS
from diga_hpc.models import MODELS
from diga_hpc.section import load_choice

TABLES = {"model.name": MODELS, "translator.kind": TRANSLATORS, "data.sampler": SAMPLERS}
CHOICES = [(key, name) for key, table in TABLES.items() for name in table]


@pytest.mark.parametrize(("key", "name"), CHOICES)
def test_a_name_is_accepted_and_its_implementation_is_there(tiny_yaml, key, name):
    # The one translator that needs to know where it comes from.
    needed = ["translator.weights=translator.safetensors"] if name == LEARNED else []
    config = configuration.load(tiny_yaml, [f"{key}={name}", *needed])
    assert configuration.flat(config)[key] == name
    assert isinstance(load_choice(TABLES[key], name), type)
