// The passes of an iteration, a warp a row (a node); pdadmm/admm/passes/protocol.py says what each does.
//
// Squared norms leave as one sum a block, which `finish` adds up in order: the results do not depend
// on the order in which blocks run. Lengths of steps may still be on the device.
#include "codec.cuh"

namespace pdadmm {

// A number that the host knows, or one that a kernel before wrote.
PDADMM_FN float number(double value, const double *there) { return (float)(there ? *there : value); }

PDADMM_FN void add_squares(double &sum, const float (&x)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) sum += (double)(x[k] * x[k]);
}

// x <- x - length d: the four entries of a thread
PDADMM_FN void step4(float *x, const float *d, int n, bool wide, float length) {
  float v[4], along[4];
  load4(x, n, wide, v);
  load4(d, n, wide, along);
#pragma unroll
  for (int k = 0; k < 4; ++k) v[k] = step(v[k], along[k], length);
  store4(x, n, wide, v);
}

// Four entries of a flat array at a time, all threads of the grid.
PDADMM_FN i64 first_four() { return ((i64)blockIdx.x * blockDim.x + threadIdx.x) * 4; }
PDADMM_FN i64 four_stride() { return (i64)gridDim.x * blockDim.x * 4; }

// decode q; u <- u + rho (p - q); G = nu M W + u + rho (p - q), M W in G
template <int KIND, int BITS>
PDADMM_FN void p_gradient_rows(float *G, const float *p, const float *p_hat, float *q_hat, float *u,
                               const u8 *message, float nu, float rho, const RowCodec<KIND, BITS> &codec,
                               double *partial) {
  const i64 cols = codec.cols;
  const bool wide = is_wide(cols);
  double sum[1] = {0.0};
  for (i64 row = first_row(); row < codec.rows; row += row_stride())
    for (i64 j = first_column(); j < cols; j += TILE) {
      const i64 at = row * cols + j;
      const int n = columns_left(cols, j);
      float g[4], own[4], other[4] = {0.0f, 0.0f, 0.0f, 0.0f}, dual[4];
      load4(G + at, n, wide, g);
      load4(p + at, n, wide, own);
      load4(u + at, n, wide, dual);
      if (!message || KIND == DELTA) load4(q_hat + at, n, wide, other);
      if (message) {
        float sent[4];
        load4(p_hat + at, n, wide, sent);
        codec.decode(message, row, j, n, other);
#pragma unroll
        for (int k = 0; k < 4; ++k) dual[k] = u_update(dual[k], sent[k], other[k], rho);
        store4(q_hat + at, n, wide, other);
        store4(u + at, n, wide, dual);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) g[k] = k < n ? p_gradient(g[k], own[k], other[k], dual[k], nu, rho) : 0.0f;
      store4(G + at, n, wide, g);
      add_squares(sum[0], g);
    }
  block_sums(sum, partial);
}

