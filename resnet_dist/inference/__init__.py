"""Trained models: the model of a checkpoint, evaluated on a data set or called on images.

trained      the model of a checkpoint
images       the images of an evaluation, with the labels of the model
predictions  what the model says about each image, and the evaluation
statistics   classes, confusions, calibration and mistakes, from the predictions
"""

from resnet_dist.inference.trained import TrainedModel, Weights, trained_model

__all__ = ["TrainedModel", "Weights", "trained_model"]
