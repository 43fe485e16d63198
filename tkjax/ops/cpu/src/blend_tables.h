// Weighted sums of arrays and their inner products (tkjax/ops/blend_tables.py).
// No C++ standard library code: this header is part of every per-ISA source.
#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace tkjax {

constexpr int64_t BLEND_CHUNK = 1024;  // floats of every array that are handled together: 53 of them stay in L2
constexpr int64_t BLEND_TASK = 8;      // chunks of a task

// The weights of each sum that are not 0: those of sum m are weight[i], of array array[i], i = start[m] … start[m+1]-1.
struct BlendWeights {
  const int64_t* start;  // [sums + 1]
  const int32_t* array;
  const float* weight;
};

inline int64_t blend_tasks(int64_t size) { return (size + BLEND_CHUNK * BLEND_TASK - 1) / (BLEND_CHUNK * BLEND_TASK); }

}  // namespace tkjax

// out[m] = the sum of weight * arrays[array] over the weights of m, in their order; all arrays have `size` floats.
TKJAX_DECLARE_KERNEL(void, blend_sums,
                     (const tkjax::BlendWeights& weights, int64_t sums, const float* arrays, int64_t size, float* out,
                      tkjax::Pool& pool))

// out[a, b] = <left[a], right[b]>; scratch holds blend_tasks(size) * lefts * rights doubles.
TKJAX_DECLARE_KERNEL(void, blend_products,
                     (const float* left, int64_t lefts, const float* right, int64_t rights, int64_t size,
                      double* scratch, float* out, tkjax::Pool& pool))
