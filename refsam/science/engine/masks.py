"""The two resizings of every predicted mask as one linear map, without the tensors in between.

Segment Anything takes each mask from the decoder's 256 x 256 up to the encoder's 1024 x 1024, cuts the
padding off, and takes it to the size of the patch. Both resizings are bilinear, hence linear and separable:
one matrix from either side, rows @ mask @ columns.T, gives the same mask. For a patch of 512 x 512 this saves
the 1024 x 1024 tensor of every mask and its gradient (4 MiB each). It costs two small matrix products.
"""

from functools import lru_cache, partial

import torch
from segment_anything.modeling import Sam
from torch.nn.functional import interpolate

Size = tuple[int, ...]


def use_linear_resizing(sam: Sam) -> None:
    """Replace `sam.postprocess_masks`, in place, by the linear map."""
    sam.postprocess_masks = partial(resize_masks, sam.image_encoder.img_size)


def resize_masks(image_size: int, masks: torch.Tensor, input_size: Size, original_size: Size) -> torch.Tensor:
    """What Sam.postprocess_masks returns, to rounding.

    Args:
        image_size: side of the encoder's square input, in pixels.
        masks: (objects, masks, h, w) logits.
        input_size: (rows, columns) of the encoder's input that are image and not padding.
        original_size: (H, W) of the image.

    Returns:
        (objects, masks, H, W), in the type of `masks`, but not in less than float32: the products of autocast
        would lose digits that a resizing keeps.
    """
    masks = masks.float() if masks.dtype in (torch.float16, torch.bfloat16) else masks
    rows, columns = (
        resizing_matrix(low, image_size, int(size), int(original), masks.dtype, masks.device)
        for low, size, original in zip(masks.shape[-2:], input_size, original_size, strict=True)
    )
    with torch.autocast(masks.device.type, enabled=False):
        return rows @ masks @ columns.T


@lru_cache(maxsize=64)
def resizing_matrix(
    low: int, image_size: int, input_size: int, original_size: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """(original_size, low): one axis from `low` up to `image_size`, cut to `input_size`, to `original_size`.

    It is made by resizing the unit vectors, with the function whose place it takes.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        units = torch.eye(low, dtype=torch.float64)[None]
        up = interpolate(units, size=image_size, mode="linear", align_corners=False)
        resized = interpolate(up[..., :input_size], size=original_size, mode="linear", align_corners=False)
    return resized[0].T.to(device, dtype).contiguous()
