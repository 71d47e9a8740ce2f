"""Fourier transforms; the last axis holds a real value, or the real and the imaginary part."""

import jax
import jax.numpy as jnp
import numpy as np


def dft(
    x: jax.Array, *, axis: int, length: int | None = None, inverse: bool = False, onesided: bool = False
) -> jax.Array:
    """Along `axis`, cut or filled with zeros to `length`. `onesided` gives the first half of a real signal's
    spectrum, or with `inverse` takes that and gives the signal. In float64 where JAX runs with 64-bit
    values."""
    dtype = x.dtype
    x = x.astype(jax.dtypes.canonicalize_dtype(np.float64))
    z = x[..., 0] if x.shape[-1] == 1 else jax.lax.complex(x[..., 0], x[..., 1])
    if inverse and onesided:
        return jnp.fft.irfft(z, length, axis=axis)[..., None].astype(dtype)
    y = (jnp.fft.ifft if inverse else jnp.fft.fft)(z, length, axis=axis)
    if onesided:
        y = jax.lax.slice_in_dim(y, 0, y.shape[axis] // 2 + 1, axis=axis)
    return jnp.stack([jnp.real(y), jnp.imag(y)], axis=-1).astype(dtype)


def stft(
    x: jax.Array, *, window: jax.Array | None = None, length: int, step: int, onesided: bool
) -> jax.Array:
    """Spectra `[B, frames, bins, 2]` of frames of `[B, T, 1 or 2]`, each multiplied by the window."""
    starts = range(0, x.shape[1] - length + 1, step)
    frames = jnp.stack([jax.lax.slice_in_dim(x, s, s + length, axis=1) for s in starts], axis=1)
    if window is not None:
        frames = frames * window[:, None]
    return dft(frames, axis=2, onesided=onesided)
