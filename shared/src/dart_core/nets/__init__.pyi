from .backbones import Conversion as Conversion
from .backbones import create_backbone as create_backbone
from .backbones import load_backbone_weights as load_backbone_weights
from .generator import ResnetGenerator as ResnetGenerator
from .nnunet import GenericUNet as GenericUNet
from .patchgan import PatchDiscriminator as PatchDiscriminator
from .unet import ResidualUNet2d as ResidualUNet2d
