"""PASCAL VOC as the papers on pre-training use it: trainval of 2007 and 2012, test of 2007.

Unpack VOC2007 and VOC2012 into one folder (no names collide) and join the lists of both years:

    cat VOC2007/ImageSets/Main/trainval.txt VOC2012/ImageSets/Main/trainval.txt \\
        > datasets/voc0712/ImageSets/Main/trainval.txt
    cp VOC2007/ImageSets/Main/test.txt datasets/voc0712/ImageSets/Main/

16_551 images to train on, 4_952 to test, 20 classes. Objects marked difficult are trained on. AP is
COCO's, not VOC's own.
"""

from .data import data, dataloader

data.train.source = data.test.source = "datasets/voc0712"
data.train.split, data.test.split = "trainval", "test"
