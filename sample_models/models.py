"""The networks of the sample models: plain modules without weights, named by ``--factory sample_models/models.py:FN``.

Every forward returns ``{"logits": float32[batch, classes]}``; the keys become the names of the outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE_SIDE = 8
DIGITS = 10
VOCABULARY = 2000
MAX_LENGTH = 64
PAD_ID = 0
UNKNOWN_ID = 1


class DigitsCnn(nn.Module):
    """Two convolutions with batch norms, a fat linear layer: image float32[batch, 1, 8, 8] -> logits[batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(512, 96), nn.ReLU(), nn.Dropout(0.3), nn.Linear(96, DIGITS)
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits, float32[batch, 10]."""
        return {"logits": self.classifier(self.features(image))}


class MnistCnn(nn.Module):
    """Three convolutions: image float32[batch, 1, 28, 28] in [0, 1] -> logits[batch, 10]; 0.9 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(128 * 49, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, DIGITS)
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits, float32[batch, 10]."""
        return {"logits": self.classifier(self.features(image))}


class DigitsMlp(nn.Module):
    """Three linear layers: image float32[batch, 1, 8, 8] -> logits[batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(IMAGE_SIDE * IMAGE_SIDE, 192),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(192, 128),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(128, DIGITS),
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits, float32[batch, 10]."""
        return {"logits": self.layers(image)}


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate query, key and value layers, as in BERT."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)

    def split_heads(self, values: Tensor) -> Tensor:
        """[batch, seq, hidden] -> [batch, heads, seq, hidden / heads]."""
        batch, seq, hidden = values.shape
        return values.reshape(batch, seq, self.heads, hidden // self.heads).transpose(1, 2)

    def forward(self, states: Tensor, keep: Tensor) -> Tensor:
        """States float32[batch, seq, hidden], keep bool[batch, 1, 1, seq] -> states of the same shape."""
        query = self.split_heads(self.query(states))
        key = self.split_heads(self.key(states))
        value = self.split_heads(self.value(states))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=keep)
        return self.output(mixed.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """One post-norm transformer layer."""

    def __init__(self, hidden: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden, heads)
        self.attention_norm = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, inner)
        self.outer = nn.Linear(inner, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, keep: Tensor) -> Tensor:
        """States float32[batch, seq, hidden], keep bool[batch, 1, 1, seq] -> states of the same shape."""
        states = self.attention_norm(states + self.dropout(self.attention(states, keep)))
        return self.norm(states + self.dropout(self.outer(functional.gelu(self.inner(states)))))


class ReviewsTransformer(nn.Module):
    """Two transformer layers over a factorized embedding, mean-pooled.

    input_ids, attention_mask int64[batch, seq <= 64] -> logits float32[batch, 2] (0 = negative, 1 = positive).
    """

    def __init__(self, hidden: int = 64, embedding: int = 32, dropout: float = 0.3) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, embedding, padding_idx=PAD_ID)
        self.widen = nn.Linear(embedding, hidden)
        self.positions = nn.Embedding(MAX_LENGTH, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList([EncoderLayer(hidden, 4, 2 * hidden, dropout) for _ in range(2)])
        self.classifier = nn.Linear(hidden, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Logits, float32[batch, 2]."""
        order = torch.arange(input_ids.shape[1], device=input_ids.device)
        states = self.dropout(self.norm(self.widen(self.words(input_ids)) + self.positions(order)))
        keep = attention_mask.to(torch.bool)[:, None, None, :]
        for layer in self.layers:
            states = layer(states, keep)
        weight = attention_mask.to(states.dtype).unsqueeze(-1)
        pooled = (states * weight).sum(1) / weight.sum(1)
        return {"logits": self.classifier(self.dropout(pooled))}


def digits_cnn() -> nn.Module:
    """Small convolutional classifier of scikit-learn's handwritten digits."""
    return DigitsCnn()


def mnist_cnn() -> nn.Module:
    """Wider convolutional classifier of MNIST's digits; ``mnist.py`` trains it."""
    return MnistCnn()


def digits_mlp() -> nn.Module:
    """Multi-layer perceptron on the same digits."""
    return DigitsMlp()


def reviews_transformer() -> nn.Module:
    """Small text transformer that says whether a sentence of a movie review is positive."""
    return ReviewsTransformer()
