// The passes over rows on CPUs. Compiled once an instruction set, with PDADMM_NAMESPACE naming it.
//
// A pass runs through its rows one by one: decode, arithmetic and encode of a row follow each other
// while it is in the first-level cache, so that every array crosses the memory bus once. The loops
// are written for the compiler to vectorise.
#include "passes.h"

#include "newton.h"
#include "row_codec.h"

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
  Buffer<float> length(n);
  for (int64_t j = 0; j < n; ++j) length.data[j] = (float)(a.lengths ? a.lengths[j] : a.length);
  const float *by = length.data;
  for (int64_t j = 0; j < n; ++j) columns[j] = 0.0;
  for (int64_t row = first; row < last; ++row) {
    float *M = a.M + row * n;
    const float *K = a.K + row * n;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) {
      M[j] = step(M[j], K[j], by[j]);
      columns[j] += (double)M[j];
    }
  }
}

// Sums of the columns, or of their squares
template <bool SQUARES>
void column_sums_rows(const ColumnSums &a, int64_t first, int64_t last, Partial &, double *columns) {
  const int64_t n = a.shape.cols;
  for (int64_t j = 0; j < n; ++j) columns[j] = 0.0;
  for (int64_t row = first; row < last; ++row) {
    const float *x = a.x + row * n;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) columns[j] += (double)(SQUARES ? x[j] * x[j] : x[j]);
  }
}

// W_j <- W_j - length_j G_j, the exact line search of every row
void weight_line_search_rows(const WeightLineSearch &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  for (int64_t row = first; row < last; ++row) {
    float *W = a.W + row * n;
    const float *G = a.G + row * n;
    Sum norm;
    add_squares(norm, G, n);
    const double squares = norm.total(), exact = line_length(a.mu, a.nu, a.images[row], squares);
    const float length = (float)exact;
    a.lengths[row] = exact;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) W[j] = step(W[j], G[j], length);
    partial.sum[0] += exact * squares;
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

// p_v <- p_v - length_v G_v and M_v <- M_v - length_v H_v, the exact line search of every row; encode p
void p_line_search_rows(const PLineSearch &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols, outputs = a.outputs;
  RowCodec codec(a.coding, a.shape, a.key);
  for (int64_t row = first; row < last; ++row) {
    float *p = a.p + row * n, *M = a.M + row * outputs;
    const float *G = a.G + row * n, *H = a.H + row * outputs;
    Sum norm, image;
    add_squares(norm, G, n);
    add_squares(image, H, outputs);
    const double squares = norm.total(), exact = line_length(a.rho, a.nu, image.total(), squares);
    const float length = (float)exact;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < outputs; ++j) M[j] = step(M[j], H[j], length);
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) p[j] = step(p[j], G[j], length);
    if (!codec.encode(p, row, a.p_hat + row * n, a.out)) partial.bad = 1;
    partial.sum[0] += exact * squares;
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
    if (a.message) codec.decode(a.message, row, p_hat);
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

// bias step and z-update of the output layer
void output_rows(const Output &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  const float nu = (float)a.nu, weight = (float)(1.0 + a.nu);
  Buffer<float> old(n * NODES);
  Newton newton(n);
  Sum change;
  for (int64_t start = first; start < last; start += NODES) {
    const int nodes = (int)(start + NODES < last ? NODES : last - start);
    float *M = a.M + start * n, *z = a.z + start * n;
    const int64_t *y = a.y + start;
    __builtin_memcpy(old.data, z, (size_t)(nodes * n) * 4);
    for (int i = 0; i < nodes; ++i)
      for (int64_t j = 0, at = i * n; j < n; ++j, ++at) M[at] = (M[at] - a.mean[j]) + (a.fresh ? 0.0f : z[at]);
    if (a.cross_entropy) {
      newton.solve(M, z, y, nu, nodes);
    } else {
      for (int i = 0; i < nodes; ++i)
        for (int64_t j = 0, at = i * n; j < n; ++j, ++at)
          z[at] = (nu * M[at] + (j == y[i] ? 1.0f : 0.0f)) / weight;
    }
    for (int64_t j = 0; j < nodes * n; ++j) M[j] -= z[j];
    for (int i = 0; i < nodes; ++i) add_squared_difference(change, z + i * n, old.data + i * n, n);
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
    PDADMM_TEXT(PDADMM_ISA), squared_norm_rows,       weight_gradient_rows,    subtract_rows,
    subtract_mean_rows,      column_sums_rows<false>, column_sums_rows<true>,  weight_line_search_rows,
    residual_rows,           p_gradient_rows,         p_step_rows,             p_line_search_rows,
    projected_change_rows,   hidden_rows,             output_rows,             encode_rows,
    decode_rows,
};

}  // namespace PDADMM_NAMESPACE
