"""From a folder of images to micro-batches.

sources                 what the samples are: names, labels, places; parts of a data set
headers                 sizes and kinds of images, from their headers
index                   the table of samples: how it is made, saved, shared and compared with the files
storage                 the bytes of images, on file systems and in object stores
order, crops            position in the stream -> sample, window, flip; from random_bits
ledger                  which samples have been consumed
decoding                encoded images -> pixels
augmentation, policies  pixels of training images -> other pixels
erasing, mixing         the same for normalised images and their labels, on the device
loader                  micro-batches of one worker

Only the last four lines need torch, so the names below can be imported without it.
"""

from resnet_dist.data.decoding.requests import BatchRequest, Decoder
from resnet_dist.data.index.changes import is_current
from resnet_dist.data.index.table import Index, check_labels, check_same_classes, compare_classes
from resnet_dist.data.order import Stream
from resnet_dist.data.sources.by_name import index_image_folder, index_of

__all__ = [
    "BatchRequest",
    "Decoder",
    "Index",
    "Stream",
    "check_labels",
    "check_same_classes",
    "compare_classes",
    "index_image_folder",
    "index_of",
    "is_current",
]
