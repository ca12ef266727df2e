from .generator import ResnetGenerator as ResnetGenerator
from .patchgan import PatchDiscriminator as PatchDiscriminator
from .unet import ResidualUNet2d as ResidualUNet2d
