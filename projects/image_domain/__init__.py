"""Image-domain pre-training: the backbone alone, on one's own images without labels."""

from predet.projects.image_domain.contrast import DenseContrast
from predet.projects.image_domain.modeling import ImageDomain
from predet.projects.image_domain.swav import SwAV

__all__ = ["DenseContrast", "ImageDomain", "SwAV"]
