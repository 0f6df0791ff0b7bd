// The passes of graph networks over rows on CPUs. Compiled once an instruction set, as host_passes.cpp.
#include <math.h>

#include <type_traits>

#include "aggregate.h"
#include "graph.h"
#include "graph_arithmetic.h"
#include "row_message.h"

#if defined(__x86_64__) && defined(__GLIBC__)
// The same function by its first name, which older systems have too; log@GLIBC_2.29 differs in errno alone.
__asm__(".symver log, log@GLIBC_2.2.5");
#endif

namespace PDADMM_NAMESPACE {
namespace {

// ---- sums of a row in float32, in lanes that are the same for every instruction set ----------------

// term(0) + ... + term(n - 1): sixteen running sums, folded in halves, then what is beyond the last sixteen.
// `some` gives the terms of a register, `one` a single one.
const int SUMS = 16, PARTS = SUMS / WIDEST;
typedef Vector<WIDEST>::type Lanes;

template <class Some, class One>
PDADMM_FN float sum_of(int64_t n, Some some, One one) {
  Lanes part[PARTS] = {};
  int64_t i = 0;
  for (; i + SUMS <= n; i += SUMS)
#pragma GCC unroll 4
    for (int k = 0; k < PARTS; ++k) part[k] += some(i + k * WIDEST);
  float lane[SUMS], rest = 0.0f;
  __builtin_memcpy(lane, part, sizeof lane);
  for (int width = SUMS / 2; width; width /= 2)
    for (int k = 0; k < width; ++k) lane[k] += lane[k + width];
  for (; i < n; ++i) rest += one(i);
  return lane[0] + rest;
}

PDADMM_FN Lanes lanes(const float *x) { return *(const Lanes *)x; }

PDADMM_FN float row_sum(const float *x, int64_t n) {
  return sum_of(n, [=](int64_t j) { return lanes(x + j); }, [=](int64_t j) { return x[j]; });
}

PDADMM_FN float row_product(const float *x, const float *y, int64_t n) {
  return sum_of(
      n, [=](int64_t j) { return lanes(x + j) * lanes(y + j); }, [=](int64_t j) { return x[j] * y[j]; });
}

// ---- hidden layers ----------------------------------------------------------------------------------

enum Order { NO_DROPOUT, NORM_FIRST, DROPOUT_FIRST };

// The masks of a layer's dropout; a column's part of the hash is formed once.
struct Mask {
  Buffer<u32> strides;
  const u32 key;
  const int threshold;
  const float scale;
  Mask(const Dropout &d, int64_t cols)
      : strides(cols), key((u32)d.key), threshold((int)d.threshold), scale((float)d.scale) {
    for (int64_t j = 0; j < cols; ++j) strides.data[j] = (u32)j * DROPOUT_STRIDE;
  }
};

// Call `with` for the order that the dropout asks for.
template <class With>
PDADMM_INLINE void in_order(const Dropout &d, With with) {
  if (!d.threshold)
    with(std::integral_constant<Order, NO_DROPOUT>());
  else if (d.first)
    with(std::integral_constant<Order, DROPOUT_FIRST>());
  else
    with(std::integral_constant<Order, NORM_FIRST>());
}

template <Order ORDER>
void hidden_in_order(const HiddenLayer &a, int64_t first, int64_t last) {
  const int64_t n = a.shape.cols;
  const Mask mask(a.drop, n);
  const u32 *strides = mask.strides.data;
  const int threshold = mask.threshold;
  const float scale = mask.scale, *bias = a.bias, *gamma = a.gamma, *beta = a.beta;
  for (int64_t row = first; row < last; ++row) {
    const u32 drawn = dropout_row(mask.key, (u32)a.nodes[row]);
    const float *Z = a.Z + row * n;
    float *N = a.N + row * n, *H = a.H + row * n;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) {
      N[j] = Z[j] + bias[j];
      if (ORDER == DROPOUT_FIRST) N[j] *= kept(dropout_keeps(drawn, strides[j], threshold), scale);
    }
    // The mean that float32 gives is off by a rounding of its size, which a small deviation would magnify:
    // the mean of what is left is taken off too.
    const float mean = row_sum(N, n) / (float)n;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) N[j] -= mean;
    const float left = row_sum(N, n) / (float)n;
    const float variance = positive_part(row_product(N, N, n) / (float)n - left * left);
    const float inverse = a.inverse[row] = 1.0f / square_root(variance + NORM_EPSILON);
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) {
      N[j] = (N[j] - left) * inverse;
      H[j] = positive_part(norm_affine(N[j], gamma[j], beta[j]));
      if (ORDER == NORM_FIRST) H[j] *= kept(dropout_keeps(drawn, strides[j], threshold), scale);
    }
  }
}

