// The arithmetic of one element, written once for the host library and for CUDA.
//
// Every function rounds after every operation (the builds forbid contraction to FMA), so that host,
// device and the NumPy reference give the same codes and decoded copies bit for bit. Nothing here
// needs a header: NVRTC has none.
#pragma once

// The host library compiles its passes once an instruction set, each in a namespace of its own, so
// that the linker cannot hand one build's inlined code to another.
#ifndef PDADMM_NAMESPACE
#define PDADMM_NAMESPACE pdadmm
#endif

#ifdef __CUDACC__
#define PDADMM_FN __device__ __forceinline__
#else
#define PDADMM_FN static inline __attribute__((always_inline))
#endif

namespace PDADMM_NAMESPACE {

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

// ---- bits -----------------------------------------------------------------------------------------

PDADMM_FN u32 bits_of(float x) {
#ifdef __CUDACC__
  return __float_as_uint(x);
#else
  u32 b;
  __builtin_memcpy(&b, &x, 4);
  return b;
#endif
}

PDADMM_FN float float_of(u32 b) {
#ifdef __CUDACC__
  return __uint_as_float(b);
#else
  float x;
  __builtin_memcpy(&x, &b, 4);
  return x;
#endif
}

// Bits of |x|: ordered as |x| is, and at least INFINITE for Inf and NaN.
static const int INFINITE = 0x7f800000;
PDADMM_FN int magnitude(float x) { return (int)(bits_of(x) & 0x7fffffffu); }

// Signed integer ordered as x is (with -0 below +0), and back.
PDADMM_FN int ordered(float x) {
  int b = (int)bits_of(x);
  return b ^ ((b >> 31) & 0x7fffffff);
}
PDADMM_FN float from_ordered(int b) { return float_of((u32)(b ^ ((b >> 31) & 0x7fffffff))); }

PDADMM_FN float smaller(float a, float b) { return a < b ? a : b; }
PDADMM_FN float larger(float a, float b) { return a > b ? a : b; }
PDADMM_FN float clamp(float x, float low, float high) { return smaller(larger(x, low), high); }

// x between 0 and high, and between -high and high. On the bits, since compilers keep minima of integers, but
// turn comparisons of floats with known bounds into branches over what is computed from them.
PDADMM_FN float clamp_above(float x, float high) {
  int b = (int)bits_of(x), most = (int)bits_of(high);
  b = b < most ? b : most;
  return float_of((u32)(b > 0 ? b : 0));
}
PDADMM_FN float clamp_size(float x, float high) {
  int size = magnitude(x), most = (int)bits_of(high);
  return float_of((u32)(size < most ? size : most) | (bits_of(x) & 0x80000000u));
}

// Nearest integer, ties to even, for |x| < 2^22: as rintf, but one addition on any machine.
PDADMM_FN float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

// ---- float16 --------------------------------------------------------------------------------------

static const float HALF_MAX = 65504.0f;

// Nearest float16, ties to even, saturating.
PDADMM_FN u16 half_nearest(float x) {
  u32 sign = (bits_of(x) >> 16) & 0x8000u, b = (u32)magnitude(x);
  if (b < 0x38800000u)  // below 2^-14: a multiple of 2^-24, which is the spacing of floats at 1/2
    return (u16)(sign | (bits_of(float_of(b) + 0.5f) - 0x3f000000u));
  u32 h = (b + 0xfffu + ((b >> 13) & 1u) - (112u << 23)) >> 13;
  return (u16)(sign | (h < 0x7bffu ? h : 0x7bffu));
}

PDADMM_FN float half_value(u16 h) {
  u32 sign = (u32)(h & 0x8000u) << 16, b = h & 0x7fffu;
  float subnormal = (float)(int)b * 5.9604644775390625e-8f;
  u32 normal = (b << 13) + (112u << 23);
  return float_of(sign | (b < 0x400u ? bits_of(subnormal) : normal));
}

PDADMM_FN u16 half_below(u16 h) {
  return (h & 0x7fffu) == 0 ? (u16)0x8001u : (u16)(h & 0x8000u ? h + 1 : h - 1);
}
PDADMM_FN u16 half_above(u16 h) {
  return (h & 0x7fffu) == 0 ? (u16)0x0001u : (u16)(h & 0x8000u ? h - 1 : h + 1);
}

// ---- codec: grid ----------------------------------------------------------------------------------

// index = rint((x - low) / step), saturating
PDADMM_FN float grid_code(float x, float low, float inverse, float top) {
  return round_even(clamp_above((x - low) * inverse, top));
}
PDADMM_FN float grid_value(float code, float low, float step) { return low + code * step; }

// Levels by the unit; 0 for a scale of 0, which says that all entries are equal. One division a scale, where
// one an entry would cost as much as the rest of the coding.
PDADMM_FN float inverse_scale(float scale, float levels) { return scale > 0.0f ? levels / scale : 0.0f; }

// ---- codec: affine --------------------------------------------------------------------------------

// Largest float16 not above the row's minimum. Adding 0 turns -0 into +0.
PDADMM_FN u16 affine_low(float least) {
  float low = clamp(least, -HALF_MAX, HALF_MAX) + 0.0f;
  u16 h = half_nearest(low);
  if (half_value(h) > low) h = half_below(h);
  return half_value(h) < -HALF_MAX ? half_nearest(-HALF_MAX) : h;
}
// Smallest float16 scale with which top steps reach the row's maximum.
PDADMM_FN u16 affine_scale(float greatest, float low, float top) {
  float wanted = smaller((greatest - low) / top, HALF_MAX) + 0.0f;
  u16 h = half_nearest(wanted);
  if (half_value(h) < wanted) h = half_above(h);
  return h;
}
// Number in [0, 1) of a key and an index (two-round xorshift-multiply, Ettinger, Hash prospector). The
// seeds of successive indices differ by UNIFORM_STRIDE: an addition, where the product costs two.
static const u32 UNIFORM_STRIDE = 0x9E3779B9u;
PDADMM_FN u32 mixed(u32 x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}
PDADMM_FN u32 uniform_seed(u32 key, u32 index) { return index * UNIFORM_STRIDE + key; }
PDADMM_FN float uniform_from(u32 seed) { return (float)(int)(mixed(seed) >> 8) * 5.9604644775390625e-8f; }
PDADMM_FN float uniform(u32 key, u32 index) { return uniform_from(uniform_seed(key, index)); }
// floor((x - low) inverse + r), r uniform: unbiased; inverse is inverse_scale(scale, 1)
PDADMM_FN int affine_code(float x, float low, float inverse, float top, float r) {
  return (int)clamp_above((x - low) * inverse + r, top);
}
PDADMM_FN float affine_value(float code, float low, float scale) { return low + code * scale; }

// ---- codec: delta ---------------------------------------------------------------------------------

// The mean of a block is taken over its sizes in units of 2^(e-23), 2^e the power of two above the
// largest: sums of such integers are exact, so that any order of summation gives the same scale.
PDADMM_FN int delta_exponent(int largest) {
  int e = (largest >> 23) - 126;
  return largest == 0 ? 0 : (e < -40 ? -40 : e);
}
PDADMM_FN float delta_unit_inverse(int e) { return float_of((u32)(127 + 23 - e) << 23); }
PDADMM_FN int delta_units(float change, float unit_inverse) {
  return (int)(float_of((u32)magnitude(change)) * unit_inverse + 0.5f);
}
PDADMM_FN float delta_mean(long long units, long long count, int e) {
  double unit = (double)float_of((u32)(127 + e - 23) << 23);
  return (float)((double)units / (double)count * unit);
}
// 8 and 4 bits: the largest change; 2 bits: at most 3 times the mean; 1 bit: the mean.
PDADMM_FN u16 delta_scale(int bits, float largest, float mean) {
  float scale = bits > 2 ? largest : (bits == 1 ? mean : smaller(largest, 3.0f * mean));
  return half_nearest(smaller(scale, HALF_MAX));
}
PDADMM_FN float delta_top(int bits) { return (float)((1 << (bits - 1)) - 1); }

// Levels by the scale at more than 1 bit, as inverse_scale wants them
PDADMM_FN float delta_levels(int bits) { return bits == 2 ? 1.5f : delta_top(bits); }

// 8 and 4 bits: levels -top/top ... top/top of the scale
PDADMM_FN float delta_code(float change, float inverse, float top) {
  return round_even(clamp_size(change * inverse, top)) + top;
}
PDADMM_FN float delta_value(float code, float scale, float top, float inverse) {
  return scale * ((code - top) * inverse);
}
// 2 bits: levels -1, -1/3, 1/3, 1
PDADMM_FN int delta_code2(float change, float inverse) {
  return (int)clamp_above(change * inverse + 2.0f, 3.0f);
}
PDADMM_FN float delta_value2(float code, float scale) {
  return scale * ((code * 2.0f - 3.0f) * (1.0f / 3.0f));
}
// 1 bit: the sign
PDADMM_FN int delta_code1(float change) { return change >= 0.0f; }
PDADMM_FN float delta_value1(int code, float scale) { return code ? scale : -scale; }

// ---- the updates (pdadmm/admm/updates.py has them in NumPy) ---------------------------------------

// u + rho (p_{l+1} - q)
PDADMM_FN float u_update(float u, float p_next, float q, float rho) { return u + rho * (p_next - q); }

// nu M W + u_{l-1} + rho (p - q_{l-1})
PDADMM_FN float p_gradient(float MW, float p, float q_prev, float u_prev, float nu, float rho) {
  return nu * MW + u_prev + rho * (p - q_prev);
}

// nu M^T p + mu (W - W_bar)
PDADMM_FN float weight_gradient(float Mp, float W, float W_bar, float nu, float mu) {
  return nu * Mp + mu * (W - W_bar);
}

// x - length * direction
PDADMM_FN float step(float x, float direction, float length) { return x - length * direction; }

// Length of the exact line search along a row of a gradient, of the squared norms of the row and its image;
// 0 where there is no gradient, or nothing that bends
PDADMM_FN double line_length(double curvature, double weight, double image, double norm) {
  if (norm == 0.0) return 0.0;
  const double tau = curvature + weight * image / norm;
  return tau == 0.0 ? 0.0 : 1.0 / tau;
}

PDADMM_FN float square(float x) { return x * x; }

// f(z) = z where positive, slope * z elsewhere
PDADMM_FN float activation(float z, float slope) { return z > 0.0f ? z : z * slope; }

// argmin (x - a)^2 + (q - f(x))^2 + (x - z)^2: the better of the two branches' clipped minimisers
PDADMM_FN float z_update(float a, float q, float z, float slope, float below_curvature) {
  float above = larger((a + q + z) / 3.0f, 0.0f);
  float below = smaller((a + slope * q + z) / below_curvature, 0.0f);
  float cost_above = square(above - a) + square(q - above) + square(above - z);
  float cost_below = square(below - a) + square(q - slope * below) + square(below - z);
  return cost_above <= cost_below ? above : below;
}

// (rho p_{l+1} + u + nu f(z)) / (rho + nu)
PDADMM_FN float q_update(float p_next, float u, float fz, float nu, float rho) {
  return (rho * p_next + u + nu * fz) / (rho + nu);
}

// exp(x) for x <= 0, relative error about 1e-7; below -87 it stays at exp(-87)
PDADMM_FN float exp_nonpositive(float x) {
  x = larger(x, -87.0f);
  float n = round_even(x * 1.44269504f);
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = (y * r) * r + r + 1.0f;
  return y * float_of((u32)((int)n + 127) << 23);
}

// Whether a Newton step with the entry d of z is not the last (updates.z_last_cross_entropy)
PDADMM_FN bool newton_goes_on(float d, float z) {
  return float_of((u32)magnitude(d)) > 1e-5f * (1.0f + float_of((u32)magnitude(z)));
}

// Length of a Newton step whose entries span D: log(1 + D) / D (updates.z_last_cross_entropy says why)
PDADMM_FN float newton_damping(float spread, float log1p_spread) {
  return spread > 1e-3f ? log1p_spread / spread : 1.0f - spread / 2.0f;
}

}  // namespace PDADMM_NAMESPACE
