"""Elementwise chains and normalisations as single Triton kernels: on a GPU they are bound by memory.

Each one gives, but for rounding, what its plain counterpart in `bench.blocks` or `trainers.optimizer`
gives; `keep` draws masks of its own. Images are (n, channels, height, width) in channels-last memory.
Arithmetic is in float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 1024
PIXELS, CHANNELS = 64, 64
"""Of one tile of an image."""


def _blocks(number: int, size: int) -> int:
    return -(-number // size)


# GEGLU's gate


@triton.jit
def _gated_gelu(x, y, width, block: tl.constexpr):
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = place < width
    value = tl.load(x + row * 2 * width + place, inside).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + place, inside).to(tl.float32)
    gelu = gate * 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + row * width + place, value * gelu, inside)


@triton.jit
def _gated_gelu_backward(x, of_y, of_x, width, block: tl.constexpr):
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = place < width
    value = tl.load(x + row * 2 * width + place, inside).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + place, inside).to(tl.float32)
    gradient = tl.load(of_y + row * width + place, inside).to(tl.float32)
    below = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(of_x + row * 2 * width + place, gradient * gate * below, inside)
    tl.store(of_x + row * 2 * width + width + place, gradient * value * (below + gate * density), inside)


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        width = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], width)
        _gated_gelu[(x.numel() // (2 * width), _blocks(width, BLOCK))](x, y, width, block=BLOCK)
        return y

    @staticmethod
    def backward(ctx: Any, of_y: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        of_x, of_y, width = torch.empty_like(x), of_y.contiguous(), x.shape[-1] // 2
        grid = (x.numel() // (2 * width), _blocks(width, BLOCK))
        _gated_gelu_backward[grid](x, of_y, of_x, width, block=BLOCK)
        return of_x


def gated_gelu(x: torch.Tensor) -> torch.Tensor:
    """(…, 2d) -> (…, d)."""
    y: torch.Tensor = _GatedGelu.apply(x)
    return y


# Residual sum and layer normalisation


@triton.jit
def _add_layer_norm(x, update, weight, bias, total, y, means, scales, width, eps, block: tl.constexpr):
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    inside = place < width
    summed = tl.load(x + row * width + place, inside, 0).to(tl.float32)
    summed += tl.load(update + row * width + place, inside, 0).to(tl.float32)
    summed = summed.to(total.dtype.element_ty)
    tl.store(total + row * width + place, summed, inside)
    value = summed.to(tl.float32)
    mean = tl.sum(value) / width
    centred = tl.where(inside, value - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred) / width + eps)
    w = tl.load(weight + place, inside, 0).to(tl.float32)
    b = tl.load(bias + place, inside, 0).to(tl.float32)
    tl.store(y + row * width + place, centred * scale * w + b, inside)
    tl.store(means + row, mean)
    tl.store(scales + row, scale)


@triton.jit
def _add_layer_norm_backward(total, weight, means, scales, of_total, of_y, of_x, width, block: tl.constexpr):
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    inside = place < width
    scale = tl.load(scales + row)
    value = tl.load(total + row * width + place, inside, 0).to(tl.float32)
    normed = tl.where(inside, (value - tl.load(means + row)) * scale, 0.0)
    gradient = tl.load(of_y + row * width + place, inside, 0).to(tl.float32)
    gradient *= tl.load(weight + place, inside, 0).to(tl.float32)
    along = tl.sum(gradient * normed) / width
    result = (gradient - tl.sum(gradient) / width - normed * along) * scale
    result += tl.load(of_total + row * width + place, inside, 0).to(tl.float32)
    tl.store(of_x + row * width + place, result, inside)


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, update = x.contiguous(), update.contiguous()
        total, y, width = torch.empty_like(x), torch.empty_like(x), x.shape[-1]
        rows = x.numel() // width
        means, scales = x.new_empty(2, rows, dtype=torch.float32)
        block = triton.next_power_of_2(width)
        _add_layer_norm[(rows,)](x, update, weight, bias, total, y, means, scales, width, eps, block=block)
        ctx.save_for_backward(total, weight, means, scales)
        return total, y

    @staticmethod
    def backward(ctx: Any, of_total: torch.Tensor, of_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total, weight, means, scales = ctx.saved_tensors
        of_x, width = torch.empty_like(total), total.shape[-1]
        inputs = total, weight, means, scales, of_total.contiguous(), of_y.contiguous(), of_x, width
        block = triton.next_power_of_2(width)
        _add_layer_norm_backward[(total.numel() // width,)](*inputs, block=block)
        return of_x, of_x, None, None, None


def add_layer_norm(
    x: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + update (…, d), and its normalisation; weight and bias are frozen."""
    total, y = _AddLayerNorm.apply(x, update, weight, bias, eps)
    return total, y


