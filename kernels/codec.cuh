// A codec on a row of a matrix, a warp a row.
//
// A warp walks through its row in tiles of 128 columns, which is also the delta codec's block: a lane
// has four consecutive columns, one 16-byte load. Codes and decoded copies are those of the host.
#pragma once

#include "arithmetic.h"

namespace pdadmm {

typedef long long i64;

enum Kind { FLOAT32, GRID, AFFINE, DELTA };

const int TILE = 128;
const int WARPS = 8;  // of a block
const u32 ALL = 0xffffffffu;

// ---- four columns of a lane; n of them exist ------------------------------------------------------

// Rows can be read as float4 where their length is a multiple of 4, as CuPy's arrays start aligned.
PDADMM_FN bool is_wide(i64 cols) { return (cols & 3) == 0; }

PDADMM_FN int columns_left(i64 cols, i64 j) {
  return j + 4 <= cols ? 4 : (j < cols ? (int)(cols - j) : 0);
}

PDADMM_FN void load4(const float *p, int n, bool wide, float (&v)[4]) {
  if (wide && n == 4) {
    const float4 t = *reinterpret_cast<const float4 *>(p);
    v[0] = t.x, v[1] = t.y, v[2] = t.z, v[3] = t.w;
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = k < n ? p[k] : 0.0f;
  }
}

PDADMM_FN void store4(float *p, int n, bool wide, const float (&v)[4]) {
  if (wide && n == 4) {
    *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (k < n) p[k] = v[k];
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // which has no reductions of its own
PDADMM_FN int warp_max(int x) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) {
    const int other = __shfl_xor_sync(ALL, x, offset);
    x = other > x ? other : x;
  }
  return x;
}
PDADMM_FN int warp_min(int x) { return ~warp_max(~x); }
PDADMM_FN int warp_sum(int x) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(ALL, x, offset);
  return x;
}
#else
PDADMM_FN int warp_max(int x) { return __reduce_max_sync(ALL, x); }
PDADMM_FN int warp_min(int x) { return __reduce_min_sync(ALL, x); }
PDADMM_FN int warp_sum(int x) { return __reduce_add_sync(ALL, x); }
#endif

template <class T>
PDADMM_FN T warp_total(T x) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(ALL, x, offset);
  return x;
}

// ---- the codec ------------------------------------------------------------------------------------

template <int KIND, int BITS>
struct RowCodec {
  i64 rows, cols;
  float low, step;  // of the grid
  u32 key;

  PDADMM_FN i64 width() const { return (cols * BITS + 7) / 8; }
  PDADMM_FN i64 blocks() const { return (cols + TILE - 1) / TILE; }
  PDADMM_FN i64 header() const { return KIND == AFFINE ? 4 * rows : KIND == DELTA ? 2 * rows * blocks() : 0; }
  PDADMM_FN float top() const {
    return KIND == DELTA ? delta_top(BITS) : (float)((1 << (BITS < 31 ? BITS : 0)) - 1);
  }

  // Codes of the columns j ... j + n - 1 from a packed row.
  PDADMM_FN void load_codes(const u8 *packed, i64 j, int n, u32 (&code)[4]) const {
    const u8 *p = packed + j * BITS / 8;
    u32 word = 0;
    if (BITS == 8) {
      if (n == 4 && ((size_t)p & 3) == 0)
        word = *reinterpret_cast<const u32 *>(p);
      else
        for (int k = 0; k < n; ++k) word |= (u32)p[k] << (8 * k);
    } else if (BITS == 4) {
      if (n > 0) word = p[0];
      if (n > 2) word |= (u32)p[1] << 8;
    } else if (n > 0) {
      word = BITS == 2 ? p[0] : p[0] >> (j & 7);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) code[k] = word >> (k * BITS) & ((1u << (BITS & 15)) - 1u);
  }

  // Pack the codes of a tile; all lanes of the warp take part.
  PDADMM_FN void store_codes(u8 *packed, i64 j, int n, const u32 (&code)[4]) const {
    u32 word = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (k < n) word |= code[k] << (k * (BITS & 15));
    u8 *p = packed + j * BITS / 8;
    if (BITS == 8) {
      if (n == 4 && ((size_t)p & 3) == 0)
        *reinterpret_cast<u32 *>(p) = word;
      else
        for (int k = 0; k < n; ++k) p[k] = (u8)(word >> (8 * k));
    } else if (BITS == 4) {
      if (n > 0) p[0] = (u8)word;
      if (n > 2) p[1] = (u8)(word >> 8);
    } else if (BITS == 2) {
      if (n > 0) p[0] = (u8)word;
    } else {  // a byte has the columns of two lanes
      const u32 next = __shfl_down_sync(ALL, word, 1);
      if (n > 0 && (j & 7) == 0) p[0] = (u8)(word | next << 4);
    }
  }

