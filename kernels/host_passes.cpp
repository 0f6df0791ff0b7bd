// The passes over rows on CPUs. Compiled once an instruction set, with PDADMM_NAMESPACE naming it.
//
// A pass runs through its rows one by one: decode, arithmetic and encode of a row follow each other
// while it is in the first-level cache, so that every array crosses the memory bus once. The loops
// are written for the compiler to vectorise.
#include "passes.h"

#include <math.h>
#include <stdlib.h>

#include "arithmetic.h"

// Arrays of a pass are the same array or do not overlap at all.
#define PDADMM_ELEMENTWISE _Pragma("GCC ivdep")
#define PDADMM_INLINE inline __attribute__((always_inline))

namespace PDADMM_NAMESPACE {
namespace {

// Lanes of a float64 register, and as many floats to widen into one.
#ifdef __AVX__
#define PDADMM_LANES 4
#else
#define PDADMM_LANES 2
#endif
typedef float Narrow __attribute__((vector_size(4 * PDADMM_LANES), aligned(4), may_alias));
typedef double Wide __attribute__((vector_size(8 * PDADMM_LANES)));

template <class T>
struct Buffer {
  T *data;
  explicit Buffer(int64_t n) : data((T *)malloc((size_t)(n > 0 ? n : 1) * sizeof(T))) {
    if (!data) abort();
  }
  ~Buffer() { free(data); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
};

// ---- sums in float64, in lanes that are the same for every instruction set ------------------------

struct Sum {
  static const int LANES = 16, PARTS = LANES / PDADMM_LANES;
  Wide part[PARTS] = {};
  double rest = 0;

  double total() const {
    double lane[LANES];
    __builtin_memcpy(lane, part, sizeof lane);
    for (int width = LANES / 2; width; width /= 2)
      for (int k = 0; k < width; ++k) lane[k] += lane[k + width];
    return lane[0] + rest;
  }
};

PDADMM_FN Narrow load(const float *x) { return *(const Narrow *)x; }

// sum += term(0) + ... + term(n - 1); `some` gives the terms of a register, `one` a single one
template <class Some, class One>
PDADMM_FN void accumulate(Sum &sum, int64_t n, Some some, One one) {
  Wide part[Sum::PARTS];
  for (int k = 0; k < Sum::PARTS; ++k) part[k] = sum.part[k];
  int64_t i = 0;
  for (; i + Sum::LANES <= n; i += Sum::LANES)
#pragma GCC unroll 8
    for (int k = 0; k < Sum::PARTS; ++k) part[k] += __builtin_convertvector(some(i + k * PDADMM_LANES), Wide);
  for (int k = 0; k < Sum::PARTS; ++k) sum.part[k] = part[k];
  for (; i < n; ++i) sum.rest += (double)one(i);
}

// |x|^2
PDADMM_FN void add_squares(Sum &sum, const float *x, int64_t n) {
  accumulate(
      sum, n, [=](int64_t i) { return load(x + i) * load(x + i); }, [=](int64_t i) { return x[i] * x[i]; });
}

// |x - y|^2
PDADMM_FN void add_squared_difference(Sum &sum, const float *x, const float *y, int64_t n) {
  accumulate(
      sum, n,
      [=](int64_t i) {
        Narrow d = load(x + i) - load(y + i);
        return d * d;
      },
      [=](int64_t i) { return (x[i] - y[i]) * (x[i] - y[i]); });
}

// <u, x - y>
PDADMM_FN void add_product_with_difference(Sum &sum, const float *u, const float *x, const float *y,
                                           int64_t n) {
  accumulate(
      sum, n, [=](int64_t i) { return load(u + i) * (load(x + i) - load(y + i)); },
      [=](int64_t i) { return u[i] * (x[i] - y[i]); });
}

PDADMM_FN int largest_magnitude(const float *x, int64_t n) {
  int most = 0;
  for (int64_t i = 0; i < n; ++i) {
    int m = magnitude(x[i]);
    most = m > most ? m : most;
  }
  return most;
}

// ---- packing: the first column takes the lowest bits of the first byte ----------------------------

PDADMM_FN int64_t packed_bytes(int64_t cols, int64_t bits) { return (cols * bits + 7) / 8; }

// Eight codes at a time in a word, whose lowest byte is the first.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "messages are little-endian");

PDADMM_FN void pack_row(const u8 *codes, u8 *out, int64_t cols, int bits) {
  int64_t j = 0;
  for (; j + 8 <= cols; j += 8, out += bits) {
    uint64_t x;
    __builtin_memcpy(&x, codes + j, 8);
    if (bits == 4) {
      x = (x | x >> 4) & 0x00ff00ff00ff00ffull;
      x = (x | x >> 8) & 0x0000ffff0000ffffull;
      x |= x >> 16;
      __builtin_memcpy(out, &x, 4);
    } else if (bits == 2) {
      x = (x | x >> 6 | x >> 12 | x >> 18) & 0x000000ff000000ffull;
      x |= x >> 24;
      __builtin_memcpy(out, &x, 2);
    } else {
      out[0] = (u8)(x * 0x0102040810204080ull >> 56);
    }
  }
  for (int shift = 0; j < cols; ++j) {
    *out = (u8)(shift ? *out | codes[j] << shift : codes[j]);
    shift += bits;
    if (shift == 8) {
      shift = 0;
      ++out;
    }
  }
}

PDADMM_FN void unpack_row(const u8 *packed, u8 *codes, int64_t cols, int bits) {
  int64_t j = 0;
  for (; j + 8 <= cols; j += 8, packed += bits) {
    uint64_t x = 0;
    if (bits == 4) {
      __builtin_memcpy(&x, packed, 4);
      x = (x | x << 16) & 0x0000ffff0000ffffull;
      x = (x | x << 8) & 0x00ff00ff00ff00ffull;
      x = (x | x << 4) & 0x0f0f0f0f0f0f0f0full;
    } else if (bits == 2) {
      x = packed[0] | (uint64_t)packed[1] << 32;
      x = (x | x << 6 | x << 12 | x << 18) & 0x0303030303030303ull;
    } else {
      x = packed[0] * 0x0101010101010101ull & 0x8040201008040201ull;
      x = (x + 0x7f7f7f7f7f7f7f7full) >> 7 & 0x0101010101010101ull;
    }
    __builtin_memcpy(codes + j, &x, 8);
  }
  for (int shift = 0; j < cols; ++j) {
    codes[j] = (u8)(*packed >> shift & ((1 << bits) - 1));
    shift += bits;
    if (shift == 8) {
      shift = 0;
      ++packed;
    }
  }
}

// ---- a codec, row by row --------------------------------------------------------------------------

class RowCodec {
 public:
  RowCodec(const Coding &c, const Shape &s, int64_t key = 0)
      : kind_(c.kind), bits_((int)c.bits), block_(c.block), rows_(s.rows), cols_(s.cols),
        blocks_(c.kind == DELTA ? (s.cols + c.block - 1) / c.block : 0),
        width_(packed_bytes(s.cols, c.bits)), low_((float)c.low), step_((float)c.step), key_((u32)key),
        codes_(s.cols) {}