void hidden_rows(const HiddenLayer &a, int64_t first, int64_t last, Partial &, double *) {
  in_order(a.drop, [&](auto order) { hidden_in_order<decltype(order)::value>(a, first, last); });
}

template <Order ORDER>
void hidden_backward_in_order(const HiddenLayerBackward &a, int64_t first, int64_t last, double *columns) {
  const int64_t n = a.shape.cols;
  const Mask mask(a.drop, n);
  const u32 *strides = mask.strides.data;
  const int threshold = mask.threshold;
  const float scale = mask.scale, *gamma = a.gamma, *beta = a.beta;
  double *of_gamma = columns, *of_beta = columns + n, *of_bias = columns + 2 * n;
  for (int64_t j = 0; j < 3 * n; ++j) columns[j] = 0.0;
  for (int64_t row = first; row < last; ++row) {
    const u32 drawn = dropout_row(mask.key, (u32)a.nodes[row]);
    float *G = a.G + row * n;
    const float *N = a.N + row * n, inverse = a.inverse[row];
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) {
      float g = G[j];
      if (ORDER == NORM_FIRST) g *= kept(dropout_keeps(drawn, strides[j], threshold), scale);
      g = norm_affine(N[j], gamma[j], beta[j]) > 0.0f ? g : 0.0f;
      of_gamma[j] += (double)(g * N[j]);
      of_beta[j] += (double)g;
      G[j] = g * gamma[j];
    }
    const float mean = row_sum(G, n) / (float)n, along = row_product(G, N, n) / (float)n;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) {
      G[j] = norm_gradient(G[j], N[j], mean, along, inverse);
      if (ORDER == DROPOUT_FIRST) G[j] *= kept(dropout_keeps(drawn, strides[j], threshold), scale);
      of_bias[j] += (double)G[j];
    }
  }
}

void hidden_backward_rows(const HiddenLayerBackward &a, int64_t first, int64_t last, Partial &,
                          double *columns) {
  in_order(a.drop, [&](auto order) {
    hidden_backward_in_order<decltype(order)::value>(a, first, last, columns);
  });
}

// ---- messages ---------------------------------------------------------------------------------------

// Ask for a chosen row that comes soon: the machine sees a pattern within rows only.
PDADMM_FN void fetch_row(const float *X, const int32_t *rows, int64_t row, int64_t last, int64_t n) {
  const char *x = (const char *)(X + rows[row < last ? row : last - 1] * n);
  for (int64_t line = 0; line < n * 4; line += LINE) __builtin_prefetch(x + line);
}

// The rows as they are
void copy_rows(const EncodeRows &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  for (int64_t row = first; row < last; ++row) {
    fetch_row(a.X, a.rows, row + 2, last, n);
    const float *x = a.X + a.rows[row] * n;
    copy_row(x, (float *)a.out + row * n, n);
    if (largest_magnitude(x, n) >= INFINITE) partial.bad = 1;
  }
}

void row_extremes(const RowsWithExtremes &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  int largest = 0;
  for (int64_t row = first; row < last; ++row) {
    fetch_row(a.message.X, a.message.rows, row + 2, last, n);
    const Extremes e = extremes(a.message.X + a.message.rows[row] * n, n);
    const float both[2] = {a.least[row] = e.least, a.greatest[row] = e.greatest};
    const int most = largest_magnitude(both, 2);
    largest = most > largest ? most : largest;
    if (!e.finite) partial.bad = 1;
  }
  partial.largest = largest;
}

