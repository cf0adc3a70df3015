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


def quicken(model: nn.Module) -> None:
    """Give the blocks of a UNet or VAE of diffusers these forwards; blocks of another make keep their own."""
    for module in model.modules():
        if (forward := _quick_forward(module)) is not None:
            module.forward = partial(forward, module)


def is_quick(module: nn.Module) -> bool:
    """Does `quicken` give it another forward, which calls each of its parts once?"""
    return _quick_forward(module) is not None


def _quick_forward(module: nn.Module) -> Callable[..., Any] | None:
    match module:
        case Attention() if _is_plain_attention(module):
            return _attention
        case BasicTransformerBlock() if _is_plain_block(module):
            return _transformer_block
        case GEGLU():
            return _gated
        case nn.Linear() if module.weight.device.type == "cpu":
            return _linear
        case Transformer2DModel() if _is_plain_transformer(module):
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


def _is_plain_transformer(module: Transformer2DModel) -> bool:
    plain = all(is_quick(block) for block in module.transformer_blocks)
    return plain and module.is_input_continuous


def _is_plain_resnet(module: ResnetBlock2D) -> bool:
    resampled = module.upsample is not None or module.downsample is not None
    timed = module.time_emb_proj is None or module.time_embedding_norm == "default"
    plain = timed and isinstance(module.nonlinearity, nn.SiLU) and module.output_scale_factor == 1
    return plain and not resampled


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
        for attention in projections:  # others may be kept for another thread
            _kept.pop(attention, None)


def project_text(unet: nn.Module, text: torch.Tensor) -> TextProjections:
    """Keys and values of text (n, tokens, width): as long as it and the weights stay, they stay the same."""
    readers = text_readers(unet)
    outputs: dict[nn.Module, torch.Tensor] = {}
    for modules in _together([module for pair in readers.values() for module in pair]):
        outputs.update(zip(modules, project(modules, text), strict=True))
    return {attention: tuple(outputs[module] for module in pair) for attention, pair in readers.items()}


def text_readers(unet: nn.Module) -> dict[nn.Module, tuple[nn.Module, nn.Module]]:
    """Attention to the text -> what projects it to keys and to values."""
    attentions = [module for module in unet.modules() if isinstance(module, Attention) and is_quick(module)]
    return {a: (a.to_k, a.to_v) for a in attentions if a.is_cross_attention}


def _together(modules: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """In the parts that `project` computes at once."""
    seen: set[nn.Module] = set()
    for module in modules:
        if module not in seen:
            group = getattr(module, "group", None)
            part = [module] if group is None or not group.enabled else list(group.modules)
            seen.update(part)
            yield part


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
    x, update = _updated(self, hidden_states, self.norm1(hidden_states), encoder_hidden_states)
    output: torch.Tensor = x + update
    return output


def _updated(
    block: BasicTransformerBlock, x: torch.Tensor, normed: torch.Tensor, text: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """From x and its first normalisation: what a block gives, as a sum that is still to be made."""
    x, normed = add_layer_norm(block.norm2, x, block.attn1(normed))
    x, normed = add_layer_norm(block.norm3, x, block.attn2(normed, encoder_hidden_states=text))
    return x, block.ff(normed)


def _linear(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.linear; on a processor, while images are drawn, as convolutions of 1 × 1 over the tokens.

    oneDNN computes these; MKL's products, which F.linear takes, were half as fast on an AMD EPYC.
    """
    if x.is_cuda or x.ndim != 3 or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return F.conv2d(x.transpose(1, 2).unsqueeze(2), weight[..., None, None], bias)[:, :, 0].transpose(1, 2)


def _gated(self: GEGLU, hidden_states: torch.Tensor) -> torch.Tensor:
    return gated_gelu(self.proj(hidden_states))


def _transformer(
    self: Transformer2DModel, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
) -> tuple[torch.Tensor]:
    height, width = hidden_states.shape[2:]
    normed = group_norm(self.norm, hidden_states, silu=False)
    linear = self.use_linear_projection  # else a convolution of 1 × 1, as in SD 1.x
    x = self.proj_in(_tokens(normed)) if linear else _tokens(self.proj_in(normed))
    x = _chained(self, x, encoder_hidden_states)
    x = self.proj_out(x) if linear else x
    x = torch.unflatten(x, 1, (height, width)).permute(0, 3, 1, 2)
    x = x if linear else self.proj_out(x)
    return (x + hidden_states,)


def _tokens(images: torch.Tensor) -> torch.Tensor:
    """(n, channels, height, width) -> (n, height · width, channels)."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def _chained(self: Transformer2DModel, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Through all blocks; the last sum of each is one kernel with the first normalisation of the next."""
    blocks = list(self.transformer_blocks)
    normed = blocks[0].norm1(x)
    for number, block in enumerate(blocks):
        updated = partial(_updated, block)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            updated = partial(self._gradient_checkpointing_func, updated)
        x, update = updated(x, normed, text)
        if number + 1 < len(blocks):
            x, normed = add_layer_norm(blocks[number + 1].norm1, x, update)
    return x + update


def _resnet(self: ResnetBlock2D, input_tensor: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
    x, bias = _convolved(self.conv1, group_norm(self.norm1, input_tensor, silu=True))
    shift = None if self.time_emb_proj is None else self.time_emb_proj(F.silu(temb))
    if bias is not None:  # added with the shift: one pass less
        shift = bias.expand(len(x), -1) if shift is None else shift + bias
    x, bias = _convolved(self.conv2, group_norm(self.norm2, x, shift, silu=True))
    shortcut = input_tensor
    if self.conv_shortcut is not None:
        shortcut, of_shortcut = _convolved(self.conv_shortcut, input_tensor)
        biases = [each for each in (bias, of_shortcut) if each is not None]
        bias = torch.stack(biases).sum(dim=0) if biases else None
    return add(shortcut, x, bias)


def _convolved(conv: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of a plain convolution on a GPU without its bias, which is given too: adding it is another pass."""
    if type(conv) is not nn.Conv2d or conv.bias is None or not x.is_cuda:
        return conv(x), None
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation), conv.bias


# Elementwise chains and normalisations: one kernel on a GPU


def add(x: torch.Tensor, update: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Images (n, channels, …), an update of theirs, and a frozen bias (channels)."""
    if x.is_cuda and bias is not None:
        from bench import kernels  # Triton is there where CUDA is

        return kernels.add(x, update, bias)
    return x + update if bias is None else x + update + bias[:, None, None]


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
