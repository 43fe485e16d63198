// A Pool of std::threads that start for each run(), for stress programs.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "pool.h"

namespace tkjax {

struct StdPool final : Pool {
  explicit StdPool(int threads) : count(threads) {}

  int threads() const override { return count; }

  void run(int64_t tasks, void (*fn)(void*, int64_t), void* ctx) override {
    std::atomic<int64_t> next{0};
    auto work = [&] {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) fn(ctx, i);
    };
    std::vector<std::thread> helpers;
    for (int i = 1; i < count; ++i) helpers.emplace_back(work);
    work();
    for (auto& helper : helpers) helper.join();
  }

  const int count;
};

}  // namespace tkjax