  // hat from the message's row
  void decode(const u8 *message, int64_t row, float *hat) {
    if (kind_ == FLOAT32) {
      __builtin_memcpy(hat, message + row * width_, (size_t)width_);
      return;
    }
    const u8 *packed = message + header() + row * width_;
    const u8 *codes = packed;
    if (bits_ != 8) {
      unpack_row(packed, codes_.data, cols_, bits_);
      codes = codes_.data;
    }
    const u16 *scales = (const u16 *)message;
    if (kind_ == GRID) {
      grid_values(codes, hat);
    } else if (kind_ == AFFINE) {
      affine_values(codes, hat, half_value(scales[row]), half_value(scales[rows_ + row]));
    } else {
      delta_add_row(codes, hat, scales + row * blocks_);
    }
  }

  // The message's row from x, and hat as its receiver will have it. Returns whether x is finite.
  bool encode(const float *x, int64_t row, float *hat, u8 *out) {
    bool finite = largest_magnitude(x, cols_) < INFINITE;
    if (kind_ == FLOAT32) {
      __builtin_memcpy(out + row * width_, x, (size_t)width_);
      if (hat != x) __builtin_memcpy(hat, x, (size_t)width_);
      return finite;
    }
    u8 *packed = out + header() + row * width_;
    u8 *codes = bits_ == 8 ? packed : codes_.data;
    u16 *scales = (u16 *)out;
    if (kind_ == GRID) {
      grid_codes(x, codes);
      grid_values(codes, hat);
    } else if (kind_ == AFFINE) {
      affine_row(x, codes, hat, row, scales);
    } else {
      delta_row(x, codes, hat, scales + row * blocks_);
    }
    if (bits_ != 8) pack_row(codes, packed, cols_, bits_);
    return finite;
  }

