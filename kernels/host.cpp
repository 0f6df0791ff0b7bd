// The host library's C interface: choice of the instruction set, threads, and the passes.
//
// Rows are split into chunks that depend on the array's shape alone, and the chunks' sums are added
// in their order, so that results do not depend on the number of threads.
#include <atomic>
#include <cstring>
#include <vector>

#include "passes.h"
#include "thread_pool.h"

namespace pdadmm_portable {
extern const Passes passes;
}
#ifdef PDADMM_X86_64
namespace pdadmm_avx2 {
extern const Passes passes;
}
namespace pdadmm_avx512 {
extern const Passes passes;
}
#endif

namespace {

const Passes *supported(const char *name) {
#ifdef PDADMM_X86_64
  __builtin_cpu_init();
  if (!strcmp(name, "avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return &pdadmm_avx512::passes;
  if (!strcmp(name, "avx2") && __builtin_cpu_supports("avx2")) return &pdadmm_avx2::passes;
#endif
  return strcmp(name, "portable") ? nullptr : &pdadmm_portable::passes;
}

const Passes *best() {
  for (const char *name : {"avx512", "avx2"})
    if (const Passes *p = supported(name)) return p;
  return &pdadmm_portable::passes;
}

const Passes *&selected() {
  static const Passes *passes = best();
  return passes;
}

std::atomic<int64_t> calls{0};

const int64_t MOST_CHUNKS = 64;
const int64_t CHUNK_ENTRIES = 16384;  // a smaller chunk is done before another thread has woken

// Run a pass over all rows and add up its sums, chunk by chunk in order.
template <class Arguments>
Partial run(RowPass<Arguments> pass, const Arguments &a, double *columns = nullptr) {
  calls.fetch_add(1, std::memory_order_relaxed);
  const int64_t rows = a.shape.rows, cols = a.shape.cols > 0 ? a.shape.cols : 1;
  int64_t size = (CHUNK_ENTRIES + cols - 1) / cols;
  if (size * MOST_CHUNKS < rows) size = (rows + MOST_CHUNKS - 1) / MOST_CHUNKS;
  const int64_t chunks = (rows + size - 1) / size;
  static thread_local std::vector<double> room;
  if (columns && (int64_t)room.size() < chunks * cols) room.resize((size_t)(chunks * cols));
  double *own = room.data();
  Partial partial[MOST_CHUNKS] = {};
  auto chunk = [&](int64_t i) {
    const int64_t first = i * size, last = first + size < rows ? first + size : rows;
    pass(a, first, last, partial[i], columns ? own + i * cols : nullptr);
  };
  if (chunks <= 1) {
    if (chunks == 1) chunk(0);
  } else {
    ThreadPool::instance().run(chunks, chunk);
  }
  Partial total = {};
  for (int64_t i = 0; i < chunks; ++i) {
    for (int k = 0; k < 6; ++k) total.sum[k] += partial[i].sum[k];
    total.bad |= partial[i].bad;
    if (columns)
      for (int64_t j = 0; j < cols; ++j) columns[j] = (i ? columns[j] : 0.0) + own[i * cols + j];
  }
  return total;
}

}  // namespace

#define PDADMM_API extern "C" __attribute__((visibility("default")))

PDADMM_API int pdadmm_abi() { return 3; }
PDADMM_API const char *pdadmm_isa() { return selected()->name; }
// Returns 0 where the machine or the build lacks the instruction set.
PDADMM_API int pdadmm_select_isa(const char *name) {
  const Passes *p = supported(name);
  if (p) selected() = p;
  return p != nullptr;
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
