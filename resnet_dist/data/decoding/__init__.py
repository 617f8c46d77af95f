"""From encoded images to pixels: the requests, and the decoders that answer them."""
