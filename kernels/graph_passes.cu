// The passes of graph networks; pdadmm/gnn/passes/protocol.py says what each does.
//
// Sums over the entries of a row, and over the neighbours of a node, are in the order of the host's
// (graph_passes.cpp, aggregate.h), so that they have the same bits. Sums over rows are float64, by blocks
// whose number depends on the shape alone, added up in order.
#include "codec.cuh"
#include "graph_arithmetic.h"

#define PDADMM_KERNEL extern "C" __global__ void __launch_bounds__(256)

namespace pdadmm {

PDADMM_FN bool is_aligned(const void *x) { return ((size_t)x & 15) == 0; }

PDADMM_FN i64 first_thread() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
PDADMM_FN i64 thread_stride() { return (i64)gridDim.x * blockDim.x; }

// ---- sparse times dense ---------------------------------------------------------------------------

// Entries whose rows of X are asked for before the first one is added: they come from anywhere in memory
const int AHEAD = 4;

// LANES threads a row, with four columns each; blockIdx.y counts the pieces of a longer row
template <int LANES>
PDADMM_FN void aggregate_rows(const i64 *indptr, const int *indices, const float *values, const float *X,
                              float *out, i64 rows, i64 cols, bool add) {
  const i64 j = ((i64)blockIdx.y * LANES + threadIdx.x % LANES) * 4;
  const int n = columns_left(cols, j);
  if (!n) return;
  const bool wide = is_wide(cols) && is_aligned(X) && is_aligned(out);
  for (i64 row = first_thread() / LANES; row < rows; row += thread_stride() / LANES) {
    const i64 end = indptr[row + 1];
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    i64 e = indptr[row];
    for (; e + AHEAD <= end; e += AHEAD) {
      float x[AHEAD][4];
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) load4(X + indices[e + a] * cols + j, n, wide, x[a]);
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
        const float value = values[e + a];
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[k] += value * x[a][k];
      }
    }
    for (; e < end; ++e) {
      float x[4];
      load4(X + indices[e] * cols + j, n, wide, x);
      const float value = values[e];
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[k] += value * x[k];
    }
    if (add) {
      float before[4];
      load4(out + row * cols + j, n, wide, before);
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[k] = before[k] + sum[k];
    }
    store4(out + row * cols + j, n, wide, sum);
  }
}

// ---- rows of sixteen threads ------------------------------------------------------------------------

// As many as the host has running sums in a row: two rows a warp
const int LANES = 16;
const int GROUPS = 256 / LANES;  // of a block
PDADMM_FN int lane() { return (int)(threadIdx.x % LANES); }
PDADMM_FN int group() { return (int)(threadIdx.x / LANES); }

// term(0) + ... + term(n - 1) on all lanes: running sums folded in halves, then what is beyond the last
// sixteen. A term is asked for by the lane that has its column; all lanes of the warp take part.
template <class Term>
PDADMM_FN float row_sum(i64 n, Term term) {
  const i64 whole = n / LANES * LANES;
  const int left = (int)(n - whole);
  float sum = 0.0f, rest = 0.0f;
  for (i64 j = lane(); j < whole; j += LANES) sum += term(j);
#pragma unroll
  for (int width = LANES / 2; width; width /= 2) sum += __shfl_xor_sync(ALL, sum, width);
  const float last = lane() < left ? term(whole + lane()) : 0.0f;
  for (int k = 0; k < left; ++k) rest += __shfl_sync(ALL, last, k, LANES);
  return sum + rest;
}

PDADMM_FN int group_max(int x) {
#pragma unroll
  for (int width = LANES / 2; width; width /= 2) {
    const int other = __shfl_xor_sync(ALL, x, width);
    x = other > x ? other : x;
  }
  return x;
}

// ---- hidden layers ----------------------------------------------------------------------------------

struct Mask {
  int threshold;  // of 2^24; 0: nothing is dropped
  bool first;     // before the norm
  float scale;
  u32 key;

  PDADMM_FN bool before_norm() const { return threshold && first; }
  PDADMM_FN bool after_activation() const { return threshold && !first; }
  // What an entry is multiplied by
  PDADMM_FN float of(u32 drawn, i64 column) const {
    return kept(dropout_keeps(drawn, (u32)column * DROPOUT_STRIDE, threshold), scale);
  }
};

