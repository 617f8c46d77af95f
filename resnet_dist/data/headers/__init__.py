"""The headers of image files: size, kind and orientation, and whether a file is whole."""
