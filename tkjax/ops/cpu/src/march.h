// Occupancy march. Formulas, cell rules and rounding: tkjax/ops/march.py. Every product and sum is rounded by itself;
// all callers, the fused renderer included, march through march_ray and so keep the same cells.
// No C++ standard library code: this header is part of every per-ISA source.
#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace tkjax {

constexpr int MARCH_MAX_CASCADES = 16;

// What the rays of a call share: the caller sets the first part and has march_prepare derive the second.
struct MarchArgs {
  const uint8_t* bits;  // whole 32-bit words: readable up to the next multiple of four bytes
  int64_t bytes;
  int32_t side, cascades, vertex, samples;
  float box[6];
  float dt, t_min, bound, dt_gamma, dt_max;

  int32_t constant_step, any;  // any: some bit is set
  float inverse_span[MARCH_MAX_CASCADES];
  float tight[6];  // contains every occupied cell; infinite on a side where these touch the edge of the grid
};

}  // namespace tkjax

TKJAX_DECLARE_KERNEL(void, march_prepare, (MarchArgs * args))

// Writes the first `limit` (at most) kept samples of a ray to t and dt and returns how many there are; where t is null
// it only counts, and dt may be null. near and far (not null) are 0 on a miss.
TKJAX_DECLARE_KERNEL(int, march_ray,
                     (const MarchArgs& args, const float* o, const float* d, float noise, int limit, float* t,
                      float* dt, float* near, float* far))

// The same with noise [jitters] for the step behind every sample.
TKJAX_DECLARE_KERNEL(int, march_ray_jittered,
                     (const MarchArgs& args, const float* o, const float* d, const float* noise, int jitters, int limit,
                      float* t, float* dt, float* near, float* far))

// o, d [R,3], noise [R], or [R,jitters] where jitters > 0 -> t, dt [R,samples], count, near, far [R].
TKJAX_DECLARE_KERNEL(void, march_dense,
                     (const MarchArgs& args, int64_t rays, const float* o, const float* d, const float* noise,
                      int jitters, float* t, float* dt, int32_t* count, float* near, float* far, Pool& pool))

// -> t, dt, ray [capacity], offset, count, near, far [R], overflow [1].
TKJAX_DECLARE_KERNEL(void, march_packed,
                     (const MarchArgs& args, int64_t rays, int64_t capacity, const float* o, const float* d,
                      const float* noise, int jitters, float* t, float* dt, int32_t* ray, int32_t* offset,
                      int32_t* count, float* near, float* far, int32_t* overflow, Pool& pool))