// Gradient of the norm's output
PDADMM_FN float activation_gradient(float g, float n, float gamma, float beta, const Mask &mask, u32 drawn,
                                    i64 column) {
  if (mask.after_activation()) g *= mask.of(drawn, column);
  return norm_affine(n, gamma, beta) > 0.0f ? g : 0.0f;
}

// Rows of a block at a time in the backward pass: what it reads twice stays in the cache
const int ROWS = 4 * GROUPS;

// ---- messages ---------------------------------------------------------------------------------------

// The largest of a number of every thread, on all threads of the block
PDADMM_FN int block_max(int x) {
  __shared__ int of_warp[WARPS];
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  for (int w = 0; w < WARPS; ++w) x = of_warp[w] > x ? of_warp[w] : x;
  return x;
}

PDADMM_FN int largest_of(const float (&x)[4]) {
  int most = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) most = magnitude(x[k]) > most ? magnitude(x[k]) : most;
  return most;
}

PDADMM_FN void scale4(float (&x)[4], float by) {
#pragma unroll
  for (int k = 0; k < 4; ++k) x[k] *= by;
}

// Behind its exponent a message of rows is one of the affine codec, of what is scaled by 2^-exponent.
const int BODY = 4;

template <int BITS>
PDADMM_FN void encode_affine_rows(const float *X, const int *chosen, u8 *out, i64 rows, i64 cols, u32 key,
                                  float down) {
  const RowCodec<AFFINE, BITS> codec{rows, cols, 0.0f, 0.0f, key};
  const bool wide = is_wide(cols) && is_aligned(X);
  u8 *body = out + BODY;
  for (i64 row = first_row(); row < rows; row += row_stride()) {
    const float *x = X + chosen[row] * cols;
    Range range;
    for (i64 j = first_column(); j < cols; j += TILE) {
      float v[4];
      const int n = columns_left(cols, j);
      load4(x + j, n, wide, v);
      scale4(v, down);
      range.add(v, n);
    }
    float base, scale;
    codec.head(range.least, range.greatest, row, body, base, scale);
    for (i64 start = 0; start < cols; start += TILE) {
      const i64 j = start + first_column();
      float v[4], hat[4];
      const int n = columns_left(cols, j);
      load4(x + j, n, wide, v);
      scale4(v, down);
      codec.encode(v, row, j, n, body, base, scale, hat);
    }
  }
  if (first_thread() == 0)
    for (i64 at = BODY + 4 * rows + rows * codec.width(); at & 3; ++at) out[at] = 0;
}

template <int BITS>
PDADMM_FN void decode_affine_rows(const u8 *message, const int *chosen, float *X, i64 rows, i64 cols) {
  const RowCodec<AFFINE, BITS> codec{rows, cols, 0.0f, 0.0f, 0};
  const bool wide = is_wide(cols) && is_aligned(X);
  const float up = power_of_two(*reinterpret_cast<const int *>(message));
  for (i64 row = first_row(); row < rows; row += row_stride())
    for (i64 j = first_column(); j < cols; j += TILE) {
      float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      const int n = columns_left(cols, j);
      codec.decode(message + BODY, row, j, n, v);
      scale4(v, up);
      store4(X + chosen[row] * cols + j, n, wide, v);
    }
}

}  // namespace pdadmm

using namespace pdadmm;

#define PDADMM_AGGREGATE(LANES)                                                                         \
  PDADMM_KERNEL aggregate##LANES(const i64 *indptr, const int *indices, const float *values,            \
                                 const float *X, float *out, i64 rows, i64 cols, int add) {             \
    aggregate_rows<LANES>(indptr, indices, values, X, out, rows, cols, add != 0);                       \
  }
PDADMM_AGGREGATE(4)
PDADMM_AGGREGATE(8)
PDADMM_AGGREGATE(16)
PDADMM_AGGREGATE(32)