// p <- p - length G; encode p: a row
template <int KIND, int BITS>
PDADMM_FN void p_step_row(float *p, const float *G, float length, float *p_hat, u8 *out, i64 row,
                          const RowCodec<KIND, BITS> &codec, bool &finite) {
  const i64 cols = codec.cols;
  const bool wide = is_wide(cols);
  Range range;
  for (i64 start = 0; start < cols; start += TILE) {
    const i64 j = start + first_column(), at = row * cols + j;
    const int n = columns_left(cols, j);
    float x[4], g[4], hat[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load4(p + at, n, wide, x);
    load4(G + at, n, wide, g);
    if (KIND == DELTA) load4(p_hat + at, n, wide, hat);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = step(x[k], g[k], length);
    finite = finite && all_finite(x);
    store4(p + at, n, wide, x);
    if (KIND == AFFINE) {
      range.add(x, n);
    } else {
      codec.encode(x, row, j, n, out, 0.0f, 0.0f, hat);
      if (KIND != FLOAT32 || p_hat != p) store4(p_hat + at, n, wide, hat);
    }
  }
  if (KIND == AFFINE) {
    float base, scale;
    codec.head(range.least, range.greatest, row, out, base, scale);
    for (i64 start = 0; start < cols; start += TILE) {
      const i64 j = start + first_column(), at = row * cols + j;
      const int n = columns_left(cols, j);
      float x[4], hat[4];
      load4(p + at, n, wide, x);
      codec.encode(x, row, j, n, out, base, scale, hat);
      store4(p_hat + at, n, wide, hat);
    }
  }
}

template <int KIND, int BITS>
PDADMM_FN void p_step_rows(float *p, const float *G, float length, float *p_hat, u8 *out,
                           const RowCodec<KIND, BITS> &codec, int *bad) {
  bool finite = true;
  for (i64 row = first_row(); row < codec.rows; row += row_stride())
    p_step_row(p, G, length, p_hat, out, row, codec, finite);
  if (!finite) *bad = 1;
}

// |x_row|^2, the same in all lanes
PDADMM_FN double row_squares(const float *x, i64 row, i64 cols) {
  const bool wide = is_wide(cols);
  double sum = 0.0;
  for (i64 j = first_column(); j < cols; j += TILE) {
    float v[4];
    load4(x + row * cols + j, columns_left(cols, j), wide, v);
    add_squares(sum, v);
  }
  return warp_total(sum);
}

// x_row <- x_row - length d_row
PDADMM_FN void step_row(float *x, const float *d, float length, i64 row, i64 cols) {
  for (i64 j = first_column(); j < cols; j += TILE)
    step4(x + row * cols + j, d + row * cols + j, columns_left(cols, j), is_wide(cols), length);
}

// The exact line search of every row, in p and M; encode p
template <int KIND, int BITS>
PDADMM_FN void p_line_search_rows(float *p, const float *G, float *M, const float *H, i64 outputs, double nu,
                                  double rho, float *p_hat, u8 *out, const RowCodec<KIND, BITS> &codec,
                                  double *partial, int *bad) {
  bool finite = true;
  double sum[1] = {0.0};
  for (i64 row = first_row(); row < codec.rows; row += row_stride()) {
    const double norm = row_squares(G, row, codec.cols);
    const double length = line_length(rho, nu, row_squares(H, row, outputs), norm);
    step_row(M, H, (float)length, row, outputs);
    p_step_row(p, G, (float)length, p_hat, out, row, codec, finite);
    if (threadIdx.x % 32 == 0) sum[0] += length * norm;
  }
  block_sums(sum, partial);
  if (!finite) *bad = 1;
}

// change = project(p - length G) - p on the grid
template <int BITS>
PDADMM_FN void projected_change_rows(float *change, const float *p, const float *G, float length, i64 count,
                                     float low, float size, double *partial) {
  const float top = (float)((1 << BITS) - 1);
  double sum[1] = {0.0};
  for (i64 i = first_four(); i < count; i += four_stride()) {
    const int n = columns_left(count, i);
    float x[4], g[4];
    load4(p + i, n, true, x);
    load4(G + i, n, true, g);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float target = step(x[k], g[k], length);
      const float value = grid_value(grid_code(target, low, 1.0f / size, top), low, size);
      x[k] = k < n ? (magnitude(target) < INFINITE ? value : target) - x[k] : 0.0f;
    }
    store4(change + i, n, true, x);
    add_squares(sum[0], x);
  }
  block_sums(sum, partial);
}

struct HiddenArrays {
  float *M;
  const float *mean;
  float *z, *q, *p_hat, *q_hat, *u;
  const u8 *message;  // may be null: p_hat has been decoded
  u8 *out;
};

// u-update of four columns, with the sums of primal residual and dual term
PDADMM_FN void dual_update(const HiddenArrays &a, i64 at, int n, bool wide, const float (&p_hat)[4],
                           const float (&q_hat)[4], float rho, double (&sum)[6]) {
  float u[4];
  load4(a.u + at, n, wide, u);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    u[k] = u_update(u[k], p_hat[k], q_hat[k], rho);
    if (k < n) {
      const float gap = p_hat[k] - q_hat[k];
      sum[2] += (double)(gap * gap);
      sum[3] += (double)(u[k] * gap);
    }
  }
  store4(a.u + at, n, wide, u);
}

