"""What the samples of a data set are: their names, labels and places, for each `data.source`; and parts of it."""
