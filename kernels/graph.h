// Arguments of the passes of graph networks, as pdadmm/gnn/passes/host.py packs them: eight bytes a field.
#pragma once

#include "passes.h"

// out = A X + add out, add 0, 1 or -1; A in CSR, whose rows' entries are indptr[i] to indptr[i + 1] - 1
struct Aggregate {
  Shape shape;  // of out
  const int64_t *indptr;
  const int32_t *indices;
  const float *values, *X;
  float *out;
  int64_t add;
};

// Dropout of a hidden layer: draws below `threshold` of 2^24 are dropped, 0 for none.
struct Dropout {
  int64_t threshold, first;
  double scale;  // of what is kept
  int64_t key;
};

struct HiddenLayer {
  Shape shape;
  const float *Z, *bias, *gamma, *beta;
  const int64_t *nodes;
  float *N, *inverse, *H;  // N may be Z
  Dropout drop;
};

struct HiddenLayerBackward {
  Shape shape;
  float *G;
  const float *N, *inverse, *gamma, *beta;
  const int64_t *nodes;
  double *sums;  // (3, cols): for gamma, beta and the bias
  Dropout drop;
};

// A message of the rows X[rows[i]], see pdadmm/codec/rows.py; shape is that of the message.
struct EncodeRows {
  Shape shape;
  const float *X;
  const int32_t *rows;
  uint8_t *out;
  int64_t bits, key;
};

// A message half way: the least and the greatest entry of every row are found, then the exponent, then codes.
struct RowsWithExtremes {
  Shape shape;
  const EncodeRows &message;
  float *least, *greatest;  // (rows)
  int64_t exponent;
};

struct DecodeRows {
  Shape shape;
  const uint8_t *message;
  const int32_t *rows;
  float *X;
  int64_t bits;
};

struct SoftmaxLoss {
  Shape shape;
  float *Z;
  const float *bias;
  const int64_t *labels;  // -1: the row takes no part
  double weight;
  float *G;
  double *sums;  // loss, rows whose largest entry is their label's
};

struct Adam {
  Shape shape;  // one column
  float *x;
  const float *gradient;
  float *first, *second;
  double decay, keep_first, share_first, keep_second, share_second;
  double second_correction, rate, epsilon;  // 1 - second^step; rate / (1 - first^step)
};

// The passes of one instruction set.
struct GraphPasses {
  void (*aggregate)(const Aggregate &, int64_t first, int64_t last);
  RowPass<HiddenLayer> hidden;
  RowPass<HiddenLayerBackward> hidden_backward;
  RowPass<EncodeRows> copy_rows;
  RowPass<RowsWithExtremes> row_extremes, row_codes;
  RowPass<DecodeRows> decode_rows;
  RowPass<SoftmaxLoss> softmax_loss;
  RowPass<Adam> adam;
};
