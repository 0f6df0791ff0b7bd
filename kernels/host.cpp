// The host library's C interface: choice of the instruction set, threads, and the passes.
//
// Rows are split into chunks that depend on the array's shape alone, and the chunks' sums are added
// in their order, so that results do not depend on the number of threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "graph.h"
#include "graph_arithmetic.h"
#include "thread_pool.h"

namespace pdadmm_portable {
extern const Passes passes;
extern const GraphPasses graph_passes;
}
#ifdef PDADMM_X86_64
namespace pdadmm_avx2 {
extern const Passes passes;
extern const GraphPasses graph_passes;
}
namespace pdadmm_avx512 {
extern const Passes passes;
extern const GraphPasses graph_passes;
}
#endif

namespace {

// The passes of one instruction set.
struct Build {
  const Passes &passes;
  const GraphPasses &graph;
};
const Build portable = {pdadmm_portable::passes, pdadmm_portable::graph_passes};
#ifdef PDADMM_X86_64
const Build avx2 = {pdadmm_avx2::passes, pdadmm_avx2::graph_passes};
const Build avx512 = {pdadmm_avx512::passes, pdadmm_avx512::graph_passes};
#endif

const Build *supported(const char *name) {
#ifdef PDADMM_X86_64
  __builtin_cpu_init();
  if (!strcmp(name, "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return &avx512;
  if (!strcmp(name, "avx2") && __builtin_cpu_supports("avx2")) return &avx2;
#endif
  return strcmp(name, "portable") ? nullptr : &portable;
}

const Build *best() {
  for (const char *name : {"avx512", "avx2"})
    if (const Build *b = supported(name)) return b;
  return &portable;
}

const Build *&selected_build() {
  static const Build *build = best();
  return build;
}
const Passes *selected() { return &selected_build()->passes; }
const GraphPasses *graph() { return &selected_build()->graph; }

std::atomic<int64_t> calls{0};

const int64_t MOST_CHUNKS = 64;
const int64_t CHUNK_ENTRIES = 16384;  // a smaller chunk is done before another thread has woken

// Run a pass over all rows and add up its sums, chunk by chunk in order; `columns` takes `sums` a column.
template <class Arguments>
Partial run(RowPass<Arguments> pass, const Arguments &a, double *columns = nullptr, int64_t sums = 1) {
  calls.fetch_add(1, std::memory_order_relaxed);
  const int64_t rows = a.shape.rows, cols = a.shape.cols > 0 ? a.shape.cols : 1;
  int64_t size = (CHUNK_ENTRIES + cols - 1) / cols;
  if (size * MOST_CHUNKS < rows) size = (rows + MOST_CHUNKS - 1) / MOST_CHUNKS;
  const int64_t chunks = (rows + size - 1) / size;
  const int64_t width = sums * cols;
  static thread_local std::vector<double> room;
  if (columns && (int64_t)room.size() < chunks * width) room.resize((size_t)(chunks * width));
  double *own = room.data();
  Partial partial[MOST_CHUNKS] = {};
  auto chunk = [&](int64_t i) {
    const int64_t first = i * size, last = first + size < rows ? first + size : rows;
    pass(a, first, last, partial[i], columns ? own + i * width : nullptr);
  };
  if (chunks <= 1) {
    if (chunks == 1) chunk(0);
  } else {
    ThreadPool::instance().run(chunks, chunk);
  }
  Partial total = {};
  if (columns) std::fill(columns, columns + width, 0.0);
  for (int64_t i = 0; i < chunks; ++i) {
    for (int k = 0; k < 6; ++k) total.sum[k] += partial[i].sum[k];
    total.bad |= partial[i].bad;
    total.largest = std::max(total.largest, partial[i].largest);
    if (columns)
      for (int64_t j = 0; j < width; ++j) columns[j] += own[i * width + j];
  }
  return total;
}

// Multiplications of a chunk of a sparse product, and how many entries a row counts for besides its own
const int64_t CHUNK_PRODUCTS = 1 << 18, ROW_ENTRIES = 4;

// The first row of a chunk, so that chunks have about as many entries each.
int64_t first_row(const Aggregate &a, int64_t chunk, int64_t chunks) {
  const int64_t *indptr = a.indptr, rows = a.shape.rows;
  const int64_t work = indptr[rows] - indptr[0] + ROW_ENTRIES * rows;
  const int64_t before = work / chunks * chunk + work % chunks * chunk / chunks;
  int64_t low = 0, high = rows;
  while (low < high) {
    const int64_t row = (low + high) / 2;
    if (indptr[row] - indptr[0] + ROW_ENTRIES * row < before)
      low = row + 1;
    else
      high = row;
  }
  return low;
}

}  // namespace

#define PDADMM_API extern "C" __attribute__((visibility("default")))

PDADMM_API int pdadmm_abi() { return 4; }
PDADMM_API const char *pdadmm_isa() { return selected()->name; }
// Returns 0 where the machine or the build lacks the instruction set.
PDADMM_API int pdadmm_select_isa(const char *name) {
  const Build *b = supported(name);
  if (b) selected_build() = b;
  return b != nullptr;
}
PDADMM_API void pdadmm_set_threads(int n) { ThreadPool::instance().set_threads(n); }
PDADMM_API int pdadmm_threads() { return ThreadPool::instance().threads(); }
// Passes run so far: tests assert with it that a kernel ran.
PDADMM_API int64_t pdadmm_calls() { return calls.load(); }

// Each pass takes its packed arguments. Those with a sum return it, the others 1 for NaN or Inf.

PDADMM_API double pdadmm_squared_norm(const SquaredNorm *a) { return run(selected()->squared_norm, *a).sum[0]; }

PDADMM_API double pdadmm_weight_gradient(const WeightGradient *a) {
  return run(selected()->weight_gradient, *a).sum[0];
}

PDADMM_API int pdadmm_subtract(const Subtract *a) {
  run(selected()->subtract, *a);
  return 0;
}

PDADMM_API int pdadmm_subtract_mean(const SubtractMean *a) {
  run(selected()->subtract_mean, *a, a->sums);
  return 0;
}

PDADMM_API int pdadmm_column_sums(const ColumnSums *a) {
  run(selected()->column_sums, *a, a->sums);
  return 0;
}

PDADMM_API int pdadmm_residual(const Residual *a) {
  run(selected()->residual, *a);
  return 0;
}

PDADMM_API double pdadmm_p_gradient(const PGradient *a) { return run(selected()->p_gradient, *a).sum[0]; }

PDADMM_API int pdadmm_p_step(const PStep *a) { return (int)run(selected()->p_step, *a).bad; }

PDADMM_API double pdadmm_projected_change(const ProjectedChange *a) {
  return run(selected()->projected_change, *a).sum[0];
}

PDADMM_API int pdadmm_hidden(const Hidden *a) {
  Partial total = run(selected()->hidden, *a);
  if (a->measure) memcpy(a->sums, total.sum, sizeof total.sum);
  return (int)total.bad;
}

PDADMM_API double pdadmm_output(const Output *a) { return run(selected()->output, *a).sum[0]; }

PDADMM_API int pdadmm_encode(const Encode *a) { return (int)run(selected()->encode, *a).bad; }

PDADMM_API int pdadmm_decode(const Decode *a) {
  run(selected()->decode, *a);
  return 0;
}

// ---- graph networks ---------------------------------------------------------------------------------

PDADMM_API int pdadmm_aggregate(const Aggregate *a) {
  calls.fetch_add(1, std::memory_order_relaxed);
  const int64_t rows = a->shape.rows, entries = rows ? a->indptr[rows] - a->indptr[0] : 0;
  const int64_t products = (entries + ROW_ENTRIES * rows) * a->shape.cols;
  const int64_t chunks = std::min(std::min(MOST_CHUNKS, rows), products / CHUNK_PRODUCTS + 1);
  const auto aggregate = graph()->aggregate;
  if (chunks == 1) aggregate(*a, 0, rows);
  if (chunks > 1)
    ThreadPool::instance().run(chunks, [&](int64_t i) {
      aggregate(*a, first_row(*a, i, chunks), i + 1 < chunks ? first_row(*a, i + 1, chunks) : rows);
    });
  return 0;
}

PDADMM_API int pdadmm_hidden_layer(const HiddenLayer *a) {
  run(graph()->hidden, *a);
  return 0;
}

PDADMM_API int pdadmm_hidden_layer_backward(const HiddenLayerBackward *a) {
  run(graph()->hidden_backward, *a, a->sums, 3);
  return 0;
}

PDADMM_API int pdadmm_encode_rows(const EncodeRows *a) {
  if (a->bits == 32) return (int)run(graph()->copy_rows, *a).bad;
  const int64_t rows = a->shape.rows, used = 4 + 4 * rows + rows * ((a->shape.cols * a->bits + 7) / 8);
  if (!rows) return 0;
  static thread_local std::vector<float> extremes;
  if ((int64_t)extremes.size() < 2 * rows) extremes.resize((size_t)(2 * rows));
  RowsWithExtremes message = {a->shape, *a, extremes.data(), extremes.data() + rows, 0};
  const Partial found = run(graph()->row_extremes, message);
  if (found.bad) return 1;
  const int32_t exponent = pdadmm::message_exponent((int)found.largest);
  message.exponent = exponent;
  memcpy(a->out, &exponent, sizeof exponent);
  run(graph()->row_codes, message);
  memset(a->out + used, 0, (size_t)((4 - used % 4) % 4));
  return 0;
}

PDADMM_API int pdadmm_decode_rows(const DecodeRows *a) {
  run(graph()->decode_rows, *a);
  return 0;
}

PDADMM_API int pdadmm_softmax_loss(const SoftmaxLoss *a) {
  const Partial total = run(graph()->softmax_loss, *a);
  a->sums[0] = total.sum[0];
  a->sums[1] = total.sum[1];
  return 0;
}

PDADMM_API int pdadmm_adam(const Adam *a) {
  run(graph()->adam, *a);
  return 0;
}
