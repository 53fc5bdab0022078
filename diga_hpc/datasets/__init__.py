"""Data sets, one per file: its section of the configuration, its files and its ids.

    DATASETS      kind -> section class; `data.source.kind` and its siblings are checked against it
    SPACES        label spaces by name, see label_spaces.py

To add one, write a subclass of `base.FileDataset` (or of its siblings) in a file of its own, in
synthetic/ or real/, and list it here. A data set outside the package registers itself with
`DATASETS["kind"] = Section` in a module that the configuration names under `extensions`. Nothing in
this package imports torch.
"""

from diga_hpc.datasets.base import DatasetSection
from diga_hpc.datasets.folder import Folder
from diga_hpc.datasets.real.acdc import Acdc
from diga_hpc.datasets.real.bdd100k import Bdd100k
from diga_hpc.datasets.real.camvid import Camvid
from diga_hpc.datasets.real.cityscapes import Cityscapes
from diga_hpc.datasets.real.dark_zurich import DarkZurich
from diga_hpc.datasets.real.foggy_cityscapes import FoggyCityscapes
from diga_hpc.datasets.real.idd import Idd
from diga_hpc.datasets.real.mapillary import Mapillary
from diga_hpc.datasets.real.wilddash import Wilddash
from diga_hpc.datasets.streets import Streets
from diga_hpc.datasets.synthetic.gta5 import Gta5
from diga_hpc.datasets.synthetic.synscapes import Synscapes
from diga_hpc.datasets.synthetic.synthia import Synthia
from diga_hpc.datasets.synthetic.urbansyn import Urbansyn
from diga_hpc.datasets.voc import Voc

DATASETS: dict[str, type[DatasetSection]] = {
    "streets": Streets,
    "camvid": Camvid,
    "gta5": Gta5,
    "cityscapes": Cityscapes,
    "folder": Folder,
    "synthia": Synthia,
    "urbansyn": Urbansyn,
    "synscapes": Synscapes,
    "bdd100k": Bdd100k,
    "mapillary": Mapillary,
    "acdc": Acdc,
    "dark_zurich": DarkZurich,
    "foggy_cityscapes": FoggyCityscapes,
    "idd": Idd,
    "wilddash": Wilddash,
    "voc": Voc,
}