# Group normalisation, with SiLU or without


@triton.jit
def _tile(height, channels, pixels: tl.constexpr, width: tl.constexpr):
    """Offsets of a tile of one image, its channels, and which of it lies inside."""
    pixel = tl.program_id(1) * pixels + tl.arange(0, pixels)
    channel = tl.program_id(2) * width + tl.arange(0, width)
    inside = (pixel[:, None] < height) & (channel[None, :] < channels)
    start = tl.program_id(0).to(tl.int64) * height * channels
    return start + pixel[:, None] * channels + channel[None, :], channel, inside


@triton.jit
def _store_sums(sums, first, second, channels, channel):
    """Two sums over the pixels of a tile, to (n, blocks, 2, channels)."""
    row = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(sums + row * channels + channel, tl.sum(first, 0), channel < channels)
    tl.store(sums + (row + 1) * channels + channel, tl.sum(second, 0), channel < channels)


@triton.jit
def _shifted(x, shift, offsets, channel, inside, channels):
    """A tile of x plus the shift of each channel of its image."""
    added = tl.load(shift + tl.program_id(0) * channels + channel, channel < channels, 0).to(tl.float32)
    return tl.where(inside, tl.load(x + offsets, inside, 0).to(tl.float32) + added[None, :], 0.0)


@triton.jit
def _moments(x, shift, sums, size, channels, pixels: tl.constexpr, width: tl.constexpr):
    offsets, channel, inside = _tile(size, channels, pixels, width)
    value = _shifted(x, shift, offsets, channel, inside, channels)
    _store_sums(sums, value, value * value, channels, channel)


