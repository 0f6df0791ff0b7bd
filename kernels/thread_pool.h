// Threads for the host passes. They sleep between jobs: spinning would take the cores from BLAS.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

// std::condition_variable, but for the version that its wait() has had since GCC 12 and older systems lack.
class Condition {
 public:
  // Returns with the lock held and `ready` true.
  template <class Ready>
  void wait(std::unique_lock<std::mutex> &lock, Ready ready) {
    while (!ready()) pthread_cond_wait(&condition_, lock.mutex()->native_handle());
  }
  void notify_one() { pthread_cond_signal(&condition_); }
  void notify_all() { pthread_cond_broadcast(&condition_); }

 private:
  pthread_cond_t condition_ = PTHREAD_COND_INITIALIZER;
};

class ThreadPool {
 public:
  // The pool of this process. It is never destroyed, so that the workers may sleep through exit, and
  // made anew in a forked child, where there are no workers.
  static ThreadPool &instance() {
    static const bool made = [] {
      current() = new ThreadPool;
      pthread_atfork(nullptr, nullptr, [] {
        int threads = current()->threads_;
        current() = new ThreadPool;
        current()->threads_ = threads;
      });
      return true;
    }();
    (void)made;
    return *current();
  }

  void set_threads(int n) { threads_ = n < 1 ? 1 : n; }
  int threads() const { return threads_; }

  // Call work(i) for every i < count, on this and other threads. Serial while another thread of the
  // program uses the pool.
  void run(int64_t count, const std::function<void(int64_t)> &work) {
    const Turn turn(taken_);
    if (!turn.mine || threads_ == 1 || count < 2) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      helpers_ = (int)(count < threads_ ? count : threads_) - 1;
      try {
        while (workers_ < helpers_) {
          std::thread([this, index = workers_] { serve(index); }).detach();
          ++workers_;
        }
      } catch (const std::system_error &) {
        helpers_ = workers_;  // the system gives no more; fewer do the same work
      }
      work_ = &work;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      open_ = true;
      ++job_;
    }
    wake_.notify_all();
    take();
    // a helper that has not woken by now is not waited for
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = false;
    done_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  // The pool is one thread's at a time, and nobody waits for it.
  struct Turn {
    std::atomic<bool> &taken;
    const bool mine;
    explicit Turn(std::atomic<bool> &flag)
        : taken(flag), mine(!flag.exchange(true, std::memory_order_acquire)) {}
    ~Turn() {
      if (mine) taken.store(false, std::memory_order_release);
    }
  };

  static ThreadPool *&current() {
    static ThreadPool *pool = nullptr;
    return pool;
  }

  void take() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*work_)(i);
  }

  void serve(int index) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return open_ && job_ != seen && index < helpers_; });
      seen = job_;
      ++active_;
      lock.unlock();
      take();
      lock.lock();
      if (--active_ == 0 && !open_) done_.notify_one();
    }
  }

  std::atomic<bool> taken_{false};
  std::mutex mutex_;
  Condition wake_, done_;
  const std::function<void(int64_t)> *work_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  uint64_t job_ = 0;
  bool open_ = false;
  int threads_ = 1, workers_ = 0, helpers_ = 0, active_ = 0;
};
