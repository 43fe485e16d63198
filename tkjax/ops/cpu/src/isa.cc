// Which instruction set is active. Set once by the Python loader (tkjax/ops/cpu/__init__.py), and by tests.
#include "isa.h"

#include <atomic>

namespace tkjax {
namespace {
std::atomic<int> active{0};
}
Isa active_isa() { return static_cast<Isa>(active.load(std::memory_order_relaxed)); }

bool has_bf16() {
#if defined(__x86_64__)
  return active_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}
}  // namespace tkjax

// The best set that this processor and operating system run: 0 generic, 1 AVX2 + FMA, 2 AVX-512 (F, BW, DQ, VL).
extern "C" int tkjax_best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx2 ? (avx512 ? 2 : 1) : 0;
#else
  return 0;
#endif
}

// 0 on success, 1 where this processor cannot run it.
extern "C" int tkjax_set_isa(int isa) {
  if (isa < 0 || isa > tkjax_best_isa()) return 1;
  tkjax::active.store(isa, std::memory_order_relaxed);
  return 0;
}

extern "C" int tkjax_get_isa() { return static_cast<int>(tkjax::active_isa()); }

#ifndef TKJAX_SOURCES
#define TKJAX_SOURCES ""
#endif

// Digest of the sources that this library was built from.
extern "C" const char* tkjax_sources() { return TKJAX_SOURCES; }
