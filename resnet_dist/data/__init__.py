"""From a folder of images to micro-batches.

sources, listing, image_folder   what the samples are: names, labels, places
build_index, image_headers       listing -> index: sizes and kinds, from the headers of all images
jpeg_headers, png_headers        the headers of these formats; pillow opens the others
index, columns                   the index, and its file
made_index, shared_index         finds or makes the index, for runs and for workers together; index_* are its parts
subset                           index -> a part of it
order, crops, random_bits        position in the stream -> sample, window, flip, random numbers
storage, files, requests         where a data set is; the bytes of an encoded image; the interface of decoders
jpeg_data                        whether a JPEG is complete, which decides what decodes it
decode_cpu, decode_dali          encoded images -> pixels; decode_regions is a part of decode_cpu
augmentation, policies           pixels of training images -> other pixels
erasing, mixing                  the same for normalised images and their labels, on the device
loader                           micro-batches of one worker

Only the modules of the last four lines need torch, so the names below can be imported without it.
"""

from resnet_dist.data.index import Index, check_labels, check_same_classes, compare_classes, is_current
from resnet_dist.data.order import Stream
from resnet_dist.data.requests import BatchRequest, Decoder
from resnet_dist.data.sources import index_image_folder, index_of

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
