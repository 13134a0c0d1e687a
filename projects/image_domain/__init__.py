"""Image-domain pre-training: the backbone alone, on one's own images without labels."""

from predet.projects.image_domain.contrast import DenseContrast
from predet.projects.image_domain.modeling import ImageDomain

__all__ = ["DenseContrast", "ImageDomain"]
