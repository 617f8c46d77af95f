"""From a folder of images to micro-batches: index, order, crops, decoding.

sources   recipe -> Index           image_folder, image_headers    folders -> Index, checked
order     position -> sample        crops    position -> window, flip        random_bits    position -> numbers
requests  what is asked of a decoder      decode_torchvision, decode_dali    files -> pixels
loader    all of it together: micro-batches for one worker
"""

from resnet_dist.data.image_folder import index_image_folder
from resnet_dist.data.index import Index, check_labels, check_same_classes, is_current
from resnet_dist.data.loader import HostBatch, decoder_for, evaluation_batches, normalise, training_batches
from resnet_dist.data.order import Stream
from resnet_dist.data.requests import Decoder, Request
from resnet_dist.data.sources import index_of

__all__ = [
    "Decoder",
    "HostBatch",
    "Index",
    "Request",
    "Stream",
    "check_labels",
    "check_same_classes",
    "decoder_for",
    "evaluation_batches",
    "index_image_folder",
    "index_of",
    "is_current",
    "normalise",
    "training_batches",
]