// N may be Z: a column is read and written by one lane alone
PDADMM_KERNEL hidden(const float *Z, const float *bias, const float *gamma, const float *beta,
                     const i64 *nodes, float *N, float *inverse, float *H, i64 rows, i64 cols, int threshold,
                     int first, float scale, u32 key) {
  const Mask mask{threshold, first != 0, scale, key};
  const float count = (float)cols;
  for (i64 start = (i64)blockIdx.x * GROUPS; start < rows; start += (i64)gridDim.x * GROUPS) {
    const i64 row = start + group();
    const bool present = row < rows;
    const u32 drawn = dropout_row(key, present ? (u32)nodes[row] : 0);
    const float *z = Z + row * cols;
    const auto input = [&](i64 j) {
      float x = present ? z[j] + bias[j] : 0.0f;
      if (mask.before_norm()) x *= mask.of(drawn, j);
      return x;
    };
    const float mean = row_sum(cols, input) / count;
    // of what the mean's rounding leaves, as on the host
    const auto centred = [&](i64 j) { return input(j) - mean; };
    const float left = row_sum(cols, centred) / count;
    const float squares = row_sum(cols, [&](i64 j) {
      const float x = centred(j);
      return x * x;
    });
    const float variance = positive_part(squares / count - left * left);
    const float by = 1.0f / square_root(variance + NORM_EPSILON);
    if (!present) continue;
    if (lane() == 0) inverse[row] = by;
    for (i64 j = lane(); j < cols; j += LANES) {
      const float n = (centred(j) - left) * by;
      float h = positive_part(norm_affine(n, gamma[j], beta[j]));
      if (mask.after_activation()) h *= mask.of(drawn, j);
      N[row * cols + j] = n;
      H[row * cols + j] = h;
    }
  }
}

// The block's sums for gamma, beta and the bias go to partial, (blocks, 3, cols).
PDADMM_KERNEL hidden_backward(float *G, const float *N, const float *inverse, const float *gamma,
                              const float *beta, const i64 *nodes, i64 rows, i64 cols, int threshold,
                              int first, float scale, u32 key, double *partial) {
  const Mask mask{threshold, first != 0, scale, key};
  const float count = (float)cols;
  double *of_gamma = partial + (i64)blockIdx.x * 3 * cols, *of_beta = of_gamma + cols,
         *of_bias = of_beta + cols;
  for (i64 j = threadIdx.x; j < cols; j += blockDim.x) of_gamma[j] = of_beta[j] = of_bias[j] = 0.0;
  for (i64 start = (i64)blockIdx.x * ROWS; start < rows; start += (i64)gridDim.x * ROWS) {
    const i64 end = start + ROWS < rows ? start + ROWS : rows;
    for (i64 j = threadIdx.x; j < cols; j += blockDim.x) {
      double along_n = of_gamma[j], alone = of_beta[j];
      for (i64 row = start; row < end; ++row) {
        const float n = N[row * cols + j];
        const u32 drawn = dropout_row(key, (u32)nodes[row]);
        const float g = activation_gradient(G[row * cols + j], n, gamma[j], beta[j], mask, drawn, j);
        along_n += (double)(g * n);
        alone += (double)g;
      }
      of_gamma[j] = along_n, of_beta[j] = alone;
    }
    __syncthreads();  // G is written over
    for (i64 of_groups = start; of_groups < end; of_groups += GROUPS) {
      const i64 row = of_groups + group();
      const bool present = row < end;
      const u32 drawn = dropout_row(key, present ? (u32)nodes[row] : 0);
      float *g = G + row * cols;
      const float *n = N + row * cols;
      const auto scaled = [&](i64 j) {
        if (!present) return 0.0f;
        return activation_gradient(g[j], n[j], gamma[j], beta[j], mask, drawn, j) * gamma[j];
      };
      const float mean = row_sum(cols, scaled) / count;
      const float along = row_sum(cols, [&](i64 j) { return present ? scaled(j) * n[j] : 0.0f; }) / count;
      if (!present) continue;
      for (i64 j = lane(); j < cols; j += LANES) {
        float x = norm_gradient(scaled(j), n[j], mean, along, inverse[row]);
        if (mask.before_norm()) x *= mask.of(drawn, j);
        g[j] = x;
      }
    }
    __syncthreads();
    for (i64 j = threadIdx.x; j < cols; j += blockDim.x) {
      double sum = of_bias[j];
      for (i64 row = start; row < end; ++row) sum += (double)G[row * cols + j];
      of_bias[j] = sum;
    }
  }
}