void row_codes(const RowsWithExtremes &a, int64_t first, int64_t last, Partial &, double *) {
  const EncodeRows &m = a.message;
  const RowMessage message(a.shape, m.bits, a.exponent, m.key);
  message.heads(a.least, a.greatest, first, last, m.out);
  for (int64_t row = first; row < last; ++row) {
    fetch_row(m.X, m.rows, row + 2, last, a.shape.cols);
    message.encode(m.X + m.rows[row] * a.shape.cols, a.least[row], a.greatest[row], row, m.out);
  }
}

void decode_rows(const DecodeRows &a, int64_t first, int64_t last, Partial &, double *) {
  const int64_t n = a.shape.cols;
  if (a.bits == 32) {
    for (int64_t row = first; row < last; ++row)
      copy_row((const float *)a.message + row * n, a.X + a.rows[row] * n, n);
    return;
  }
  const RowMessage message(a.shape, a.bits, *(const int32_t *)a.message);
  for (int64_t row = first; row < last; ++row) message.decode(a.message, row, a.X + a.rows[row] * n);
}

// ---- loss and weights -------------------------------------------------------------------------------

void softmax_loss_rows(const SoftmaxLoss &a, int64_t first, int64_t last, Partial &partial, double *) {
  const int64_t n = a.shape.cols;
  const float weight = (float)a.weight, *bias = a.bias;
  for (int64_t row = first; row < last; ++row) {
    float *Z = a.Z + row * n, *G = a.G + row * n;
    const int64_t label = a.labels[row];
    if (label < 0) {
      __builtin_memset(G, 0, (size_t)n * 4);
      continue;
    }
    int most = -0x7fffffff, largest = 0;
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) {
      Z[j] += bias[j];
      most = ordered(Z[j]) > most ? ordered(Z[j]) : most;
      largest = magnitude(Z[j]) > largest ? magnitude(Z[j]) : largest;
    }
    const float peak = from_ordered(most);
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) G[j] = exp_nonpositive(Z[j] - peak);
    // exp_nonpositive takes NaN for a small number
    const float total = largest < INFINITE ? row_sum(G, n) : __builtin_nanf("");
    PDADMM_ELEMENTWISE
    for (int64_t j = 0; j < n; ++j) G[j] = G[j] / total * weight;
    G[label] -= weight;
    partial.sum[0] += log((double)total) - (double)(Z[label] - peak);
    int64_t hit = 0;
    while (hit < label && Z[hit] != peak) ++hit;
    partial.sum[1] += hit == label && Z[label] == peak;
  }
}

// A step of Adam; decay x belongs to the gradient
template <bool DECAYS>
void adam_in_place(const Adam &a, int64_t first, int64_t last) {
  float *x = a.x, *m = a.first, *v = a.second;
  const float *gradient = a.gradient, decay = (float)a.decay;
  const float keep_first = (float)a.keep_first, share_first = (float)a.share_first;
  const float keep_second = (float)a.keep_second, share_second = (float)a.share_second;
  const float correction = (float)a.second_correction, rate = (float)a.rate, epsilon = (float)a.epsilon;
  PDADMM_ELEMENTWISE
  for (int64_t i = first; i < last; ++i) {
    const float g = DECAYS ? gradient[i] + decay * x[i] : gradient[i];
    m[i] = running_mean(m[i], keep_first, share_first * g);
    v[i] = running_mean(v[i], keep_second, share_second * g * g);
    x[i] = adam_step(x[i], m[i], v[i], correction, rate, epsilon);
  }
}

void adam_rows(const Adam &a, int64_t first, int64_t last, Partial &, double *) {
  if (a.decay != 0.0)
    adam_in_place<true>(a, first, last);
  else
    adam_in_place<false>(a, first, last);
}

}  // namespace

extern const GraphPasses graph_passes;
const GraphPasses graph_passes = {
    aggregate_rows, hidden_rows, hidden_backward_rows, copy_rows, row_extremes,
    row_codes,      decode_rows, softmax_loss_rows,    adam_rows,
};

}  // namespace PDADMM_NAMESPACE
