// Sparse times dense, a row at a time.
//
// A row is summed in registers, a block of columns after the other. An entry's row of X comes from anywhere
// in memory: it is asked for some entries ahead, across the ends of rows.
#pragma once

#include "graph.h"

namespace PDADMM_NAMESPACE {
namespace {

// Floats of a register
#if defined(__AVX512F__)
const int WIDEST = 16;
#elif defined(__AVX__)
const int WIDEST = 8;
#else
const int WIDEST = 4;
#endif

template <int LANES>
struct Vector {
  typedef float type __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
};
template <>
struct Vector<1> {
  typedef float type;
};

// Registers of a block: with AVX2 half of them all
const int BLOCK = 8;
const int64_t AHEAD = 8, LINE = 64;

// The columns of a matrix in registers of LANES; fewer lanes only where the row is narrower than a register.
// What does not fill a register at the row's end is taken by one that ends there and overlaps the last: it
// computes the same again.
template <int LANES>
class Aggregation {
  typedef typename Vector<LANES>::type Lanes;

 public:
  explicit Aggregation(const Aggregate &a)
      : a_(a), end_(a.indptr[a.shape.rows]), vectors_(a.shape.cols / LANES),
        rest_(a.shape.cols % LANES != 0) {}

  void rows(int64_t first, int64_t last) const {
    const int64_t whole = (vectors_ - 1) / BLOCK * BLOCK;  // the last block has at least one register
    for (int64_t row = first; row < last; ++row) {
      for (int64_t k = 0; k < whole; k += BLOCK) block<BLOCK, false>(row, k * LANES);
      last_block<1>(row, whole);
    }
  }

 private:
  template <int COUNT>
  void last_block(int64_t row, int64_t k) const {
    if constexpr (COUNT < BLOCK && LANES == WIDEST)
      if (vectors_ - k > COUNT) return last_block<COUNT + 1>(row, k);
    if (rest_)
      block<COUNT, true>(row, k * LANES);
    else
      block<COUNT, false>(row, k * LANES);
  }

  template <int COUNT, bool REST>
  __attribute__((noinline)) void block(int64_t row, int64_t column) const {
    const int64_t n = a_.shape.cols, rest = n - column - LANES, last = end_ - 1;
    const int32_t *indices = a_.indices;
    const float *X = a_.X + column;
    Lanes sum[COUNT] = {}, sum_rest = {};
    for (int64_t e = a_.indptr[row], end = a_.indptr[row + 1]; e < end; ++e) {
      const float *ahead = X + indices[e + AHEAD < last ? e + AHEAD : last] * n;
#pragma GCC unroll 16
      for (int line = 0; line < COUNT * LANES * 4; line += LINE)
        __builtin_prefetch((const char *)ahead + line);
      const float *x = X + indices[e] * n;
      const float value = a_.values[e];
#pragma GCC unroll 16
      for (int k = 0; k < COUNT; ++k) sum[k] += value * *(const Lanes *)(x + k * LANES);
      if (REST) sum_rest += value * *(const Lanes *)(x + rest);
    }
    float *out = a_.out + row * n + column;
    if (a_.add) {  // all are read before any is written, since two overlap
      const float sign = a_.add;
      if (REST) sum_rest = sign * *(const Lanes *)(out + rest) + sum_rest;
      for (int k = 0; k < COUNT; ++k) sum[k] = sign * *(const Lanes *)(out + k * LANES) + sum[k];
    }
    for (int k = 0; k < COUNT; ++k) *(Lanes *)(out + k * LANES) = sum[k];
    if (REST) *(Lanes *)(out + rest) = sum_rest;
  }

  const Aggregate &a_;
  const int64_t end_, vectors_;
  const bool rest_;
};

template <int LANES>
void aggregate_in(const Aggregate &a, int64_t first, int64_t last) {
  if constexpr (LANES > 1)
    if (a.shape.cols < LANES) return aggregate_in<LANES / 2>(a, first, last);
  Aggregation<LANES>(a).rows(first, last);
}

void aggregate_rows(const Aggregate &a, int64_t first, int64_t last) {
  if (a.shape.cols > 0) aggregate_in<WIDEST>(a, first, last);
}

}  // namespace
}  // namespace PDADMM_NAMESPACE
