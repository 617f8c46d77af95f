"""From a folder of images to micro-batches: index, order, crops, decoding."""