  // Nearest grid values of x; the row itself for the other codecs.
  void project(float *x) {
    if (kind_ != GRID) return;
    const float inverse = 1.0f / step_, top = (float)((1 << bits_) - 1), low = low_, step = step_;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < cols_; ++j) {
      // NaN and Inf stay, for encode to find
      float value = grid_value(grid_code(x[j], low, inverse, top), low, step);
      x[j] = magnitude(x[j]) < INFINITE ? value : x[j];
    }
  }

 private:
  int64_t header() const { return kind_ == AFFINE ? 4 * rows_ : 2 * rows_ * blocks_; }
  int64_t width(int64_t b) const { return b + 1 < blocks_ ? block_ : cols_ - b * block_; }

  void grid_codes(const float *x, u8 *codes) {
    const float inverse = 1.0f / step_, top = (float)((1 << bits_) - 1), low = low_;
    const int64_t n = cols_;  // a store of bytes might change the member
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) codes[j] = (u8)(int)grid_code(x[j], low, inverse, top);
  }

  void grid_values(const u8 *codes, float *hat) {
    const float low = low_, step = step_;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < cols_; ++j) hat[j] = grid_value((float)codes[j], low, step);
  }

  void affine_row(const float *x, u8 *codes, float *hat, int64_t row, u16 *heads) {
    int least = ordered(x[0]), greatest = least;
    for (int64_t j = 1; j < cols_; ++j) {
      int v = ordered(x[j]);
      least = v < least ? v : least;
      greatest = v > greatest ? v : greatest;
    }
    const float top = (float)((1 << bits_) - 1);
    heads[row] = affine_low(from_ordered(least));
    const float low = half_value(heads[row]);
    heads[rows_ + row] = affine_scale(from_ordered(greatest), low, top);
    const float scale = half_value(heads[rows_ + row]), inverse = inverse_scale(scale, 1.0f);
    const u32 first = (u32)(row * cols_), key = key_;
    const int count = (int)cols_;
    PDADMM_ELEMENTWISE
    for (int j = 0; j < count; ++j)
      codes[j] = (u8)affine_code(x[j], low, inverse, top, uniform(key, first + (u32)j));
    affine_values(codes, hat, low, scale);
  }

  void affine_values(const u8 *codes, float *hat, float low, float scale) {
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < cols_; ++j) hat[j] = affine_value((float)codes[j], low, scale);
  }

  void delta_row(const float *x, u8 *codes, float *hat, u16 *scales) {
    if (bits_ == 1) delta_blocks<1>(x, codes, hat, scales);
    if (bits_ == 2) delta_blocks<2>(x, codes, hat, scales);
    if (bits_ == 4) delta_blocks<4>(x, codes, hat, scales);
    if (bits_ == 8) delta_blocks<8>(x, codes, hat, scales);
  }

  void delta_add_row(const u8 *codes, float *hat, const u16 *scales) {
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t start = b * block_;
      const float scale = half_value(scales[b]);
      if (bits_ == 1) delta_add<1>(codes + start, hat + start, scale, width(b));
      if (bits_ == 2) delta_add<2>(codes + start, hat + start, scale, width(b));
      if (bits_ == 4) delta_add<4>(codes + start, hat + start, scale, width(b));
      if (bits_ == 8) delta_add<8>(codes + start, hat + start, scale, width(b));
    }
  }

  // A whole block's loops have a length that the compiler knows: no tails, which cost as much as the rest.
  static const int64_t WHOLE = 128;

  template <int BITS>
  void delta_blocks(const float *x, u8 *codes, float *hat, u16 *scales) {
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t start = b * block_, n = width(b);
      scales[b] = n == WHOLE ? delta_block<BITS>(x + start, codes + start, hat + start, WHOLE)
                             : delta_block<BITS>(x + start, codes + start, hat + start, n);
    }
  }

  template <int BITS>
  PDADMM_INLINE static u16 delta_block(const float *x, u8 *codes, float *hat, int64_t n) {
    int largest = 0;
    for (int64_t j = 0; j < n; ++j) {
      int m = magnitude(x[j] - hat[j]);
      largest = m > largest ? m : largest;
    }
    float mean = 0.0f;
    if (BITS <= 2) {
      const int e = delta_exponent(largest);
      const float unit_inverse = delta_unit_inverse(e);
      long long units = 0;
      for (int64_t j = 0; j < n; j += WHOLE) {  // 128 sizes of up to 2^23 units fit an int
        int part = 0;
        const int64_t stop = j + WHOLE < n ? j + WHOLE : n;
        for (int64_t i = j; i < stop; ++i) part += delta_units(x[i] - hat[i], unit_inverse);
        units += part;
      }
      mean = delta_mean(units, n, e);
    }
    const u16 half = delta_scale(BITS, float_of((u32)largest), mean);
    const float scale = half_value(half), top = delta_top(BITS);
    const float inverse = inverse_scale(scale, delta_levels(BITS));
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) {
      const float change = x[j] - hat[j];
      codes[j] = (u8)(BITS == 1   ? delta_code1(change)
                      : BITS == 2 ? delta_code2(change, inverse)
                                  : (int)delta_code(change, inverse, top));
    }
    delta_add<BITS>(codes, hat, scale, n);
    return half;
  }

  template <int BITS>
  PDADMM_INLINE static void delta_add(const u8 *codes, float *hat, float scale, int64_t n) {
    const float top = delta_top(BITS), per_level = 1.0f / top;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j)
      hat[j] += BITS == 1   ? delta_value1(codes[j], scale)
                : BITS == 2 ? delta_value2((float)codes[j], scale)
                            : delta_value((float)codes[j], scale, top, per_level);
  }

  const int64_t kind_;
  const int bits_;
  const int64_t block_, rows_, cols_, blocks_, width_;
  const float low_, step_;
  const u32 key_;
  Buffer<u8> codes_;
};

