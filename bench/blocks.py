"""The blocks of a frozen UNet, computed with fewer and larger operations than diffusers' own; same results.

Projections that read the same input are one product, elementwise chains are one kernel on a GPU, memory stays
channels-last where convolutions want it, and keys and values of a text that does not change are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn


def quicken(unet: nn.Module) -> None:
    """Give the blocks of a UNet of diffusers the forwards below; blocks of another make keep their own."""
    for module in unet.modules():
        if (forward := _quick_forward(module)) is not None:
            module.forward = partial(forward, module)


def _quick_forward(module: nn.Module) -> Callable[..., Any] | None:
    match module:
        case Attention() if _is_plain_attention(module):
            return _attention
        case BasicTransformerBlock() if _is_plain_block(module):
            return _transformer_block
        case GEGLU():
            return _gated
        case Transformer2DModel() if module.is_input_continuous:
            return _transformer
        case ResnetBlock2D() if _is_plain_resnet(module):
            return _resnet
        case _:
            return None


def _is_plain_attention(module: Attention) -> bool:
    extras = (module.spatial_norm, module.group_norm, module.norm_q, module.norm_k, module.norm_cross)
    return not any(extras) and module.rescale_output_factor == 1 and not module.residual_connection


def _is_plain_block(module: BasicTransformerBlock) -> bool:
    plain = module.norm_type == "layer_norm" and module.pos_embed is None
    return plain and module.attn2 is not None and not module.only_cross_attention


def _is_plain_resnet(module: ResnetBlock2D) -> bool:
    resampled = module.upsample is not None or module.downsample is not None
    plain = module.time_embedding_norm == "default" and isinstance(module.nonlinearity, nn.SiLU)
    return plain and not resampled and module.time_emb_proj is not None and module.output_scale_factor == 1


# Attention


TextProjections = dict[nn.Module, tuple[torch.Tensor, ...]]
"""Keys and values of each attention to the text."""
_kept: TextProjections = {}


@contextmanager
def keep_text(projections: TextProjections) -> Iterator[None]:
    """Within it these keys and values are taken instead of the text's."""
    _kept.update(projections)
    try:
        yield
    finally:
        _kept.clear()


def project_text(unet: nn.Module, text: torch.Tensor) -> TextProjections:
    """Keys and values of text (n, tokens, width): as long as it and the weights stay, they stay the same."""
    attentions = [m for m in unet.modules() if isinstance(m, Attention) and _quick_forward(m)]
    return {a: project((a.to_k, a.to_v), text) for a in attentions if a.is_cross_attention}


def _attention(
    self: Attention,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    if encoder_hidden_states is None:
        parts = project((self.to_q, self.to_k, self.to_v), hidden_states)
    else:
        kept = _kept.get(self) or project((self.to_k, self.to_v), encoder_hidden_states)
        parts = (self.to_q(hidden_states), *kept)
    query, key, value = (torch.unflatten(part, -1, (self.heads, -1)).transpose(1, 2) for part in parts)
    mixed = F.scaled_dot_product_attention(query, key, value)
    output: torch.Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
    return output


def project(modules: Sequence[nn.Module], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each module's output for the same input; in one product where adapters of them lie together."""
    together: Callable[..., tuple[torch.Tensor, ...] | None] | None = getattr(modules[0], "together", None)
    outputs = together(modules, x) if together else None
    return outputs if outputs is not None else tuple(module(x) for module in modules)


# Blocks


def _transformer_block(
    self: BasicTransformerBlock, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
) -> torch.Tensor:
    x = hidden_states
    update = self.attn1(self.norm1(x))
    x, normed = add_layer_norm(self.norm2, x, update)
    update = self.attn2(normed, encoder_hidden_states=encoder_hidden_states)
    x, normed = add_layer_norm(self.norm3, x, update)
    output: torch.Tensor = x + self.ff(normed)
    return output


def _gated(self: GEGLU, hidden_states: torch.Tensor) -> torch.Tensor:
    return gated_gelu(self.proj(hidden_states))


def _transformer(
    self: Transformer2DModel, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
) -> tuple[torch.Tensor]:
    height, width = hidden_states.shape[2:]
    normed = group_norm(self.norm, hidden_states, silu=False)
    linear = self.use_linear_projection  # else a convolution of 1 × 1, as in SD 1.x
    x = self.proj_in(_tokens(normed)) if linear else _tokens(self.proj_in(normed))
    for block in self.transformer_blocks:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            x = self._gradient_checkpointing_func(block, x, encoder_hidden_states)
        else:
            x = block(x, encoder_hidden_states=encoder_hidden_states)
    x = self.proj_out(x) if linear else x
    x = torch.unflatten(x, 1, (height, width)).permute(0, 3, 1, 2)
    x = x if linear else self.proj_out(x)
    return (x + hidden_states,)


def _tokens(images: torch.Tensor) -> torch.Tensor:
    """(n, channels, height, width) -> (n, height · width, channels)."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def _resnet(self: ResnetBlock2D, input_tensor: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
    x = group_norm(self.norm1, input_tensor, silu=True)
    shift = self.time_emb_proj(F.silu(temb))
    conv1 = self.conv1
    if type(conv1) is nn.Conv2d and conv1.bias is not None:  # added with the rest: one pass less
        x = F.conv2d(x, conv1.weight, None, conv1.stride, conv1.padding)
        shift = shift + conv1.bias
    else:
        x = conv1(x)
    x = self.conv2(group_norm(self.norm2, x, shift, silu=True))
    shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
    output: torch.Tensor = shortcut + x
    return output


# Elementwise chains and normalisations: one kernel on a GPU


def gated_gelu(x: torch.Tensor) -> torch.Tensor:
    """GEGLU's gate (Shazeer 2020, arXiv 2002.05202): (…, 2d) -> (…, d)."""
    if x.is_cuda:
        from bench import kernels  # Triton is there where CUDA is

        return kernels.gated_gelu(x)
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def add_layer_norm(
    norm: nn.LayerNorm, x: torch.Tensor, update: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A residual sum, and its layer normalisation."""
    if x.is_cuda:
        from bench import kernels  # Triton is there where CUDA is

        return kernels.add_layer_norm(x, update, norm.weight, norm.bias, norm.eps)
    total = x + update
    return total, F.layer_norm(total, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def group_norm(
    norm: nn.GroupNorm, x: torch.Tensor, shift: torch.Tensor | None = None, *, silu: bool
) -> torch.Tensor:
    """A group normalisation of images (n, channels, …) plus a shift (n, channels); then SiLU if wanted."""
    if x.is_cuda:
        from bench import kernels  # Triton is there where CUDA is

        return kernels.group_norm(x, shift, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=silu)
    x = x if shift is None else x + shift[:, :, None, None]
    y = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(y) if silu else y
