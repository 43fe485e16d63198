// Sums over pixels into tables, with the same bits for any number of threads: rows are cut into a fixed number of
// shares, each share has a table of its own, and these are added in order. Part of every per-ISA source.
#pragma once

#include <cstdint>
#include <cstring>

#include "pool.h"

#ifndef TKJAX_ISA
#define TKJAX_ISA generic
#endif

namespace tkjax::TKJAX_ISA {

// body(first row, end row, sum [size]) for every share; out [size] is the total. sums holds shares * size floats.
template <typename Body>
static inline void in_shares(Pool& pool, int64_t rows, int64_t shares, int64_t size, float* sums, float* out,
                             const Body& body) {
  parallel_for(pool, shares, [&](int64_t share) {
    float* sum = shares == 1 ? out : sums + share * size;
    std::memset(sum, 0, sizeof(float) * size);
    body(rows * share / shares, rows * (share + 1) / shares, sum);
  });
  if (shares == 1) return;
  constexpr int64_t CHUNK = 8192;
  parallel_for(pool, (size + CHUNK - 1) / CHUNK, [&](int64_t task) {
    const int64_t end = (task + 1) * CHUNK < size ? (task + 1) * CHUNK : size;
    for (int64_t i = task * CHUNK; i < end; ++i) out[i] = sums[i];
    for (int64_t share = 1; share < shares; ++share)
      for (int64_t i = task * CHUNK; i < end; ++i) out[i] += sums[share * size + i];
  });
}

}  // namespace tkjax::TKJAX_ISA