  PDADMM_FN void values(const u32 (&code)[4], float scale, float base, float (&hat)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float c = (float)(int)code[k];
      if (KIND == GRID) hat[k] = grid_value(c, low, step);
      if (KIND == AFFINE) hat[k] = affine_value(c, base, scale);
      if (KIND == DELTA && BITS > 2) hat[k] += delta_value(c, scale, top(), 1.0f / top());
      if (KIND == DELTA && BITS == 2) hat[k] += delta_value2(c, scale);
      if (KIND == DELTA && BITS == 1) hat[k] += delta_value1((int)code[k], scale);
    }
  }

  // Decode the columns j ... j + n - 1 of a row into hat, which has the last copy for delta.
  PDADMM_FN void decode(const u8 *message, i64 row, i64 j, int n, float (&hat)[4]) const {
    if (KIND == FLOAT32) {
      load4(reinterpret_cast<const float *>(message) + row * cols + j, n, is_wide(cols), hat);
      return;
    }
    const u16 *heads = reinterpret_cast<const u16 *>(message);
    float scale = 0.0f, base = 0.0f;
    if (KIND == AFFINE) {
      base = half_value(heads[row]);
      scale = half_value(heads[rows + row]);
    }
    if (KIND == DELTA) scale = half_value(heads[row * blocks() + (j < cols ? j : cols - 1) / TILE]);
    u32 code[4];
    load_codes(message + header() + row * width(), j, n, code);
    values(code, scale, base, hat);
  }

  // Encode a tile of x and update hat; all lanes take part. The affine codec wants the row's head.
  PDADMM_FN void encode(const float (&x)[4], i64 row, i64 j, int n, u8 *out, float base, float scale,
                        float (&hat)[4]) const {
    if (KIND == FLOAT32) {
      store4(reinterpret_cast<float *>(out) + row * cols + j, n, is_wide(cols), x);
#pragma unroll
      for (int k = 0; k < 4; ++k) hat[k] = x[k];
      return;
    }
    u32 code[4];
    if (KIND == DELTA) {
      float change[4];
      int largest = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        change[k] = k < n ? x[k] - hat[k] : 0.0f;
        const int m = magnitude(change[k]);
        largest = m > largest ? m : largest;
      }
      largest = warp_max(largest);
      float mean = 0.0f;
      if (BITS <= 2) {
        const int e = delta_exponent(largest);
        int units = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) units += delta_units(change[k], delta_unit_inverse(e));
        const i64 start = j / TILE * TILE, left = cols - start;
        mean = delta_mean(warp_sum(units), left < TILE ? left : TILE, e);
      }
      const u16 half = delta_scale(BITS, float_of((u32)largest), mean);
      if (j % TILE == 0) reinterpret_cast<u16 *>(out)[row * blocks() + j / TILE] = half;
      scale = half_value(half);
      const float inverse = inverse_scale(scale, delta_levels(BITS));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (BITS == 1) code[k] = (u32)delta_code1(change[k]);
        if (BITS == 2) code[k] = (u32)delta_code2(change[k], inverse);
        if (BITS > 2) code[k] = (u32)(int)delta_code(change[k], inverse, top());
      }
    } else {
      const float inverse = KIND == AFFINE ? inverse_scale(scale, 1.0f) : 0.0f;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (KIND == GRID) code[k] = (u32)(int)grid_code(x[k], low, 1.0f / step, top());
        if (KIND == AFFINE) {
          const float r = uniform(key, (u32)(row * cols) + (u32)(j + k));
          code[k] = (u32)affine_code(x[k], base, inverse, top(), r);
        }
      }
    }
    store_codes(out + header() + row * width(), j, n, code);
    values(code, scale, base, hat);
  }

  // The affine codec's head of a row from the smallest and the largest of each lane's entries.
  PDADMM_FN void head(int least, int greatest, i64 row, u8 *out, float &base, float &scale) const {
    u16 *heads = reinterpret_cast<u16 *>(out);
    const u16 low_half = affine_low(from_ordered(warp_min(least)));
    base = half_value(low_half);
    const u16 scale_half = affine_scale(from_ordered(warp_max(greatest)), base, top());
    scale = half_value(scale_half);
    if (threadIdx.x % 32 == 0) {
      heads[row] = low_half;
      heads[rows + row] = scale_half;
    }
  }
};

// Smallest and largest entry so far, in integers ordered as the floats are.
struct Range {
  int least, greatest;
  PDADMM_FN Range() : least(0x7fffffff), greatest(-0x7fffffff - 1) {}
  PDADMM_FN void add(const float (&x)[4], int n) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int v = ordered(x[k]);
      if (k < n) {
        least = v < least ? v : least;
        greatest = v > greatest ? v : greatest;
      }
    }
  }
};

PDADMM_FN bool all_finite(const float (&x)[4]) {
  bool finite = true;
#pragma unroll
  for (int k = 0; k < 4; ++k) finite = finite && magnitude(x[k]) < INFINITE;
  return finite;
}

// The rows of a warp: first, first + stride, ...
PDADMM_FN i64 first_row() { return (i64)blockIdx.x * WARPS + threadIdx.x / 32; }
PDADMM_FN i64 row_stride() { return (i64)gridDim.x * WARPS; }
PDADMM_FN i64 first_column() { return (threadIdx.x % 32) * 4; }

// Sums of a block, in a fixed order, into its place among the blocks' sums.
template <int COUNT>
PDADMM_FN void block_sums(const double (&sum)[COUNT], double *partial) {
  __shared__ double of_warp[WARPS][COUNT];
#pragma unroll
  for (int k = 0; k < COUNT; ++k) {
    const double total = warp_total(sum[k]);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32][k] = total;
  }
  __syncthreads();
  if (threadIdx.x < COUNT) {
    double total = 0.0;
    for (int w = 0; w < WARPS; ++w) total += of_warp[w][threadIdx.x];
    partial[blockIdx.x * COUNT + threadIdx.x] = total;
  }
}

}  // namespace pdadmm

// Every codec and width: what(name, kind, bits)
#define PDADMM_CODECS(what) \
  what(float32, FLOAT32, 32) \
  what(grid8, GRID, 8) what(grid4, GRID, 4) what(grid2, GRID, 2) \
  what(affine8, AFFINE, 8) what(affine4, AFFINE, 4) what(affine2, AFFINE, 2) \
  what(delta8, DELTA, 8) what(delta4, DELTA, 4) what(delta2, DELTA, 2) what(delta1, DELTA, 1)