// ---- the passes -----------------------------------------------------------------------------------

void squared_norm_rows(const SquaredNorm &a, int64_t first, int64_t last, Partial &partial, double *) {
  Sum sum;
  add_squares(sum, a.x + first * a.shape.cols, (last - first) * a.shape.cols);
  partial.sum[0] = sum.total();
}

// G = nu M^T p + mu (W - W_bar), M^T p in G
void weight_gradient_rows(const WeightGradient &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  const float nu = (float)a.nu, mu = (float)a.mu;
  Sum sum;
  for (int64_t row = first; row < last; ++row) {
    float *G = a.G + row * n;
    const float *W = a.W + row * n;
    if (a.W_bar) {
      const float *W_bar = a.W_bar + row * n;
      PDADMM_ELEMENTWISE
      for (int64_t j = 0; j < n; ++j) G[j] = weight_gradient(G[j], W[j], W_bar[j], nu, mu);
    } else {
      PDADMM_ELEMENTWISE
      for (int64_t j = 0; j < n; ++j) G[j] = weight_gradient(G[j], W[j], 0.0f, nu, mu);
    }
    add_squares(sum, G, n);
  }
  partial.sum[0] = sum.total();
}

// M <- M - length H
void subtract_rows(const Subtract &a, int64_t first, int64_t last, Partial &, double *) {
  const float length = (float)a.length;
  float *M = a.M;
  const float *H = a.H;
  PDADMM_ELEMENTWISE
  for (int64_t i = first * a.shape.cols; i < last * a.shape.cols; ++i) M[i] = step(M[i], H[i], length);
}

// M <- M - length K, and the sums of its columns
void subtract_mean_rows(const SubtractMean &a, int64_t first, int64_t last, Partial &, double *columns) {
  const int64_t n = a.shape.cols;
  const float length = (float)a.length;
  for (int64_t j = 0; j < n; ++j) columns[j] = 0.0;
  for (int64_t row = first; row < last; ++row) {
    float *M = a.M + row * n;
    const float *K = a.K + row * n;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) {
      M[j] = step(M[j], K[j], length);
      columns[j] += (double)M[j];
    }
  }
}

void column_sums_rows(const ColumnSums &a, int64_t first, int64_t last, Partial &, double *columns) {
  const int64_t n = a.shape.cols;
  for (int64_t j = 0; j < n; ++j) columns[j] = 0.0;
  for (int64_t row = first; row < last; ++row) {
    const float *x = a.x + row * n;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) columns[j] += (double)x[j];
  }
}

// M = p W^T + b - z, p W^T in M
void residual_rows(const Residual &a, int64_t first, int64_t last, Partial &, double *) {
  const int64_t n = a.shape.cols;
  for (int64_t row = first; row < last; ++row) {
    float *M = a.M + row * n;
    const float *z = a.z + row * n, *b = a.b;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) M[j] = (M[j] + b[j]) - z[j];
  }
}

