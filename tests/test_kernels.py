"""The compiled convolutions beside torch's, with the tiles of this processor and of one with fewer registers."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rso_lab import kernels

# registers and numbers in each, as the manuals of the processors have them
PROCESSORS = {
    "AVX-512": ("+avx,+avx2,+avx512f,+fma", "x86_64-unknown-linux-gnu", 32, 16, 14),
    "AVX2": ("+avx,+avx2,-avx512f,+fma", "x86_64-unknown-linux-gnu", 16, 8, 6),
    "SSE": ("-avx,-avx2,+sse2", "x86_64-apple-darwin", 16, 4, 2),
    "NEON": ("+neon,+fp-armv8", "arm64-apple-darwin", 32, 4, 6),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_sums_of_a_tile_stay_in_the_registers(name):
    features, triple, registers, numbers, widest = PROCESSORS[name]
    found = kernels.tiles(kernels.vector_numbers(features, triple))
    vectors = kernels.VECTOR // numbers
    assert all(vectors * lines * pixels + vectors + 1 <= registers for lines, pixels in found)
    assert max(pixels for _, pixels in found) == widest
    assert (1, 1) in found


def outcome() -> str:
    """Compare what convolve and enter make of images of many widths with torch's convolution; their bytes, hashed."""
    generator = torch.Generator().manual_seed(0)
    found = hashlib.sha256()
    for height, width in ((28, 28), (3, 14), (5, 7), (2, 13), (1, 17), (3, 33), (3, 5), (4, 4)):
        for stride in (1, 2):
            x, w = (torch.randn(shape, generator=generator) for shape in ((17, 32, height, width), (16, 32, 3, 3)))
            expected = F.conv2d(x, w, stride=stride, padding=1)
            ours, last = (t.permute(0, 2, 3, 1).contiguous().numpy() for t in (expected.new_zeros(expected.shape), x))
            weights = w.permute(2, 3, 1, 0).contiguous().numpy()
            ones, zeros = np.ones(32, np.float32), np.zeros(32, np.float32)
            kernels.convolve(last, ones, zeros, 0, weights, zeros[:16], (stride, stride), (1, 1), ours)
            torch.testing.assert_close(torch.from_numpy(ours).permute(0, 3, 1, 2), expected, atol=1e-4, rtol=1e-4)
            plane = x[:, :1].contiguous().numpy()
            entered, nothing = np.empty_like(ours), np.zeros_like(plane)
            entering = weights[:, :, :1].copy()
            kernels.enter(plane, 1.0, 0.0, 0, nothing, plane.copy(), entering, (stride, stride), (1, 1), ours, entered)
            expected += F.conv2d(x[:, :1], w[:, :1], stride=stride, padding=1)
            torch.testing.assert_close(torch.from_numpy(entered).permute(0, 3, 1, 2), expected, atol=1e-4, rtol=1e-4)
            found.update(ours.tobytes() + entered.tobytes())
    return found.hexdigest()


def test_convolutions_of_many_widths():
    assert outcome()


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="no AVX2 here")
def test_with_the_tiles_of_avx2_the_numbers_are_the_same():
    script = "import test_kernels; print(test_kernels.kernels.TILES[0], test_kernels.outcome())"
    avx2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    path = os.pathsep.join([os.path.dirname(__file__), os.getcwd()])
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **avx2, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == f"(1, 6) {outcome()}\n"
