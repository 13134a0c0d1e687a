"""Images without labels: where they lie, and which of them are taken.

A recipe sets `data.unlabeled = unlabeled` and reads `images`, a data set with whatever annotations
there are. Any format that predet reads will do.
"""

from predet.d2 import LazyCall as L
from predet.data.sources import load_images

unlabeled = dict(
    source="datasets/unlabeled",
    split=None,
    image_root=None,
    format=None,  # detected
    folders=None,  # or only images in these: names, or a file of them (ImageNet-100)
)

images = L(load_images)(
    source="${data.unlabeled.source}",
    split="${data.unlabeled.split}",
    image_root="${data.unlabeled.image_root}",
    format="${data.unlabeled.format}",
    folders="${data.unlabeled.folders}",
)