@triton.jit
def _of_groups(
    sums, results, blocks, size, channels, groups, eps, moments: tl.constexpr, width: tl.constexpr
):
    """Sums of tiles -> of each image and group: mean and 1 / deviation of x, or means of two gradients."""
    image, group = tl.program_id(0), tl.program_id(1)
    members = channels // groups
    place = tl.arange(0, width)
    first, second = tl.zeros((width,), tl.float32), tl.zeros((width,), tl.float32)
    for start in range(0, blocks * members, width):
        index = start + place
        inside = index < blocks * members
        row = (image * blocks + index // members) * 2
        column = group * members + index % members
        first += tl.load(sums + row * channels + column, inside, 0)
        second += tl.load(sums + (row + 1) * channels + column, inside, 0)
    count = size * members
    a, b = tl.sum(first) / count, tl.sum(second) / count
    if moments:
        b = 1 / tl.sqrt(tl.maximum(b - a * a, 0.0) + eps)
    tl.store(results + (image * groups + group) * 2, a)
    tl.store(results + (image * groups + group) * 2 + 1, b)


@triton.jit
def _normed(x, shift, moments, weight, bias, offsets, channel, inside, channels, groups):
    """Normalised values, the same with weight and bias, the weight, and 1 / deviation."""
    kept = channel < channels
    group = tl.program_id(0) * groups + channel // (channels // groups)
    mean = tl.load(moments + group * 2, kept, 0)[None, :]
    scale = tl.load(moments + group * 2 + 1, kept, 0)[None, :]
    w = tl.load(weight + channel, kept, 0).to(tl.float32)[None, :]
    b = tl.load(bias + channel, kept, 0).to(tl.float32)[None, :]
    normed = (_shifted(x, shift, offsets, channel, inside, channels) - mean) * scale
    return normed, normed * w + b, w, scale


@triton.jit
def _group_norm(
    x, shift, moments, weight, bias, y, size, channels, groups,
    silu: tl.constexpr, pixels: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    offsets, channel, inside = _tile(size, channels, pixels, width)
    _, value, _, _ = _normed(x, shift, moments, weight, bias, offsets, channel, inside, channels, groups)
    if silu:
        value = value / (1 + tl.exp(-value))
    tl.store(y + offsets, value, inside)


@triton.jit
def _through_silu(value, gradient, silu: tl.constexpr):
    if silu:
        gate = 1 / (1 + tl.exp(-value))
        gradient = gradient * gate * (1 + value * (1 - gate))
    return gradient


@triton.jit
def _gradient_sums(
    x, shift, moments, weight, bias, of_y, sums, size, channels, groups,
    silu: tl.constexpr, pixels: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    offsets, channel, inside = _tile(size, channels, pixels, width)
    normed, value, w, _ = _normed(x, shift, moments, weight, bias, offsets, channel, inside, channels, groups)
    gradient = _through_silu(value, tl.load(of_y + offsets, inside, 0).to(tl.float32), silu) * w
    _store_sums(sums, gradient, gradient * normed, channels, channel)


@triton.jit
def _group_norm_backward(
    x, shift, moments, weight, bias, of_y, means, of_x, size, channels, groups,
    silu: tl.constexpr, pixels: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    offsets, channel, inside = _tile(size, channels, pixels, width)
    normed, value, w, scale = _normed(
        x, shift, moments, weight, bias, offsets, channel, inside, channels, groups
    )
    gradient = _through_silu(value, tl.load(of_y + offsets, inside, 0).to(tl.float32), silu) * w
    kept = channel < channels
    group = tl.program_id(0) * groups + channel // (channels // groups)
    mean = tl.load(means + group * 2, kept, 0)[None, :]
    along = tl.load(means + group * 2 + 1, kept, 0)[None, :]
    tl.store(of_x + offsets, (gradient - mean - normed * along) * scale, inside)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        shift: torch.Tensor | None,
        groups: int,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        silu: bool,
    ) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        added = x.new_zeros(x.shape[:2]) if shift is None else shift.contiguous()
        grid, shape, sums = _layout(x, groups)
        moments = x.new_empty(len(x), groups, 2, dtype=torch.float32)
        _moments[grid](x, added, sums, *shape[:2], pixels=PIXELS, width=CHANNELS)
        _of_groups[(len(x), groups)](sums, moments, grid[1], *shape, eps, moments=True, width=BLOCK)
        y, fixed = torch.empty_like(x), {"silu": silu, "pixels": PIXELS, "width": CHANNELS}
        _group_norm[grid](x, added, moments, weight, bias, y, *shape, **fixed)
        ctx.save_for_backward(x, added, moments, weight, bias)
        ctx.groups, ctx.fixed, ctx.is_shifted = groups, fixed, shift is not None
        return y

    @staticmethod
    def backward(ctx: Any, of_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, shift, moments, weight, bias = ctx.saved_tensors
        of_y = of_y.contiguous(memory_format=torch.channels_last)
        grid, shape, sums = _layout(x, ctx.groups)
        _gradient_sums[grid](x, shift, moments, weight, bias, of_y, sums, *shape, **ctx.fixed)
        means, of_x = torch.empty_like(moments), torch.empty_like(x)
        _of_groups[(len(x), ctx.groups)](sums, means, grid[1], *shape, 0.0, moments=False, width=BLOCK)
        _group_norm_backward[grid](x, shift, moments, weight, bias, of_y, means, of_x, *shape, **ctx.fixed)
        of_shift = of_x.sum((2, 3)) if ctx.is_shifted and ctx.needs_input_grad[1] else None
        return of_x, of_shift, None, None, None, None, None


def _layout(x: torch.Tensor, groups: int) -> tuple[tuple[int, int, int], tuple[int, int, int], torch.Tensor]:
    """Grid of tiles; (pixels, channels, groups); room for two sums of each tile."""
    number, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
    grid = (number, _blocks(pixels, PIXELS), _blocks(channels, CHANNELS))
    sums = x.new_empty(number, grid[1], 2, channels, dtype=torch.float32)
    return grid, (pixels, channels, groups), sums


def group_norm(
    x: torch.Tensor,
    shift: torch.Tensor | None,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    *,
    silu: bool,
) -> torch.Tensor:
    """Of images plus a shift (n, channels); then SiLU if wanted. Weight and bias are frozen."""
    y: torch.Tensor = _GroupNorm.apply(x, shift, groups, weight, bias, eps, silu)
    return y


# Sum of images


@triton.jit
def _add(x, update, bias, y, number, channels, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < number
    total = tl.load(x + place, inside).to(tl.float32) + tl.load(update + place, inside).to(tl.float32)
    tl.store(y + place, total + tl.load(bias + place % channels, inside).to(tl.float32), inside)


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, update: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x, update = (t.contiguous(memory_format=torch.channels_last) for t in (x, update))
        y = torch.empty_like(x)
        _add[(_blocks(x.numel(), BLOCK),)](x, update, bias, y, x.numel(), len(bias), block=BLOCK)
        return y

    @staticmethod
    def backward(ctx: Any, of_y: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return of_y, of_y, None


def add(x: torch.Tensor, update: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Images, an update of them, and a frozen bias (channels)."""
    y: torch.Tensor = _Add.apply(x, update, bias)
    return y


# AdamW


@triton.jit
def _adamw(
    weights, mean, square, gradient, unet_before, begin_B, unet_B, width, factors, norms, numbers,
    beta1, beta2, epsilon, block: tl.constexpr,
):  # fmt: skip
    row, place = tl.program_id(1).to(tl.int64), tl.program_id(0) * block + tl.arange(0, block)
    numbers += row * 10
    limit, correction, is_before = tl.load(numbers), tl.load(numbers + 1), place < begin_B
    is_text = tl.where(is_before, place >= unet_before, place >= unet_B)
    inside, offsets = place < tl.where(limit > 0, width, 0), row * width + place
    rate = tl.where(is_before, tl.load(numbers + 2), tl.load(numbers + 6))
    kept = tl.where(is_before, tl.load(numbers + 3), tl.load(numbers + 7))
    rate = tl.where(is_text, tl.where(is_before, tl.load(numbers + 4), tl.load(numbers + 8)), rate)
    kept = tl.where(is_text, tl.where(is_before, tl.load(numbers + 5), tl.load(numbers + 9)), kept)
    clip = tl.minimum(limit / (tl.load(norms + row) + 1e-6), 1.0)
    g = tl.load(gradient + offsets, inside, 0).to(tl.float32) * clip
    g *= tl.where(is_before, 1.0, tl.load(factors + row))
    m = tl.load(mean + offsets, inside, 0)
    m += (g - m) * (1 - beta1)
    v = tl.load(square + offsets, inside, 0) * beta2 + g * g * (1 - beta2)
    tl.store(mean + offsets, m, inside)
    tl.store(square + offsets, v, inside)
    w = tl.load(weights + offsets, inside, 0) * kept
    tl.store(weights + offsets, w - m / (tl.sqrt(v / correction) + epsilon) * rate, inside)


def adamw(
    weights: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    gradient: torch.Tensor,
    ends: tuple[int, int, int, int],
    factors: torch.Tensor,
    norms: torch.Tensor,
    numbers: torch.Tensor,
    betas: tuple[float, float],
    epsilon: float,
) -> None:
    """One update of rows (K, P), in place; `ends` of their parts and `numbers` (K, 10) as in
    `trainers.optimizer`.

    The gradient (K, P), of any kind of float, is that of a row's weights before B and of `factors` (K, 1)
    times the others; `norms` (K) are of the whole, with its factors.
    """
    rows, width = weights.shape
    grid = (_blocks(width, BLOCK), rows)  # only its first side may be longer than 65,535
    given = gradient, *ends, factors, norms, numbers
    _adamw[grid](weights, mean, square, *given, *betas, epsilon, block=BLOCK)


# Dropout


@triton.jit
def _mixed(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _keep(x, y, keys, thresholds, samples, size, block: tl.constexpr):
    sample, place = tl.program_id(1), tl.program_id(0) * block + tl.arange(0, block)
    inside, offsets = place < size, sample.to(tl.int64) * size + place
    key = tl.load(keys + sample).to(tl.uint32, bitcast=True)
    # Twice: after one hash the masks of two keys would be permutations of each other.
    hashed = (_mixed(_mixed(place.to(tl.uint32) ^ key) + key) & 0x7FFFFFFF).to(tl.int32)
    kept = hashed >= tl.load(thresholds + sample // samples)
    tl.store(y + offsets, tl.where(kept, tl.load(x + offsets, inside, 0), 0.0), inside)


def keep(x: torch.Tensor, keys: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """x where the hash of (key of its sample, place in its memory) reaches its slot's threshold, else 0.

    `keys` (K, samples) and `thresholds` (K) are int32, the thresholds in units of 2⁻³¹. Hash: Wellons 2018,
    "lowbias32".
    """
    y, size = torch.empty_like(x), x.numel() // keys.numel()
    grid = (_blocks(size, BLOCK), keys.numel())
    _keep[grid](x, y, keys, thresholds, keys.shape[1], size, block=BLOCK)
    return y
