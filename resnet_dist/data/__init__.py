"""From a folder of images to micro-batches.

sources, subset                  recipe -> index
image_folder, image_headers      folders -> index
order, crops, random_bits        position in the stream -> sample, window, flip, random numbers
requests                         the interface of decoders
decode_torchvision, decode_dali  files -> pixels
augmentation, policies           pixels of training images -> other pixels
erasing, mixing                  the same for normalised images and their labels, on the device
loader                           micro-batches of one worker

Only the modules of the last four lines need torch, so the names below can be imported without it.
"""

from resnet_dist.data.image_folder import index_image_folder
from resnet_dist.data.index import Index, check_labels, check_same_classes, compare_classes, is_current
from resnet_dist.data.order import Stream
from resnet_dist.data.requests import BatchRequest, Decoder
from resnet_dist.data.sources import index_of

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
