// The arithmetic of one element of graph networks and of messages of rows, rounded after every operation as
// that of arithmetic.h; pdadmm/gnn/equations.py and pdadmm/codec/rows.py have it in NumPy.
#pragma once

#include "arithmetic.h"

namespace PDADMM_NAMESPACE {

// ---- messages of rows --------------------------------------------------------------------------

// Exponent of a message from the bits of its largest magnitude
PDADMM_FN int message_exponent(int largest) {
  int e = (largest >> 23) - 126 - 14;
  return largest == 0 ? 0 : (e < -126 ? -126 : e);
}
// 2^e for -126 <= e <= 127
PDADMM_FN float power_of_two(int e) { return float_of((u32)(e + 127) << 23); }

// ---- dropout, norms, Adam ---------------------------------------------------------------------------

// All bits set where dropout keeps an entry, none where it drops it: the draw of a node and a column, of
// which those below the threshold are dropped.
static const u32 DROPOUT_STRIDE = 0x85EBCA6Bu;
PDADMM_FN u32 dropout_row(u32 key, u32 node) { return mixed(node * UNIFORM_STRIDE + key); }
PDADMM_FN u32 dropout_keeps(u32 row, u32 column, int threshold) {
  return (int)(mixed(row + column) >> 8) >= threshold ? 0xffffffffu : 0u;  // column: its number by the stride
}
// 1/(1 - rate) or 0
PDADMM_FN float kept(u32 keeps, float scale) { return float_of(bits_of(scale) & keeps); }

static const float NORM_EPSILON = 1e-5f;

// Correctly rounded, host and device
PDADMM_FN float square_root(float x) {
#ifdef __CUDACC__
  return sqrtf(x);
#else
  return __builtin_sqrtf(x);
#endif
}

// gamma N + beta, and its activation, which keeps NaN
PDADMM_FN float norm_affine(float n, float gamma, float beta) { return gamma * n + beta; }
PDADMM_FN float positive_part(float x) { return 0.0f > x ? 0.0f : x; }

// Gradient before the norm; mean and along are the means of g and of g n
PDADMM_FN float norm_gradient(float g, float n, float mean, float along, float inverse) {
  return ((g - mean) - n * along) * inverse;
}

// Adam: a running mean of shares, and a step along them; correction and rate have the powers of the step
PDADMM_FN float running_mean(float mean, float keep, float share) { return mean * keep + share; }
PDADMM_FN float adam_step(float x, float first, float second, float correction, float rate, float epsilon) {
  return x - rate * first / (square_root(second / correction) + epsilon);
}

}  // namespace PDADMM_NAMESPACE