// bias step, z-update, decode of p, q-update, encode of q, u-update; fresh: M has p W^T, mean -b
template <int KIND, int BITS>
PDADMM_FN void hidden_rows(const HiddenArrays &a, float nu, float rho, float slope, int fresh,
                           const RowCodec<KIND, BITS> &codec, double *partial, int *bad) {
  const i64 cols = codec.cols;
  const bool wide = is_wide(cols), apart = a.q_hat != a.q;
  const float below_curvature = (float)(2.0 + (double)slope * (double)slope);
  bool finite = true;
  double sum[6] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  for (i64 row = first_row(); row < codec.rows; row += row_stride()) {
    Range range;
    for (i64 start = 0; start < cols; start += TILE) {
      const i64 j = start + first_column(), at = row * cols + j;
      const int n = columns_left(cols, j);
      float M[4], mean[4], z[4], q[4], p_hat[4] = {0.0f, 0.0f, 0.0f, 0.0f}, u[4], fz[4], q_old[4];
      load4(a.M + at, n, wide, M);
      load4(a.mean + j, n, wide, mean);
      load4(a.z + at, n, wide, z);
      load4(a.q + at, n, wide, q_old);
      load4(a.u + at, n, wide, u);
      if (KIND == DELTA || !a.message) load4(a.p_hat + at, n, wide, p_hat);
      if (a.message) {
        codec.decode(a.message, row, j, n, p_hat);
        store4(a.p_hat + at, n, wide, p_hat);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float centre = (M[k] - mean[k]) + (fresh ? 0.0f : z[k]);
        const float z_new = z_update(centre, q_old[k], z[k], slope, below_curvature);
        M[k] = centre - z_new;
        fz[k] = activation(z_new, slope);
        q[k] = q_update(p_hat[k], u[k], fz[k], nu, rho);
        if (k < n) {
          sum[0] += (double)square(M[k]);
          sum[4] += (double)square(z_new - z[k]);
        }
        z[k] = z_new;
      }
      finite = finite && all_finite(q);
      store4(a.M + at, n, wide, M);
      store4(a.z + at, n, wide, z);
      if (KIND == AFFINE) {
        range.add(q, n);
      } else {
        float q_hat[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (KIND == DELTA) load4(a.q_hat + at, n, wide, q_hat);
        codec.encode(q, row, j, n, a.out, 0.0f, 0.0f, q_hat);
        if (apart) store4(a.q_hat + at, n, wide, q_hat);
        if (KIND == GRID) {  // q itself moves to the grid
#pragma unroll
          for (int k = 0; k < 4; ++k) q[k] = q_hat[k];
        }
        dual_update(a, at, n, wide, p_hat, q_hat, rho, sum);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (k < n) {
          sum[1] += (double)square(q[k] - fz[k]);
          sum[5] += (double)square(q[k] - q_old[k]);
        }
      store4(a.q + at, n, wide, q);
    }
    if (KIND == AFFINE) {
      float base, scale;
      codec.head(range.least, range.greatest, row, a.out, base, scale);
      for (i64 start = 0; start < cols; start += TILE) {
        const i64 j = start + first_column(), at = row * cols + j;
        const int n = columns_left(cols, j);
        float q[4], p_hat[4], q_hat[4];
        load4(a.q + at, n, wide, q);
        load4(a.p_hat + at, n, wide, p_hat);
        codec.encode(q, row, j, n, a.out, base, scale, q_hat);
        store4(a.q_hat + at, n, wide, q_hat);
        dual_update(a, at, n, wide, p_hat, q_hat, rho, sum);
      }
    }
  }
  block_sums(sum, partial);
  if (!finite) *bad = 1;
}

// argmin cross-entropy(z; y) + nu/2 |z - a|^2 of one node by damped Newton from z, a warp a node.
// The softmax is recomputed in every pass over the classes, so that any number of them works.
PDADMM_FN void newton(const float *a, float *z, i64 y, float nu, i64 classes) {
  const i64 lane = threadIdx.x % 32;
  for (int iteration = 0; iteration < 50; ++iteration) {
    int top = -0x7fffffff - 1;
    for (i64 j = lane; j < classes; j += 32) top = ordered(z[j]) > top ? ordered(z[j]) : top;
    const float peak = from_ordered(warp_max(top));
    float total = 0.0f;
    for (i64 j = lane; j < classes; j += 32) total += exp_nonpositive(z[j] - peak);
    total = warp_total(total);
    float along = 0.0f, denominator = 0.0f;
    for (i64 j = lane; j < classes; j += 32) {
      const float s = exp_nonpositive(z[j] - peak) / total;
      const float g = (s - (j == y ? 1.0f : 0.0f)) + nu * (z[j] - a[j]);
      along += (z[j] - a[j]) - g / (s + nu);
      denominator += s / (s + nu);
    }
    const float scale = warp_total(along) / warp_total(denominator);
    int most = -0x7fffffff - 1, least = 0x7fffffff, far = 0;
    for (i64 j = lane; j < classes; j += 32) {
      const float s = exp_nonpositive(z[j] - peak) / total;
      const float g = (s - (j == y ? 1.0f : 0.0f)) + nu * (z[j] - a[j]);
      const float step = g / (s + nu) + s / (s + nu) * scale;
      const int d = ordered(step);
      most = d > most ? d : most;
      least = d < least ? d : least;
      if (newton_goes_on(step, z[j])) far = 1;
    }
    const float spread = from_ordered(warp_max(most)) - from_ordered(warp_min(least));
    const float damping = newton_damping(spread, log1pf(spread));
    int moved = 0;
    for (i64 j = lane; j < classes; j += 32) {
      const float s = exp_nonpositive(z[j] - peak) / total;
      const float g = (s - (j == y ? 1.0f : 0.0f)) + nu * (z[j] - a[j]);
      const float next = z[j] - damping * (g / (s + nu) + s / (s + nu) * scale);
      if (next != z[j]) moved = 1;
      z[j] = next;
    }
    if (!warp_max(moved) || !warp_max(far)) return;
  }
}

}  // namespace pdadmm

using namespace pdadmm;

// Two blocks a multiprocessor leave 128 registers a thread, which every pass fits in.
#define PDADMM_KERNEL extern "C" __global__ void __launch_bounds__(256, 2)

#define PDADMM_KERNELS(name, KIND, BITS)                                                                     \
  PDADMM_KERNEL p_gradient_##name(float *G, const float *p, const float *p_hat, float *q_hat, float *u,      \
                                  const u8 *message, float nu, float rho, i64 rows, i64 cols, float low,     \
                                  float size, double *partial) {                                             \
    p_gradient_rows(G, p, p_hat, q_hat, u, message, nu, rho,                                                 \
                    RowCodec<KIND, BITS>{rows, cols, low, size, 0}, partial);                                \
  }                                                                                                          \
  PDADMM_KERNEL p_step_##name(float *p, const float *G, double length, const double *length_there,          \
                              float *p_hat, u8 *out, i64 rows, i64 cols, float low, float size, u32 key,     \
                              int *bad) {                                                                    \
    p_step_rows(p, G, number(length, length_there), p_hat, out,                                              \
                RowCodec<KIND, BITS>{rows, cols, low, size, key}, bad);                                      \
  }                                                                                                          \
  PDADMM_KERNEL p_line_search_##name(float *p, const float *G, float *M, const float *H, i64 outputs,        \
                                     double nu, double rho, float *p_hat, u8 *out, i64 rows, i64 cols,       \
                                     float low, float size, u32 key, int *bad, double *partial) {            \
    p_line_search_rows(p, G, M, H, outputs, nu, rho, p_hat, out,                                             \
                       RowCodec<KIND, BITS>{rows, cols, low, size, key}, partial, bad);                      \
  }                                                                                                          \
  PDADMM_KERNEL hidden_##name(float *M, const float *mean, float *z, float *q, float *p_hat, float *q_hat,   \
                              float *u, const u8 *message, u8 *out, float nu, float rho, float slope,        \
                              int fresh, i64 rows, i64 cols, float low, float size, u32 key,                 \
                              double *partial, int *bad) {                                                   \
    hidden_rows(HiddenArrays{M, mean, z, q, p_hat, q_hat, u, message, out}, nu, rho, slope, fresh,           \
                RowCodec<KIND, BITS>{rows, cols, low, size, key}, partial, bad);                             \
  }