// decode q; u <- u + rho (p - q); G = nu M W + u + rho (p - q), M W in G
void p_gradient_rows(const PGradient &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  const float nu = (float)a.nu, rho = (float)a.rho;
  RowCodec codec(a.coding, a.shape);
  Sum sum;
  for (int64_t row = first; row < last; ++row) {
    float *G = a.G + row * n, *q_hat = a.q_hat + row * n, *u = a.u + row * n;
    const float *p = a.p + row * n, *p_hat = a.p_hat + row * n;
    if (a.message) {
      codec.decode(a.message, row, q_hat);
      PDADMM_ELEMENTWISE
      for (int64_t j = 0; j < n; ++j) {
        u[j] = u_update(u[j], p_hat[j], q_hat[j], rho);
        G[j] = p_gradient(G[j], p[j], q_hat[j], u[j], nu, rho);
      }
    } else {
      PDADMM_ELEMENTWISE
      for (int64_t j = 0; j < n; ++j) G[j] = p_gradient(G[j], p[j], q_hat[j], u[j], nu, rho);
    }
    add_squares(sum, G, n);
  }
  partial.sum[0] = sum.total();
}

// p <- p - length G; encode p
void p_step_rows(const PStep &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  const float length = (float)a.length;
  RowCodec codec(a.coding, a.shape, a.key);
  for (int64_t row = first; row < last; ++row) {
    float *p = a.p + row * n;
    const float *G = a.G + row * n;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) p[j] = step(p[j], G[j], length);
    if (!codec.encode(p, row, a.p_hat + row * n, a.out)) partial.bad = 1;
  }
}

// change = project(p - length G) - p, what a step of pdADMM-G-Q would add to p
void projected_change_rows(const ProjectedChange &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  const float length = (float)a.length;
  RowCodec codec(a.coding, a.shape);
  Sum moved;
  for (int64_t row = first; row < last; ++row) {
    const float *p = a.p + row * n, *G = a.G + row * n;
    float *change = a.change + row * n;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) change[j] = step(p[j], G[j], length);
    codec.project(change);
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) change[j] -= p[j];
    add_squares(moved, change, n);
  }
  partial.sum[0] = moved.total();
}

// bias step, z-update, decode of p, q-update, encode of q, u-update
void hidden_rows(const Hidden &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  const float nu = (float)a.nu, rho = (float)a.rho, slope = (float)a.slope;
  const float below_curvature = (float)(2.0 + a.slope * a.slope);
  const bool fresh = a.fresh;
  RowCodec codec(a.coding, a.shape, a.key);
  Buffer<float> z_old(n), q_old(n), fz(n);
  Sum residual, relaxation, primal, dual, dz, dq;
  for (int64_t row = first; row < last; ++row) {
    float *M = a.M + row * n, *z = a.z + row * n, *q = a.q + row * n;
    float *p_hat = a.p_hat + row * n, *q_hat = a.q_hat + row * n, *u = a.u + row * n;
    const float *mean = a.mean;
    if (a.measure) {
      __builtin_memcpy(z_old.data, z, (size_t)n * 4);
      __builtin_memcpy(q_old.data, q, (size_t)n * 4);
    }
    codec.decode(a.message, row, p_hat);
    float *f = fz.data;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) {
      float centre = (M[j] - mean[j]) + (fresh ? 0.0f : z[j]);
      float z_new = z_update(centre, q[j], z[j], slope, below_curvature);
      M[j] = centre - z_new;
      z[j] = z_new;
      f[j] = activation(z_new, slope);
      q[j] = q_update(p_hat[j], u[j], f[j], nu, rho);
    }
    codec.project(q);
    if (!codec.encode(q, row, q_hat, a.out)) partial.bad = 1;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) u[j] = u_update(u[j], p_hat[j], q_hat[j], rho);
    if (a.measure) {
      add_squares(residual, M, n);
      add_squared_difference(relaxation, q, f, n);
      add_squared_difference(primal, p_hat, q_hat, n);
      add_product_with_difference(dual, u, p_hat, q_hat, n);
      add_squared_difference(dz, z, z_old.data, n);
      add_squared_difference(dq, q, q_old.data, n);
    }
  }
  const Sum *sums[6] = {&residual, &relaxation, &primal, &dual, &dz, &dq};
  for (int k = 0; k < 6; ++k) partial.sum[k] = sums[k]->total();
}

