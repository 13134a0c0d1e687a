"""Data: datasets and their formats, augmentation, loaders, generated scenes, box stores."""