PDADMM_CODECS(PDADMM_KERNELS)

#define PDADMM_GRID_KERNELS(BITS)                                                                         \
  PDADMM_KERNEL projected_change_grid##BITS(float *change, const float *p, const float *G, double length, \
                                            const double *length_there, i64 count, float low, float size, \
                                            double *partial) {                                            \
    projected_change_rows<BITS>(change, p, G, number(length, length_there), count, low, size, partial);   \
  }

PDADMM_GRID_KERNELS(8)
PDADMM_GRID_KERNELS(4)
PDADMM_GRID_KERNELS(2)

PDADMM_KERNEL squared_norm(const float *x, i64 count, double *partial) {
  double sum[1] = {0.0};
  for (i64 i = first_four(); i < count; i += four_stride()) {
    float v[4];
    load4(x + i, columns_left(count, i), true, v);
    add_squares(sum[0], v);
  }
  block_sums(sum, partial);
}

// G = nu M^T p + mu (W - W_bar), M^T p in G; W_bar may be null
PDADMM_KERNEL weight_gradient_pass(float *G, const float *W, const float *W_bar, float nu, float mu, i64 count,
                                   double *partial) {
  double sum[1] = {0.0};
  for (i64 i = first_four(); i < count; i += four_stride()) {
    const int n = columns_left(count, i);
    float g[4], w[4], anchor[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load4(G + i, n, true, g);
    load4(W + i, n, true, w);
    if (W_bar) load4(W_bar + i, n, true, anchor);
#pragma unroll
    for (int k = 0; k < 4; ++k) g[k] = weight_gradient(g[k], w[k], anchor[k], nu, mu);
    store4(G + i, n, true, g);
    add_squares(sum[0], g);
  }
  block_sums(sum, partial);
}

// M <- M - length H
PDADMM_KERNEL subtract(float *M, const float *H, double length, const double *length_there, i64 count) {
  const float by = number(length, length_there);
  for (i64 i = first_four(); i < count; i += four_stride()) step4(M + i, H + i, columns_left(count, i), true, by);
}

// M = p W^T + b - z, p W^T in M
PDADMM_KERNEL residual(float *M, const float *b, const float *z, i64 rows, i64 cols) {
  const bool wide = is_wide(cols);
  for (i64 row = first_row(); row < rows; row += row_stride())
    for (i64 j = first_column(); j < cols; j += TILE) {
      const i64 at = row * cols + j;
      const int n = columns_left(cols, j);
      float m[4], bias[4], v[4];
      load4(M + at, n, wide, m);
      load4(b + j, n, wide, bias);
      load4(z + at, n, wide, v);
#pragma unroll
      for (int k = 0; k < 4; ++k) m[k] = (m[k] + bias[k]) - v[k];
      store4(M + at, n, wide, m);
    }
}

// W_j <- W_j - length_j G_j, the exact line search of every row
PDADMM_KERNEL weight_line_search(float *W, const float *G, const double *images, double *lengths, double nu,
                                 double mu, i64 rows, i64 cols, double *partial) {
  double sum[1] = {0.0};
  for (i64 row = first_row(); row < rows; row += row_stride()) {
    const double norm = row_squares(G, row, cols), length = line_length(mu, nu, images[row], norm);
    step_row(W, G, (float)length, row, cols);
    if (threadIdx.x % 32 == 0) {
      lengths[row] = length;
      sum[0] += length * norm;
    }
  }
  block_sums(sum, partial);
}

// Sums of the columns of M over the rows of blockIdx.y, or of their squares; after M <- M - length K where K is
// given, with a length a column where `own_lengths` is set.
// Blocks of WARPS warps: a block has 128 columns, a warp every WARPS-th of its rows.
PDADMM_KERNEL column_sums(float *M, const float *K, double length, const double *length_there, int own_lengths,
                          int squares, i64 rows, i64 cols, double *partial) {
  __shared__ double of_warp[WARPS][TILE];
  const bool wide = is_wide(cols);
  const i64 j = (i64)blockIdx.x * TILE + first_column();
  const int n = columns_left(cols, j), warp = threadIdx.x / 32;
  float by[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int k = 0; K && k < n; ++k) by[k] = number(length, own_lengths ? length_there + j + k : length_there);
  const i64 each = (rows + gridDim.y - 1) / gridDim.y;
  const i64 first = each * blockIdx.y, last = first + each < rows ? first + each : rows;
  double sum[4] = {0.0, 0.0, 0.0, 0.0};
  for (i64 row = first + warp; row < last; row += WARPS) {
    float m[4], k4[4];
    load4(M + row * cols + j, n, wide, m);
    if (K) {
      load4(K + row * cols + j, n, wide, k4);
#pragma unroll
      for (int k = 0; k < 4; ++k) m[k] = step(m[k], k4[k], by[k]);
      store4(M + row * cols + j, n, wide, m);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) sum[k] += (double)(squares ? m[k] * m[k] : m[k]);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) of_warp[warp][first_column() + k] = sum[k];
  __syncthreads();
  if (threadIdx.x < TILE && (i64)blockIdx.x * TILE + threadIdx.x < cols) {
    double total = 0.0;
    for (int w = 0; w < WARPS; ++w) total += of_warp[w][threadIdx.x];
    partial[blockIdx.y * cols + (i64)blockIdx.x * TILE + threadIdx.x] = total;
  }
}

// Sums of the columns from those of column_sums, in float64.
PDADMM_KERNEL column_totals(const double *partial, i64 chunks, i64 cols, double *sums) {
  const i64 j = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (j >= cols) return;
  double total = 0.0;
  for (i64 i = 0; i < chunks; ++i) total += partial[i * cols + j];
  sums[j] = total;
}

// mean = sums / nodes; b <- b - mean
PDADMM_KERNEL bias_step(const double *sums, i64 nodes, i64 cols, float *b, float *mean) {
  const i64 j = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (j >= cols) return;
  mean[j] = (float)(sums[j] / (double)nodes);
  b[j] = b[j] - mean[j];
}

// bias step and z-update of the output layer
PDADMM_KERNEL output(float *M, const float *mean, float *z, const i64 *y, float nu, int cross_entropy,
                     int fresh, i64 rows, i64 classes, float *old, double *partial) {
  const i64 lane = threadIdx.x % 32;
  const float weight = (float)(1.0 + (double)nu);
  double sum[1] = {0.0};
  for (i64 row = first_row(); row < rows; row += row_stride()) {
    float *a = M + row * classes, *own = z + row * classes, *before = old + row * classes;
    for (i64 j = lane; j < classes; j += 32) {
      before[j] = own[j];
      a[j] = (a[j] - mean[j]) + (fresh ? 0.0f : own[j]);
    }
    if (cross_entropy) {
      newton(a, own, y[row], nu, classes);
    } else {
      for (i64 j = lane; j < classes; j += 32)
        own[j] = (nu * a[j] + (j == y[row] ? 1.0f : 0.0f)) / weight;
    }
    for (i64 j = lane; j < classes; j += 32) {
      a[j] -= own[j];
      sum[0] += (double)square(own[j] - before[j]);
    }
  }
  block_sums(sum, partial);
}

// Sums of `count` numbers a block, in the order of the blocks.
PDADMM_KERNEL finish(const double *partial, int blocks, int count, double *sums) {
  const int k = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (k >= count) return;
  double total = 0.0;
  for (int i = lane; i < blocks; i += 32) total += partial[i * count + k];
  total = warp_total(total);
  if (lane == 0) sums[k] = total;
}
