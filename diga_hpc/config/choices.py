"""Tables of names that a configuration may choose from: translators and samplers.

Values are `module:attribute`, imported when they are built, so that loading a configuration does
not import torch. Data sets, label spaces and networks have tables of their own:
`datasets.DATASETS`, `datasets.label_spaces.SPACES` and `models.MODELS`. An extension adds an entry
to any of them.
"""

LEARNED = "learned"  # the translator that the stage `translation` trains
TRANSLATORS = {
    "none": "diga_hpc.method.translators.none:Identity",
    "color": "diga_hpc.method.translators.color:ColorStatistics",
    "fourier": "diga_hpc.method.translators.fourier:LowFrequencies",
    LEARNED: "diga_hpc.method.translators.learned:Learned",
}
SAMPLERS = {"shuffled": "diga_hpc.loading.sampling:Shuffled"}
