// Enough of CUDA to run the kernels of kernels/*.cu on a CPU, one block after the other.
//
// The threads of a block are fibers of one thread, which change at barriers and warp operations only.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#define __CUDACC__
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct Dim {
  unsigned x, y, z;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
  float x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline unsigned __float_as_uint(float x) {
  unsigned b;
  memcpy(&b, &x, 4);
  return b;
}
static inline float __uint_as_float(unsigned b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}

namespace fibers {

struct Barrier {
  unsigned count = 0, generation = 0;
};

// Begun as a context, changed to and from by jumps, which ask nothing of the kernel; one a thread, for all blocks
struct Fiber {
  ucontext_t begin;
  jmp_buf place;
  bool begun = false;
  std::vector<char> stack;
};
static std::deque<Fiber> threads_of_block;
static std::vector<char> finished;
static jmp_buf scheduler;
static Barrier block_barrier, warp_barrier[32];
static std::vector<double> slots;  // one a thread, wide enough for what is exchanged

static void pause() {
  if (!_setjmp(threads_of_block[threadIdx.x].place)) _longjmp(scheduler, 1);
}

static void wait(Barrier &barrier, unsigned members) {
  const unsigned generation = barrier.generation;
  if (++barrier.count == members) {
    barrier.count = 0;
    ++barrier.generation;
  } else {
    while (barrier.generation == generation) pause();
  }
}

template <class T, class Take>
T exchange(T x, Take take) {
  const unsigned warp = threadIdx.x / 32;
  memcpy(&slots[threadIdx.x], &x, sizeof x);
  wait(warp_barrier[warp], 32);
  T found = take([warp](unsigned lane) {
    T value;
    memcpy(&value, &slots[warp * 32 + lane % 32], sizeof value);
    return value;
  });
  wait(warp_barrier[warp], 32);
  return found;
}

static std::function<void()> *body;
static void enter() {
  for (;;) {
    (*body)();
    finished[threadIdx.x] = 1;
    pause();
  }
}

static __attribute__((noinline)) void resume(Fiber &fiber) {
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.begin);
}

static void run_block(std::function<void()> &work) {
  const unsigned threads = blockDim.x;
  finished.assign(threads, 0);
  slots.assign(threads, 0.0);
  body = &work;
  while (threads_of_block.size() < threads) {
    Fiber &fiber = threads_of_block.emplace_back();
    fiber.stack.resize(64 << 10);
    getcontext(&fiber.begin);
    fiber.begin.uc_stack.ss_sp = fiber.stack.data();
    fiber.begin.uc_stack.ss_size = fiber.stack.size();
    fiber.begin.uc_link = nullptr;
    makecontext(&fiber.begin, enter, 0);
  }
  for (unsigned left = threads; left;)
    for (unsigned t = 0; t < threads; ++t) {
      if (finished[t]) continue;
      threadIdx = {t, 0, 0};
      resume(threads_of_block[t]);
      left -= finished[t];
    }
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(*(A *)arguments[I]...);
}

using Kernel = std::function<void(void **)>;
static std::map<std::string, Kernel> &kernels() {
  static std::map<std::string, Kernel> known;
  return known;
}
template <class... A>
bool add(const char *name, void (*kernel)(A...)) {
  kernels()[name] = [kernel](void **arguments) { call(kernel, arguments, std::index_sequence_for<A...>()); };
  return true;
}

}  // namespace fibers

static void __syncthreads() { fibers::wait(fibers::block_barrier, blockDim.x); }

template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  const unsigned lane = threadIdx.x % 32;
  return fibers::exchange(x, [=](auto of) { return of(lane ^ (unsigned)mask); });
}
template <class T>
T __shfl_sync(unsigned, T x, int from, int width = 32) {
  const unsigned first = threadIdx.x % 32 / (unsigned)width * (unsigned)width;
  return fibers::exchange(x, [=](auto of) { return of(first + (unsigned)from); });
}
template <class T>
T __shfl_down_sync(unsigned, T x, int by) {
  const unsigned lane = threadIdx.x % 32;
  return fibers::exchange(x, [=](auto of) { return lane + by < 32 ? of(lane + by) : of(lane); });
}
template <class Choose>
int of_warp(int x, Choose choose) {
  return fibers::exchange(x, [=](auto of) {
    int found = of(0);
    for (unsigned lane = 1; lane < 32; ++lane) found = choose(found, of(lane));
    return found;
  });
}
static int __reduce_max_sync(unsigned, int x) {
  return of_warp(x, [](int a, int b) { return a > b ? a : b; });
}
static int __reduce_min_sync(unsigned, int x) {
  return of_warp(x, [](int a, int b) { return a < b ? a : b; });
}
static int __reduce_add_sync(unsigned, int x) {
  return of_warp(x, [](int a, int b) { return a + b; });
}

// As cuLaunchKernel, by name; returns 0 for an unknown kernel.
extern "C" int launch(const char *name, unsigned grid_x, unsigned grid_y, unsigned block, void **arguments) {
  auto found = fibers::kernels().find(name);
  if (found == fibers::kernels().end()) return 0;
  std::function<void()> work = [&] { found->second(arguments); };
  gridDim = {grid_x, grid_y, 1};
  blockDim = {block, 1, 1};
  for (unsigned y = 0; y < grid_y; ++y)
    for (unsigned x = 0; x < grid_x; ++x) {
      blockIdx = {x, y, 0};
      fibers::run_block(work);
    }
  return 1;
}
