"""Image files: decode photographs and label files into arrays. Loads no torch.

pixels.py     a photograph as RGB, upright, 8 bits a channel
labels.py     the values of a label file, exactly as they were written
"""
