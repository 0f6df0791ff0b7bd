// The host library's C interface: choice of the instruction set, threads, and the passes.
//
// Rows are split into chunks that depend on the array's shape and its groups alone, and the chunks' sums are
// added at fixed places, so that results do not depend on the number of threads.
#include <algorithm>
#include <atomic>
#include <cmath>
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

const int64_t MOST_CHUNKS = 64;       // where rows are in no groups
const int64_t CHUNKS_OF_GROUP = 8;    // at most; whatever the groups of these rows, since others may have the rest
const int64_t CHUNK_ENTRIES = 16384;  // a smaller chunk is done before another thread has woken

template <class Arguments>
auto groups_of(const Arguments &a, int) -> decltype(a.groups) {
  return a.groups;
}
template <class Arguments>
int64_t groups_of(const Arguments &, long) {
  return 0;
}

// The first row of a group: rows are halved, and the halves.
int64_t first_of_group(int64_t rows, int64_t groups, int64_t group) {
  int64_t first = 0;
  if (group == groups) return rows;
  for (int64_t step = groups / 2; step; step /= 2) {
    const int64_t half = rows / 2;
    if (group & step) {
      first += half;
      rows -= half;
    } else {
      rows = half;
    }
  }
  return first;
}

void add(Partial &total, const Partial &part) {
  for (int k = 0; k < 6; ++k) total.sum[k] += part.sum[k];
  total.bad |= part.bad;
  total.largest = std::max(total.largest, part.largest);
}

// Run a pass over all rows. Its sums are added up within a group chunk by chunk in their order, and over the
// groups by a binary tree; `columns` takes `sums` a column.
template <class Arguments>
Partial run(RowPass<Arguments> pass, const Arguments &a, double *columns = nullptr, int64_t sums = 1) {
  calls.fetch_add(1, std::memory_order_relaxed);
  const int64_t rows = a.shape.rows, cols = a.shape.cols > 0 ? a.shape.cols : 1;
  const int64_t given = groups_of(a, 0), groups = given > 1 ? given : 1;
  const int64_t most = given ? CHUNKS_OF_GROUP : MOST_CHUNKS;
  int64_t begin[MOST_CHUNKS + 1], first_chunk[MOST_GROUPS + 1], chunks = 0;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = first_of_group(rows, groups, group), last = first_of_group(rows, groups, group + 1);
    int64_t size = (CHUNK_ENTRIES + cols - 1) / cols;
    if (size * most < last - first) size = (last - first + most - 1) / most;
    first_chunk[group] = chunks;
    for (int64_t row = first; row < last; row += size) begin[chunks++] = row;
  }
  first_chunk[groups] = chunks;
  begin[chunks] = rows;
  const int64_t width = sums * cols;
  static thread_local std::vector<double> room;
  if (columns && (int64_t)room.size() < (chunks + groups) * width) room.resize((size_t)((chunks + groups) * width));
  double *own = room.data();
  Partial partial[MOST_CHUNKS] = {};
  auto chunk = [&](int64_t i) {
    pass(a, begin[i], begin[i + 1], partial[i], columns ? own + i * width : nullptr);
  };
  if (chunks > 1 && rows * cols > CHUNK_ENTRIES)
    ThreadPool::instance().run(chunks, chunk);
  else
    for (int64_t i = 0; i < chunks; ++i) chunk(i);
  Partial of_group[MOST_GROUPS] = {};
  double *columns_of_group = own + chunks * width;
  if (columns) std::fill(columns_of_group, columns_of_group + groups * width, 0.0);
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t i = first_chunk[group]; i < first_chunk[group + 1]; ++i) {
      add(of_group[group], partial[i]);
      if (columns)
        for (int64_t j = 0; j < width; ++j) columns_of_group[group * width + j] += own[i * width + j];
    }
  for (int64_t apart = 1; apart < groups; apart *= 2)
    for (int64_t group = 0; group < groups; group += 2 * apart) {
      add(of_group[group], of_group[group + apart]);
      double *left = columns_of_group + group * width;
      if (columns)
        for (int64_t j = 0; j < width; ++j) left[j] += left[apart * width + j];
    }
  if (columns) std::copy(columns_of_group, columns_of_group + width, columns);
  return of_group[0];
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

PDADMM_API int pdadmm_abi() { return 6; }
PDADMM_API const char *pdadmm_isa() { return selected()->name; }
// Returns 0 where the machine or the build lacks the instruction set.
PDADMM_API int pdadmm_select_isa(const char *name) {
  const Build *b = supported(name);
  if (b) selected_build() = b;
  return b != nullptr;
}
PDADMM_API void pdadmm_set_threads(int n) { ThreadPool::instance().set_threads(n); }
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

PDADMM_API int pdadmm_column_squares(const ColumnSums *a) {
  run(selected()->column_squares, *a, a->sums);
  return 0;
}

PDADMM_API double pdadmm_weight_line_search(const WeightLineSearch *a) {
  return run(selected()->weight_line_search, *a).sum[0];
}

PDADMM_API int pdadmm_residual(const Residual *a) {
  run(selected()->residual, *a);
  return 0;
}

PDADMM_API double pdadmm_p_gradient(const PGradient *a) { return run(selected()->p_gradient, *a).sum[0]; }

PDADMM_API int pdadmm_p_step(const PStep *a) { return (int)run(selected()->p_step, *a).bad; }

// NaN where NaN or Inf was met.
PDADMM_API double pdadmm_p_line_search(const PLineSearch *a) {
  const Partial total = run(selected()->p_line_search, *a);
  return total.bad ? NAN : total.sum[0];
}

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
