"""How many cells a GPU can train on in a second, and how many cores it takes to feed it."""

from __future__ import annotations

from pydantic import Field

from cellmill.config import Config


class GpuConfig(Config):
    """A GPU, and the model it trains.

    Attributes
    ----------
    tflops
        Peak of the GPU in the precision of training, in TFLOP/s: 989 for an H100 in bfloat16, 312 for an A100.
    utilisation
        Share of the peak that training reaches.
    d_model, d_ff, n_layers
        Shape of the transformer; by default scGPT's.
    """

    tflops: float = Field(default=989.0, gt=0)
    utilisation: float = Field(default=0.32, gt=0, le=1)
    d_model: int = Field(default=512, ge=1)
    d_ff: int = Field(default=512, ge=1)
    n_layers: int = Field(default=12, ge=1)

    def flops_per_cell(self, tokens: float, perceptual: float) -> float:
        """Return the floating-point operations of a training step for one cell.

        Forward and twice as much backward of the matrix products (``2 M D^2 (4 + 2 r)`` a layer, with
        ``r = d_ff / d_model``) and of attention over the perceptual tokens and each generative token itself
        (``4 D (M P + G)`` a layer).

        Parameters
        ----------
        tokens, perceptual
            Tokens of a cell (M), and how many of them are perceptual (P).
        """
        d = self.d_model
        matrices = 2 * tokens * d * d * (4 + 2 * self.d_ff / d)
        attention = 4 * d * (tokens * perceptual + tokens - perceptual)
        return 3 * self.n_layers * (matrices + attention)

    def cells_per_second(self, tokens: float, perceptual: float) -> float:
        """Return how many cells the GPU trains on in a second."""
        return self.tflops * 1e12 * self.utilisation / self.flops_per_cell(tokens, perceptual)
