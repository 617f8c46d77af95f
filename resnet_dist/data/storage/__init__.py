"""The bytes of a data set, on file systems and in object stores."""
