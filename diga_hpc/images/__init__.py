"""Image files: decode photographs and label files into arrays. Loads no torch.

archives.py   files in zip archives, read without unpacking
members.py    a file in an archive: inflated as far as it is read, checked
opening.py    formats, limits, EXIF orientation, sizes from the header
channels.py   channels of more than 8 bits
pixels.py     a photograph as RGB, upright, 8 bits a channel
labels.py     the values of a label file, exactly as they were written
"""
