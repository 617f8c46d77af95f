"""The data plane: everything that one training process does, on torch and torchvision alone."""
