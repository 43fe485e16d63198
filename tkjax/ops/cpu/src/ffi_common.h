// What handlers share: XLA's thread pool as a Pool, and sentences for bad arguments. Only for …_ffi.cc.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "isa.h"
#include "pool.h"
#include "xla/ffi/api/ffi.h"

namespace tkjax {

namespace ffi = xla::ffi;

// Tasks are claimed from a counter by the caller and by helpers on XLA's pool. A handler may itself run on that pool,
// and a helper may start late or only after run() has returned: it finds nothing left to claim and touches only the
// shared counter. The caller claims tasks itself, so at the end it waits only for tasks that are being executed.
class XlaPool final : public Pool {
 public:
  explicit XlaPool(ffi::ThreadPool pool) : pool_(pool) {}

  int threads() const override { return static_cast<int>(pool_.num_threads()) + 1; }

  void run(int64_t tasks, void (*fn)(void*, int64_t), void* ctx) override {
    auto job = std::make_shared<Job>(tasks, fn, ctx);
    int64_t helpers = pool_.num_threads();  // 0 where there is no pool
    if (helpers > tasks - 1) helpers = tasks - 1;
    for (int64_t i = 0; i < helpers; ++i) pool_.Schedule([job] { job->work(); });
    job->work();
    job->wait();
  }

 private:
  struct Job {
    Job(int64_t n, void (*f)(void*, int64_t), void* c) : tasks(n), fn(f), ctx(c) {}

    void work() {
      int64_t mine = 0;
      for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1), ++mine) fn(ctx, i);
      if (mine && done.fetch_add(mine) + mine == tasks) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_one();
      }
    }

    void wait() {
      for (int spin = 0; spin < 2000; ++spin)
        if (done.load() == tasks) return;
      std::unique_lock<std::mutex> lock(mutex);
      finished.wait(lock, [this] { return done.load() == tasks; });
    }

    const int64_t tasks;
    void (*const fn)(void*, int64_t);
    void* const ctx;
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };

  ffi::ThreadPool pool_;
};

inline ffi::Error bad(const std::string& message) { return ffi::Error::InvalidArgument("tkjax: " + message); }

}  // namespace tkjax
