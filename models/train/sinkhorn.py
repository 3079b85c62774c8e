"""The alternating normalisations of the hyper-connections, with a Triton kernel for the GPU.

Each step is y = x / (sum(x) + eps), over columns first, then rows and columns in turn. Twenty rounds of that are
forty small kernels forward and more backward; one kernel keeps the 4x4 matrix in registers. The backward pass needs
the divisors only: from y and the divisor both x and its gradient follow.
"""

from __future__ import annotations

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of PyTorch for the CPU
    triton = None

EPS = 1e-6

if triton:

    @triton.jit
    def _forward(c_ptr, y_ptr, s_ptr, n, ROUNDS: tl.constexpr, EPS_: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        four = tl.arange(0, 4)
        at = row[:, None, None] * 16 + four[None, :, None] * 4 + four[None, None, :]
        live3 = (row < n)[:, None, None] & (four[None, :, None] < 4) & (four[None, None, :] < 4)
        live2 = (row < n)[:, None] & (four[None, :] < 4)
        c = tl.load(c_ptr + at, mask=live3, other=1.0)
        kept = s_ptr + four[None, :] * n + row[:, None]
        s = tl.sum(c, axis=1) + EPS_
        c = c / s[:, None, :]
        tl.store(kept, s, mask=live2)
        for i in range(ROUNDS):
            s = tl.sum(c, axis=2) + EPS_
            c = c / s[:, :, None]
            tl.store(kept + (2 * i + 1) * 4 * n, s, mask=live2)
            s = tl.sum(c, axis=1) + EPS_
            c = c / s[:, None, :]
            tl.store(kept + (2 * i + 2) * 4 * n, s, mask=live2)
        tl.store(y_ptr + at, c, mask=live3)

    @triton.jit
    def _backward(y_ptr, g_ptr, s_ptr, out_ptr, n, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        four = tl.arange(0, 4)
        at = row[:, None, None] * 16 + four[None, :, None] * 4 + four[None, None, :]
        live3 = (row < n)[:, None, None] & (four[None, :, None] < 4) & (four[None, None, :] < 4)
        live2 = (row < n)[:, None] & (four[None, :] < 4)
        y = tl.load(y_ptr + at, mask=live3, other=0.0)
        g = tl.load(g_ptr + at, mask=live3, other=0.0)
        kept = s_ptr + four[None, :] * n + row[:, None]
        for j in range(ROUNDS):
            i = ROUNDS - 1 - j
            s = tl.load(kept + (2 * i + 2) * 4 * n, mask=live2, other=1.0)
            g = (g - tl.sum(g * y, axis=1)[:, None, :]) / s[:, None, :]
            y = y * s[:, None, :]
            s = tl.load(kept + (2 * i + 1) * 4 * n, mask=live2, other=1.0)
            g = (g - tl.sum(g * y, axis=2)[:, :, None]) / s[:, :, None]
            y = y * s[:, :, None]
        s = tl.load(kept, mask=live2, other=1.0)
        g = (g - tl.sum(g * y, axis=1)[:, None, :]) / s[:, None, :]
        tl.store(out_ptr + at, g, mask=live3)


USE_KERNEL_ON_CPU = False  # for Triton's interpreter


@torch.library.custom_op("ds4::normalise_alternately", mutates_args=())
def normalise_alternately(c: torch.Tensor, n_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """c [N,4,4] positive, n_steps odd -> the normalised matrices and the divisors [n_steps,4,N]."""
    c = c.contiguous()
    n = c.shape[0]
    if c.is_cuda or USE_KERNEL_ON_CPU:
        y, s = torch.empty_like(c), c.new_empty(n_steps, 4, n)
        _forward[(triton.cdiv(n, 64),)](c, y, s, n, (n_steps - 1) // 2, EPS, 64)
        return y, s
    kept = []
    for i in range(n_steps):
        s = c.sum(-2 if i % 2 == 0 else -1, keepdim=True) + EPS
        c = c / s
        kept.append(s.flatten(1).T)
    return c, torch.stack(kept)


@normalise_alternately.register_fake
def _(c, n_steps):
    return torch.empty_like(c, memory_format=torch.contiguous_format), c.new_empty(n_steps, 4, c.shape[0])


@torch.library.custom_op("ds4::normalise_alternately_backward", mutates_args=())
def normalise_alternately_backward(y: torch.Tensor, s: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    g = g.contiguous()
    n = y.shape[0]
    if y.is_cuda or USE_KERNEL_ON_CPU:
        out = torch.empty_like(g)
        _backward[(triton.cdiv(n, 64),)](y, g, s, out, n, (s.shape[0] - 1) // 2, 64)
        return out
    for i in reversed(range(s.shape[0])):
        dim = -2 if i % 2 == 0 else -1
        d = s[i].T.unsqueeze(dim)
        g = (g - (g * y).sum(dim, keepdim=True)) / d
        y = y * d
    return g.clone()


@normalise_alternately_backward.register_fake
def _(y, s, g):
    return torch.empty_like(g, memory_format=torch.contiguous_format)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*output)


def _gradient(ctx, g, _):
    return normalise_alternately_backward(*ctx.saved_tensors, g), None


normalise_alternately.register_autograd(_gradient, setup_context=_keep)


def check() -> None:
    """Kernel (interpreted on the CPU) and plain form against autograd through the definition."""
    global USE_KERNEL_ON_CPU
    c = (torch.randn(100, 4, 4) * 2).softmax(-1) + EPS
    w = torch.randn(100, 4, 4)
    c1 = c.clone().requires_grad_()
    y = c1
    for i in range(39):
        y = y / (y.sum(-2 if i % 2 == 0 else -1, keepdim=True) + EPS)
    (y * w).sum().backward()
    for kernel in (False, True):
        USE_KERNEL_ON_CPU = kernel
        c2 = c.clone().requires_grad_()
        z, _ = normalise_alternately(c2, 39)
        (z * w).sum().backward()
        print("kernel" if kernel else "plain", (z - y).abs().max().item(), (c2.grad - c1.grad).abs().max().item(), c1.grad.abs().max().item())


if __name__ == "__main__":
    check()
