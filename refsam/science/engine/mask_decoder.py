"""Segment Anything's mask decoder with fewer and smaller tensors for every object, and the same masks.

An object's few tokens (5, and those of its prompts) attend to 4096 positions of the image and these to them.
What is computed for every position is most of the decoder's work, and is written here another way:

- A projection and what follows it are both linear, so the projection can go to the side of the tokens: the
  score of token q and position x is (W_q q) . (W_k x) = (W_k^T W_q q) . x, and a weighted sum of W_v x is W_v
  times the weighted sum of x. Neither keys, queries nor values of the positions are ever made, nor split into
  heads. The biases of the keys add the same to all scores of a softmax, which leaves it as it is.
- Scores have the positions in their last dimension, so that a softmax over a dozen tokens runs along memory.
- Both enlargements are 2 x 2 convolutions with stride 2: products, position by position. They, the
  normalization between them and the activations run over channels that lie together, and only the masks are
  put into rows and columns.
- Only the masks that are asked for are computed: one, or three of the four.

It saves nearly half of the time of an object, and costs nothing.
"""

from typing import Any

import mobile_sam.modeling
import segment_anything.modeling
import torch
from segment_anything.modeling import Sam
from torch import nn
from torch.nn.functional import layer_norm, linear


class _Lean:
    """The forward of a MaskDecoder, of which the modules and parameters stay."""

    def forward(
        self: Any,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks and their expected quality, as segment_anything's.

        Args:
            image_embeddings: (1, channels, rows, columns).
            image_pe: (1, channels, rows, columns), the positional encoding.
            sparse_prompt_embeddings: (objects, tokens, channels), of points and boxes.
            dense_prompt_embeddings: (objects, channels, rows, columns), of masks.
            multimask_output: whether there are three masks for each object, or one.

        Returns:
            (objects, masks, 4 rows, 4 columns) logits; (objects, masks) predicted IoU.
        """
        objects = len(sparse_prompt_embeddings)
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([learned.expand(objects, -1, -1), sparse_prompt_embeddings], dim=1)
        image = _positions(image_embeddings) + _positions(dense_prompt_embeddings)
        tokens, image = _two_way(self.transformer, tokens, image, _positions(image_pe))
        wanted = slice(1, None) if multimask_output else slice(0, 1)
        # All of them, and the choice afterwards: a gradient of zero moves Adam's parameters, none does not.
        kernels = torch.stack(
            [mlp(tokens[:, 1 + index]) for index, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        masks = _masks(self.output_upscaling, image, kernels[:, wanted], image_pe.shape[-2:])
        return masks, self.iou_prediction_head(tokens[:, 0])[:, wanted]


class LeanMaskDecoder(_Lean, segment_anything.modeling.MaskDecoder):
    """segment_anything's."""


class LeanMobileMaskDecoder(_Lean, mobile_sam.modeling.MaskDecoder):
    """mobile_sam's, of vit_t."""


LEAN = {
    segment_anything.modeling.MaskDecoder: LeanMaskDecoder,
    mobile_sam.modeling.MaskDecoder: LeanMobileMaskDecoder,
}
# Where the classes of layers come from into which nobody has put anything else.
ORIGINS = {"torch", "segment_anything", "mobile_sam"}


def use_lean_mask_decoder(sam: Sam) -> bool:
    """Replace the forward of the mask decoder, in place; parameters and their names stay.

    False where it is left as it is: another architecture, or one with adapters in the layers whose weights
    are used here by themselves.
    """
    decoder = sam.mask_decoder
    if type(decoder) not in LEAN:
        return False
    attentions = [decoder.transformer.final_attn_token_to_image]
    for layer in decoder.transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    layers = [layer for part in (*attentions, decoder.output_upscaling) for layer in part.modules()]
    if any(type(layer).__module__.split(".")[0] not in ORIGINS for layer in layers):
        return False
    decoder.__class__ = LEAN[type(decoder)]
    return True


def _positions(maps: torch.Tensor) -> torch.Tensor:
    """(n, channels, rows, columns) as (n, positions, channels); as (n, 1, channels) where all are alike."""
    if maps.stride(2) == maps.stride(3) == 0:
        return maps[:, None, :, 0, 0]
    return maps.flatten(2).transpose(1, 2).contiguous()


def _two_way(
    transformer: Any, tokens: torch.Tensor, image: torch.Tensor, encoding: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """segment_anything's TwoWayTransformer.

    Args:
        tokens: (objects, tokens, channels).
        image: (objects, positions, channels).
        encoding: (1, positions, channels), the positional encoding.

    Returns:
        The attended tokens and image, in the shapes of the given ones.
    """
    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + tokens
            queries = queries + layer.self_attn(q=q, k=q, v=queries)
        queries = layer.norm1(queries)
        encoded = image + encoding
        queries = layer.norm2(
            queries + _from_image(layer.cross_attn_token_to_image, queries + tokens, encoded, image)
        )
        queries = layer.norm3(queries + layer.mlp(queries))
        image = layer.norm4(
            _add_from_tokens(layer.cross_attn_image_to_token, image, encoded, queries + tokens, queries)
        )
    attention = transformer.final_attn_token_to_image
    queries = queries + _from_image(attention, queries + tokens, image + encoding, image)
    return transformer.norm_final_attn(queries), image


def _from_image(
    attention: Any, tokens: torch.Tensor, encoded: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """What tokens see in the image: an Attention whose queries are tokens, keys and values positions.

    Args:
        tokens: (objects, tokens, channels).
        encoded: (objects, positions, channels), the keys before their projection.
        image: (objects, positions, channels), the values before theirs.

    Returns:
        (objects, tokens, channels).
    """
    queries = _scaled_heads(attention, attention.q_proj(tokens))
    scores = _folded(queries, attention.k_proj) @ encoded.transpose(1, 2)
    seen = scores.softmax(dim=-1) @ image
    heads = attention.num_heads
    # (objects, heads, tokens, channels) times (heads, channels, channels of a head)
    weight = attention.v_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2)
    values = (seen.unflatten(1, (heads, -1)) @ weight).transpose(1, 2).flatten(2) + attention.v_proj.bias
    return _with_unused(attention.out_proj(values), attention.k_proj.bias)


def _add_from_tokens(
    attention: Any, image: torch.Tensor, encoded: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """The image and what it sees in the tokens: an Attention whose queries are positions.

    Args:
        image: (objects, positions, channels).
        encoded: (objects, positions, channels), the queries before their projection.
        keys: (objects, tokens, channels), before their projection.
        values: (objects, tokens, channels), before theirs.

    Returns:
        (objects, positions, channels).
    """
    heads = attention.num_heads
    keys = _scaled_heads(attention, linear(keys, attention.k_proj.weight))
    # A query's bias adds to the scores of each token, the same at all positions.
    bias = (keys * attention.q_proj.bias.view(heads, 1, -1)).sum(dim=-1)
    scores = _folded(keys, attention.q_proj) @ encoded.transpose(1, 2)
    scores = scores.unflatten(1, (heads, -1)) + bias[..., None]
    shares = scores.softmax(dim=2).flatten(1, 2)
    values = attention.v_proj(values).unflatten(-1, (heads, -1)).transpose(1, 2)
    weight = attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
    # The shares of each head sum to one: each of its values may have a part of the bias.
    values = values @ weight + _with_unused(attention.out_proj.bias / heads, attention.k_proj.bias)
    # A sum of its own: the image keeps its precision where autocast computes products in less.
    return image + shares.transpose(1, 2) @ values.flatten(1, 2)


def _scaled_heads(attention: Any, projected: torch.Tensor) -> torch.Tensor:
    """(objects, tokens, channels) as (objects, heads, tokens, channels of a head), scaled for a softmax."""
    split = projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    return split * split.shape[-1] ** -0.5


def _folded(heads: torch.Tensor, projection: nn.Linear) -> torch.Tensor:
    """(objects, heads, tokens, a head's channels) by a projection: (objects, heads * tokens, channels)."""
    return (heads @ projection.weight.unflatten(0, (heads.shape[1], -1))).flatten(1, 2)


def _with_unused(tensor: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The tensor; the gradient of the bias is zero, as it is where it changes nothing, and not missing."""
    return tensor + 0 * bias.sum()


def _masks(upscaling: Any, image: torch.Tensor, kernels: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The image, enlarged twice, times each mask's kernel.

    Args:
        image: (objects, positions, channels).
        kernels: (objects, masks, channels after both enlargements).
        shape: rows and columns of the positions.

    Returns:
        (objects, masks, 4 rows, 4 columns).
    """
    first, norm, activation, second, last_activation = upscaling
    objects, masks = kernels.shape[:2]
    # In the parameters' precision where autocast computes products in less: the gradients of the
    # normalization are sums over all positions, which on a CPU are summed in the precision of its input.
    enlarged = _enlarged(first, image).unflatten(-1, (4, -1)).to(norm.weight.dtype)
    enlarged = activation(layer_norm(enlarged, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    enlarged = last_activation(_enlarged(second, enlarged)).reshape(objects, -1, kernels.shape[-1])
    rows, columns = shape
    return (
        (kernels @ enlarged.transpose(1, 2))
        .view(objects, masks, rows, columns, 2, 2, 2, 2)
        .permute(0, 1, 2, 4, 6, 3, 5, 7)
        .reshape(objects, masks, 4 * rows, 4 * columns)
    )


def _enlarged(convolution: nn.ConvTranspose2d, x: torch.Tensor) -> torch.Tensor:
    """(…, channels) to (…, 2 * 2 * fewer channels)."""
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    bias = None if convolution.bias is None else convolution.bias.repeat(4)
    return linear(x, weight.T, bias)
