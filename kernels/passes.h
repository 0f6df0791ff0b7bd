// Arguments of the passes, as pdadmm/kernels/host.py and pdadmm/admm/passes/host.py pack them: eight bytes a field.
#pragma once

#include <cstdint>

enum Kind : int64_t { FLOAT32 = 0, GRID = 1, AFFINE = 2, DELTA = 3 };

// A codec of pdadmm.codec; `low` and `step` belong to the grid.
struct Coding {
  int64_t kind, bits;
  double low, step;
};

struct Shape {
  int64_t rows, cols;
};

// `groups` of the arguments that have it: groups of the rows (pdadmm/arrays/groups.py), by which their sums are
// formed, a power of two of at most MOST_GROUPS; 0: none.
const int64_t MOST_GROUPS = 8;

struct SquaredNorm {
  Shape shape;
  const float *x;
  int64_t groups;
};

struct WeightGradient {
  Shape shape;
  float *G;
  const float *W, *W_bar;  // W_bar may be null: zero
  double nu, mu;
};

struct Subtract {
  Shape shape;
  float *M;
  const float *H;
  double length;
};

struct SubtractMean {
  Shape shape;
  float *M;
  const float *K;
  double length;
  const double *lengths;  // (cols), in the place of `length`; may be null
  double *sums;           // (cols)
  int64_t groups;
};

struct ColumnSums {
  Shape shape;
  const float *x;
  double *sums;  // (cols)
  int64_t groups;
};

struct WeightLineSearch {
  Shape shape;
  float *W;
  const float *G;
  const double *images;  // (rows)
  double *lengths;       // (rows)
  double nu, mu;
};

struct Residual {
  Shape shape;
  float *M;
  const float *b, *z;
};

struct PGradient {
  Shape shape;
  float *G;
  const float *p, *p_hat;
  float *q_hat, *u;
  const uint8_t *message;  // may be null
  double nu, rho;
  Coding coding;
  int64_t groups;
};

struct PStep {
  Shape shape;
  float *p;
  const float *G;
  float *p_hat;
  uint8_t *out;
  double length;
  int64_t key;
  Coding coding;
};

// `shape` is that of p and G; M and H have `outputs` columns.
struct PLineSearch {
  Shape shape;
  float *p;
  const float *G;
  float *p_hat;
  uint8_t *out;
  float *M;
  const float *H;
  int64_t outputs;
  double nu, rho;
  int64_t key;
  Coding coding;
  int64_t groups;
};

struct ProjectedChange {
  Shape shape;
  float *change;
  const float *p, *G;
  double length;
  Coding coding;
  int64_t groups;
};

struct Hidden {
  Shape shape;
  float *M;
  const float *mean;
  float *z, *q, *p_hat, *q_hat, *u;
  const uint8_t *message;  // may be null: p_hat has been decoded
  uint8_t *out;
  double nu, rho, slope;
  int64_t key, measure, fresh;
  double *sums;  // residual, relaxation, primal, dual, dz, dq
  Coding coding;
  int64_t groups;
};

struct Output {
  Shape shape;
  float *M;
  const float *mean;
  float *z;
  const int64_t *y;
  double nu;
  int64_t cross_entropy, fresh;
  int64_t groups;
};

struct Encode {
  Shape shape;
  const float *x;
  float *hat;
  uint8_t *out;
  int64_t key;
  Coding coding;
};

struct Decode {
  Shape shape;
  const uint8_t *message;
  float *hat;
  Coding coding;
};

// What the rows [first, last) of a pass add to its sums, whether they met NaN or Inf, and the bits of the
// largest magnitude among them.
struct Partial {
  double sum[6];
  int64_t bad, largest;
};

// A pass over the rows [first, last). `columns` is room for sums over the rows, one or more a column.
template <class Arguments>
using RowPass = void (*)(const Arguments &, int64_t first, int64_t last, Partial &, double *columns);

// The passes of one instruction set.
struct Passes {
  const char *name;
  RowPass<SquaredNorm> squared_norm;
  RowPass<WeightGradient> weight_gradient;
  RowPass<Subtract> subtract;
  RowPass<SubtractMean> subtract_mean;
  RowPass<ColumnSums> column_sums, column_squares;
  RowPass<WeightLineSearch> weight_line_search;
  RowPass<Residual> residual;
  RowPass<PGradient> p_gradient;
  RowPass<PStep> p_step;
  RowPass<PLineSearch> p_line_search;
  RowPass<ProjectedChange> projected_change;
  RowPass<Hidden> hidden;
  RowPass<Output> output;
  RowPass<Encode> encode;
  RowPass<Decode> decode;
};
