"""The segmentation decoder (torch-em's UNETR) in less memory: late upsampling, and checkpointing.

Its last level works on the encoder's 1024 x 1024 pixels with 64 channels, 256 MiB a tensor, so of a step that
keeps little else it takes most.

`use_late_upsampling`: every upsampling is bilinear and followed by a 1 x 1 convolution. Both are linear, one
acts on pixels and one on channels, and the weights of an interpolation sum to one, so the convolution and its
bias can come first. It saves the large input of every such convolution and three quarters of its arithmetic,
and costs nothing. On a CPU in float32 a 3 x 3 convolution that follows at once comes first as well
(late_convolution.py).

`checkpoint_decoder`: the parts of the decoder keep their input only and are computed again in the backward.
It costs a second forward of the decoder.
"""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import interpolate
from torch_em.model import UNETR
from torch_em.model.unet import Upsampler, Upsampler2d
from torch_em.model.unetr import Deconv2DBlock

from refsam.science.engine.checkpointing import checkpointed
from refsam.science.engine.late_convolution import LateConvolution


class LateUpsampler(Upsampler2d):
    """torch-em's upsampler with the same parameters, and the same result to rounding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, H, W) to (batch, fewer channels, 2 H, 2 W)."""
        return interpolate(self.conv(x), scale_factor=self.scale_factor, mode=self.mode, align_corners=False)


class LateDeconvolution(Deconv2DBlock):
    """torch-em's block of an upsampling and a 3 x 3 convolution: the same parameters and result."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, H, W) to (batch, fewer channels, 2 H, 2 W)."""
        upsampler, convolution, *rest = self.block
        kernel = convolution.block
        if convolves_late(x):
            x = LateConvolution.apply(upsampler.conv(x), kernel.weight, kernel.bias)
        else:  # there the library's convolutions have units of their own
            x = convolution(upsampler(x))
        for part in rest:
            x = part(x)
        return x


def convolves_late(x: torch.Tensor) -> bool:
    """Whether a convolution of an enlarged x is computed on the small one."""
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def use_late_upsampling(unetr: UNETR) -> None:
    """Replace every upsampling of the decoder, in place; parameters and their names stay."""
    modules = [module for part in decoder_parts(unetr) for module in part.modules()]
    for module in modules:
        if _upsamples_linearly(module):
            module.__class__ = LateUpsampler
    for module in modules:
        if isinstance(module, Deconv2DBlock) and _upsamples_linearly(module.block[0]):
            module.__class__ = LateDeconvolution


def _upsamples_linearly(module: nn.Module) -> bool:
    return isinstance(module, Upsampler) and module.mode == "bilinear" and module.scale_factor == 2


def checkpoint_decoder(unetr: UNETR) -> None:
    """Checkpoint every part of the decoder, in place; parameter names stay."""
    for part in decoder_parts(unetr):
        part.forward = partial(checkpointed, part, part.forward)


def decoder_parts(unetr: UNETR) -> list[nn.Module]:
    """What a UNETR has beside the encoder, each from one tensor to one tensor, without the output layer."""
    parts = [unetr.deconv1, unetr.deconv2, unetr.deconv3, unetr.deconv4, unetr.base]
    return [*parts, *unetr.decoder.samplers, *unetr.decoder.blocks, unetr.deconv_out, unetr.decoder_head]
