"""Inspection: look at every file of the data sets before a number depends on it. Loads no torch.

    data set -> Entries -> facts of each file -> Scan -> findings          the data flow
    opening.py       the data sets of a configuration
    entries.py       what a data set offers to look at
    facts.py         size, bytes, digest and label ids of one image and its label
    scan.py          facts of a whole data set: on all cores, kept in a cache
    cache.py         the cache: a file is read again only when it has changed
    findings.py      what the facts mean: errors and warnings
    identity.py      fingerprints: what is kept is tied to the data that it was made from
    start.py         all of it at the start of a run, on all ranks

`diga-hpc check` shows all of it (results/check.py); every start of a run does the same without
decoding images, and refuses what would make a number wrong.
"""
