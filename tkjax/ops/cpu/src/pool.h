// Threads as the kernels see them. No C++ standard library code: this header is part of every per-ISA source.
#pragma once

#include <cstdint>

namespace tkjax {

// run() calls fn(ctx, task) for task = 0 … tasks-1, on several threads in any order, and returns when all are done.
// The calling thread takes part, so progress never depends on a thread that has not started.
struct Pool {
  virtual int threads() const = 0;  // including the caller, at least 1
  virtual void run(int64_t tasks, void (*fn)(void* ctx, int64_t task), void* ctx) = 0;

 protected:
  ~Pool() = default;
};

// body(task) for all tasks; body is a lambda that outlives the call.
template <typename Body>
inline void parallel_for(Pool& pool, int64_t tasks, const Body& body) {
  if (tasks <= 0) return;
  if (tasks == 1) return body(0);
  struct Call {
    static void one(void* ctx, int64_t task) { (*static_cast<const Body*>(ctx))(task); }
  };
  pool.run(tasks, &Call::one, const_cast<Body*>(&body));
}

}  // namespace tkjax