// Sums of 32 columns a block over the rows of blockIdx.y's share, to partial, (shares, cols)
PDADMM_KERNEL column_sums(const float *G, i64 rows, i64 cols, double *partial) {
  __shared__ double of_warp[WARPS][32];
  const int warp = threadIdx.x / 32, column = threadIdx.x % 32;
  const i64 j = (i64)blockIdx.x * 32 + column;
  const i64 each = (rows + gridDim.y - 1) / gridDim.y;
  const i64 first = each * blockIdx.y, last = first + each < rows ? first + each : rows;
  double sum = 0.0;
  if (j < cols)
    for (i64 row = first + warp; row < last; row += WARPS) sum += (double)G[row * cols + j];
  of_warp[warp][column] = sum;
  __syncthreads();
  if (warp || j >= cols) return;
  for (int w = 1; w < WARPS; ++w) sum += of_warp[w][column];
  partial[blockIdx.y * cols + j] = sum;
}

// sums += the shares' sums, or sums = them
PDADMM_KERNEL column_totals(const double *partial, i64 shares, i64 cols, double *sums, int add) {
  const i64 j = first_thread();
  if (j >= cols) return;
  double total = 0.0;
  for (i64 i = 0; i < shares; ++i) total += partial[i * cols + j];
  sums[j] = add ? sums[j] + total : total;
}

// Loss and hits of the block go to partial, (blocks, 2).
PDADMM_KERNEL softmax_loss(float *Z, const float *bias, const i64 *labels, float weight, float *G, i64 rows,
                           i64 cols, double *partial) {
  double sum[2] = {0.0, 0.0};
  for (i64 start = (i64)blockIdx.x * GROUPS; start < rows; start += (i64)gridDim.x * GROUPS) {
    const i64 row = start + group(), label = row < rows ? labels[row] : -1;
    const bool present = label >= 0;
    float *z = Z + row * cols, *g = G + row * cols;
    int most = -0x7fffffff, largest = 0;
    if (present)
      for (i64 j = lane(); j < cols; j += LANES) {
        z[j] += bias[j];
        most = ordered(z[j]) > most ? ordered(z[j]) : most;
        largest = magnitude(z[j]) > largest ? magnitude(z[j]) : largest;
      }
    most = group_max(most);
    largest = group_max(largest);
    const float peak = from_ordered(most);
    int answer = 0x7fffffff;  // the first column that has the largest entry
    if (row < rows)
      for (i64 j = lane(); j < cols; j += LANES) {
        g[j] = present ? exp_nonpositive(z[j] - peak) : 0.0f;
        if (present && z[j] == peak && (int)j < answer) answer = (int)j;
      }
    answer = -group_max(-answer);
    const float exponentials = row_sum(cols, [&](i64 j) { return present ? g[j] : 0.0f; });
    if (!present) continue;
    // exp_nonpositive takes NaN for a small number
    const float total = largest < INFINITE ? exponentials : float_of(0x7fc00000u);
    for (i64 j = lane(); j < cols; j += LANES) {
      float x = g[j] / total * weight;
      if (j == label) {
        x -= weight;
        sum[0] += log((double)total) - (double)(z[j] - peak);
        sum[1] += answer == j ? 1.0 : 0.0;
      }
      g[j] = x;
    }
  }
  block_sums(sum, partial);
}

PDADMM_KERNEL adam(float *x, const float *gradient, float *first, float *second, i64 count, float decay,
                   float keep_first, float share_first, float keep_second, float share_second,
                   float correction, float rate, float epsilon) {
  for (i64 i = first_thread(); i < count; i += thread_stride()) {
    const float g = decay != 0.0f ? gradient[i] + decay * x[i] : gradient[i];
    first[i] = running_mean(first[i], keep_first, share_first * g);
    second[i] = running_mean(second[i], keep_second, share_second * g * g);
    x[i] = adam_step(x[i], first[i], second[i], correction, rate, epsilon);
  }
}