// argmin cross-entropy(z; y) + nu/2 |z - a|^2 of one node, by damped Newton from z
void newton(const float *a, float *z, int64_t y, float nu, int64_t n, float *s, float *g, float *d) {
  const float tolerance = 1e-6f;
  for (int iteration = 0; iteration < 50; ++iteration) {
    int top = ordered(z[0]);
    for (int64_t j = 1; j < n; ++j) top = ordered(z[j]) > top ? ordered(z[j]) : top;
    const float peak = from_ordered(top);
    for (int64_t j = 0; j < n; ++j) s[j] = exp_nonpositive(z[j] - peak);
    float total = 0;
    for (int64_t j = 0; j < n; ++j) total += s[j];
    for (int64_t j = 0; j < n; ++j) {
      s[j] /= total;
      g[j] = s[j] + nu * (z[j] - a[j]);
    }
    g[y] = (s[y] - 1.0f) + nu * (z[y] - a[y]);
    if (float_of((u32)largest_magnitude(g, n)) <= tolerance) return;
    // (diag(s + nu) - s s^T)^-1 g by Sherman-Morrison; 1 - sum(s^2/(s+nu)) = sum(nu s/(s+nu))
    float along = 0, denominator = 0;
    for (int64_t j = 0; j < n; ++j) {
      const float sd = s[j] / (s[j] + nu);
      d[j] = g[j] / (s[j] + nu);
      s[j] = sd;
      along += sd * g[j];
      denominator += nu * sd;
    }
    const float scale = along / denominator;
    float most = -HUGE_VALF, least = HUGE_VALF;
    for (int64_t j = 0; j < n; ++j) {
      d[j] += s[j] * scale;
      most = larger(most, d[j]);
      least = smaller(least, d[j]);
    }
    const float damping = newton_damping(most - least, log1pf(most - least));
    bool moved = false;
    for (int64_t j = 0; j < n; ++j) {
      const float next = z[j] - damping * d[j];
      moved |= next != z[j];
      z[j] = next;
    }
    if (!moved) return;
  }
}

// bias step and z-update of the output layer
void output_rows(const Output &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  const float nu = (float)a.nu, weight = (float)(1.0 + a.nu);
  Buffer<float> old(n), work(3 * n);
  Sum change;
  for (int64_t row = first; row < last; ++row) {
    float *M = a.M + row * n, *z = a.z + row * n;
    __builtin_memcpy(old.data, z, (size_t)n * 4);
    for (int64_t j = 0; j < n; ++j) M[j] = (M[j] - a.mean[j]) + (a.fresh ? 0.0f : z[j]);
    if (a.cross_entropy) {
      newton(M, z, a.y[row], nu, n, work.data, work.data + n, work.data + 2 * n);
    } else {
      for (int64_t j = 0; j < n; ++j) z[j] = (nu * M[j] + (j == a.y[row] ? 1.0f : 0.0f)) / weight;
    }
    for (int64_t j = 0; j < n; ++j) M[j] -= z[j];
    add_squared_difference(change, z, old.data, n);
  }
  partial.sum[0] = change.total();
}

void encode_rows(const Encode &a, int64_t first, int64_t last, Partial &partial, double *) {
  RowCodec codec(a.coding, a.shape, a.key);
  for (int64_t row = first; row < last; ++row)
    if (!codec.encode(a.x + row * a.shape.cols, row, a.hat + row * a.shape.cols, a.out)) partial.bad = 1;
}

void decode_rows(const Decode &a, int64_t first, int64_t last, Partial &, double *) {
  RowCodec codec(a.coding, a.shape);
  for (int64_t row = first; row < last; ++row) codec.decode(a.message, row, a.hat + row * a.shape.cols);
}

}  // namespace

#define PDADMM_TEXT_(x) #x
#define PDADMM_TEXT(x) PDADMM_TEXT_(x)

extern const Passes passes;
const Passes passes = {
    PDADMM_TEXT(PDADMM_ISA), squared_norm_rows, weight_gradient_rows,  subtract_rows, subtract_mean_rows,
    column_sums_rows,        residual_rows,     p_gradient_rows,       p_step_rows,   projected_change_rows,
    hidden_rows,             output_rows,       encode_rows,           decode_rows,
};

}  // namespace PDADMM_NAMESPACE
