"""Small networks whose groups are known, each with a batch of odd sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from optkit.model.surgery import operate
from optkit.passes._prune.cut import cut, shallow_copy, verify
from optkit.passes._prune.groups import Found, Group, find_groups

Inputs = dict[str, Tensor]


def image(side: int = 8, channels: int = 3) -> Inputs:
    return {"x": torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(0))}


def vectors(width: int = 5) -> Inputs:
    return {"x": torch.randn(3, 7, width, generator=torch.Generator().manual_seed(0))}


def tokens(**more: Tensor) -> Inputs:
    return {"input_ids": torch.randint(3, 90, (3, 7), generator=torch.Generator().manual_seed(0)), **more}


def alive(module: nn.Module) -> nn.Module:
    """In eval mode, with every parameter and every batch norm away from its start."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.1)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=draw), alpha=0.5)
    return module.eval()


def halved(found: Found, seed: int = 0) -> list[tuple[Group, np.ndarray]]:
    """A random half of the units of every group, other than those that pass a norm."""
    rng = np.random.default_rng(seed)
    groups = [group for group in found.groups if not group.through_norm]
    return [(group, np.sort(rng.choice(group.units, (group.units + 1) // 2, replace=False))) for group in groups]


def cut_in_half(module: nn.Module, inputs: Inputs, found: Found | None = None) -> nn.Module:
    """Half of all units gone; verified against the module in which nothing reads them."""
    kept = halved(found or find_groups(module, inputs))
    changed = operate(shallow_copy(module), cut(module, kept, inputs))
    verify(module, changed, kept, inputs)
    return changed


def drawn(group: Group) -> dict[str, tuple[int, str]]:
    """``tensor.dim`` -> (indices of one unit, role)."""
    return {f"{part.tensor}.{part.dim}": (part.indices.shape[1], part.role) for part in group.parts}


def block(inner: int, outer: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.ReLU6())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.fc = block(3, 8), block(8, 12), block(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(functional.adaptive_avg_pool2d(x + self.b(self.a(x)), 1).flatten(1))


class Inverted(nn.Module):
    """Depthwise-separable, with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.depth = block(3, 8), block(8, 16, 1), block(16, 16, 3, 16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.fc = nn.Conv2d(16, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depth(self.expand(x))
        y = y * self.excite(functional.silu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        return self.fc((x + self.project(y)).mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm, self.c, self.fc = nn.BatchNorm2d(10), nn.Conv2d(10, 5, 3, padding=1), nn.Linear(15 * 16, 7)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        both = torch.cat([a, self.b(a).relu()], 1)
        return self.fc(functional.max_pool2d(torch.cat([both, self.c(self.norm(both))], 1), 2).flatten(1))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.norm = block(3, 12, 1), block(12, 18, 3, 6), nn.GroupNorm(3, 18)
        self.up, self.out = nn.ConvTranspose2d(18, 6, 2, 2), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(self.norm(self.g(self.a(x)))))


class Twice(nn.Module):
    """One layer called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shared(self.shared(self.first(x)).relu()).relu())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.outer = nn.Embedding(97, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 97, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        return self.head(x + self.outer(self.inner(x).relu()))


class Packed(nn.Module):
    """Query, key and value in one layer; 4 heads of 4, so that both numbers coincide; a norm before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.qkv, self.mix = nn.Linear(5, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm, self.last = nn.LayerNorm(16), nn.Linear(16, 3)
        self.heads, self.size = 4, 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        rows, length, _ = x.shape
        query, key, value = self.qkv(x).reshape(rows, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = ((query @ key.transpose(-2, -1)) / self.size).softmax(-1) @ value
        return self.last(self.norm(x + self.mix(mixed.transpose(1, 2).flatten(2))))


class Letters(nn.Module):
    """Attention by einsum, and a weight of three dimensions that reads the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(5, 12) for _ in range(3))
        self.last = nn.Parameter(torch.ones(4, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (each(x).unflatten(-1, (-1, 3)) for each in (self.query, self.key, self.value))
        weights = torch.einsum("bqhd,bkhd->bhqk", query, key).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, value)
        return torch.einsum("bqhd,hdo->bqo", mixed, self.last)


class Around(nn.Module):
    """One layer between two others, and something done to what is between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int = 12, read: int = 12) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, width), nn.Linear(read, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.inner, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.inner(x + self.attention(x, x, x)[0]).relu())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm = nn.Linear(5, 8), nn.LSTM(8, 6, batch_first=True)
        self.inner, self.last = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.lstm(self.first(x))[0]).relu())