// The rows as they are, a warp a row
PDADMM_KERNEL gather_rows(const float *X, const int *chosen, float *out, i64 rows, i64 cols, int *bad) {
  const bool wide = is_wide(cols) && is_aligned(X) && is_aligned(out);
  bool finite = true;
  for (i64 row = first_row(); row < rows; row += row_stride())
    for (i64 j = first_column(); j < cols; j += TILE) {
      float v[4];
      const int n = columns_left(cols, j);
      load4(X + chosen[row] * cols + j, n, wide, v);
      finite = finite && all_finite(v);
      store4(out + row * cols + j, n, wide, v);
    }
  if (!finite) *bad = 1;
}

PDADMM_KERNEL scatter_rows(const float *message, const int *chosen, float *X, i64 rows, i64 cols) {
  const bool wide = is_wide(cols) && is_aligned(X) && is_aligned(message);
  for (i64 row = first_row(); row < rows; row += row_stride())
    for (i64 j = first_column(); j < cols; j += TILE) {
      float v[4];
      const int n = columns_left(cols, j);
      load4(message + row * cols + j, n, wide, v);
      store4(X + chosen[row] * cols + j, n, wide, v);
    }
}

// Bits of the largest magnitude of every block's rows, to partial, (blocks)
PDADMM_KERNEL row_largest(const float *X, const int *chosen, i64 rows, i64 cols, int *partial, int *bad) {
  const bool wide = is_wide(cols) && is_aligned(X);
  int largest = 0;
  for (i64 row = first_row(); row < rows; row += row_stride())
    for (i64 j = first_column(); j < cols; j += TILE) {
      float v[4];
      load4(X + chosen[row] * cols + j, columns_left(cols, j), wide, v);
      const int most = largest_of(v);
      largest = most > largest ? most : largest;
    }
  largest = block_max(largest);
  if (threadIdx.x) return;
  partial[blockIdx.x] = largest;
  if (largest >= INFINITE) *bad = 1;
}

// Every block finds the message's exponent from what row_largest left.
PDADMM_KERNEL encode_rows(const float *X, const int *chosen, u8 *out, i64 rows, i64 cols, int bits, u32 key,
                          const int *partial, int blocks) {
  int largest = 0;
  for (int i = (int)threadIdx.x; i < blocks; i += (int)blockDim.x)
    largest = partial[i] > largest ? partial[i] : largest;
  const int exponent = message_exponent(block_max(largest));
  const float down = power_of_two(-exponent);
  if (first_thread() == 0) *reinterpret_cast<int *>(out) = exponent;
  if (bits == 8) encode_affine_rows<8>(X, chosen, out, rows, cols, key, down);
  if (bits == 4) encode_affine_rows<4>(X, chosen, out, rows, cols, key, down);
  if (bits == 2) encode_affine_rows<2>(X, chosen, out, rows, cols, key, down);
  if (bits == 1) encode_affine_rows<1>(X, chosen, out, rows, cols, key, down);
}

PDADMM_KERNEL decode_rows(const u8 *message, const int *chosen, float *X, i64 rows, i64 cols, int bits) {
  if (bits == 8) decode_affine_rows<8>(message, chosen, X, rows, cols);
  if (bits == 4) decode_affine_rows<4>(message, chosen, X, rows, cols);
  if (bits == 2) decode_affine_rows<2>(message, chosen, X, rows, cols);
  if (bits == 1) decode_affine_rows<1>(message, chosen, X, rows, cols);
}

// The widths of the next cycle go by these: variances at 1 bit of what came, from the heads alone
PDADMM_KERNEL add_variances(const u8 *message, const int *chosen, double *sums, i64 rows, i64 cols, int bits,
                            i64 first) {
  const double up = (double)power_of_two(*reinterpret_cast<const int *>(message)) * ((1 << bits) - 1);
  const u16 *scales = reinterpret_cast<const u16 *>(message + BODY) + rows;
  for (i64 row = first_thread(); row < rows; row += thread_stride()) {
    const double span = (double)half_value(scales[row]) * up;
    sums[chosen[row] - first] += (double)cols / 6.0 * (span * span);
  }
}
