// Threads for the host passes. They sleep between jobs: spinning would take the cores from BLAS.
#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

class ThreadPool {
 public:
  // The pool of this process. It is never destroyed, so that the workers may sleep through exit, and
  // made anew in a forked child, where there are no workers.
  static ThreadPool &instance() {
    static std::once_flag once;
    std::call_once(once, [] {
      current() = new ThreadPool;
      pthread_atfork(nullptr, nullptr, [] {
        int threads = current()->threads_;
        current() = new ThreadPool;
        current()->threads_ = threads;
      });
    });
    return *current();
  }

  void set_threads(int n) { threads_ = n < 1 ? 1 : n; }
  int threads() const { return threads_; }

  // Call work(i) for every i < count, on this and other threads. Serial while another thread of the
  // program uses the pool.
  void run(int64_t count, const std::function<void(int64_t)> &work) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || threads_ == 1 || count < 2) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      helpers_ = (int)(count < threads_ ? count : threads_) - 1;
      while (workers_ < helpers_) {
        int index = workers_++;
        std::thread([this, index] { serve(index); }).detach();
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

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)> *work_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  uint64_t job_ = 0;
  bool open_ = false;
  int threads_ = 1, workers_ = 0, helpers_ = 0, active_ = 0;
};
