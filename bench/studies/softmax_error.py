"""Tabulate how far FAVOR attention is from softmax attention, for kernels/README.md.

    python bench softmax_error

q and k lie on the sphere where the scaled vectors have |x|^2 = t, v is standard normal, 512 tokens,
float64, mean over 16 heads and 4 draws. In brackets the error of the plain mean of v, the attention that sees nothing.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from favorcast.kernels import draw_features, softmax_error

SIZES = ((16, 32), (16, 64), (16, 128), (32, 128), (64, 128), (64, 256), (64, 512), (128, 512))
BESIDE = ((16, 64), (64, 256))
"""Where the paper's own features, "orthogonal", stand beside the default ones."""

SQUARES = (0.25, 0.5, 1.0, 2.0, 4.0)
DRAWS = 4


def main() -> None:
    """Print the table as Markdown."""
    generator = torch.Generator().manual_seed(0)
    print("| d, m | features |" + "".join(f" t = {t:g} |" for t in SQUARES) + " N(0, 1) |")
    print("| --- | --- |" + " --- |" * (len(SQUARES) + 1))
    for d, m in SIZES:
        for kind in ("hyperbolic", "orthogonal") if (d, m) in BESIDE else ("hyperbolic",):
            cells = [_cell(d, m, kind, t, generator) for t in (*SQUARES, None)]
            print(f"| {d}, {m} | {kind} | " + " | ".join(cells) + " |")


def _cell(d: int, m: int, kind: str, square: float | None, generator: torch.Generator) -> str:
    errors, blind = [], []
    for _ in range(DRAWS):
        q, k, v = (torch.randn(1, 16, 512, d, generator=generator, dtype=torch.float64) for _ in range(3))
        if square is not None:
            q, k = (F.normalize(x, dim=-1) * (square * d**0.5) ** 0.5 for x in (q, k))
        features = draw_features(m, d, kind=kind, generator=generator, dtype=torch.float64)
        exact = F.scaled_dot_product_attention(q, k, v)
        errors.append(softmax_error(q, k, v, features))
        blind.append(float((v.mean(-2, keepdim=True) - exact).norm() / exact.norm()))
    return f"{sum(errors) / DRAWS:.2f} ({sum(blind) / DRAWS:.2f})"


if __name__ == "__main__":
    main()
