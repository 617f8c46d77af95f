"""The index of a data set: how it is made, saved, shared by runs and workers, and compared with the files."""
