"""`launcher export`: a trained model as a file for another program, checked there before it gets its name.

formats         the formats, what each needs, and which networks it takes; no torch
description     what is known about the model: classes, input, accuracy, recipe, environment
state_dicts     torchvision, timm, safetensors
programs        torch.export, onnx
comparison      the outputs of the exported model and of ours, on random and on val images
loading_code    the lines of Python that load a file and prepare an image
model_card      the page beside a file
exporting       all of it together
"""
